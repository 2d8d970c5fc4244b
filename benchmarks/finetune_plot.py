"""Draws the `full` column of the fine-tuning benchmark: step time over the best peer's, and peak memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

TITLES = {"resnet8": "ResNet-8", "kws": "KWS DS-CNN", "vww": "VWW MobileNet", "ad": "AD autoencoder"}
OURS_COLOR, PEER_COLORS = "#d1495b", ("#30638e", "#5b8db8", "#7d8597", "#9aa5b1", "#c5ccd3")


def plot(result: dict[str, Any], path: Path) -> None:
    """Write a PNG with two panels of bars, one group for each model."""
    rows = [row for row in result["rows"] if row["mode"] == "full" and "step_ms" in row]
    engines = sorted(dict.fromkeys(row["engine"] for row in rows), key=lambda name: name != "hedgerow")
    colors = dict(zip((name for name in engines if name != "hedgerow"), PEER_COLORS, strict=False))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    panels = (
        ("step_vs_best_peer", "step, processor time over the best peer's"),
        ("rss_mb", "peak resident memory, MB"),
    )
    for axis, (field, title) in zip(axes, panels, strict=True):
        _bars(axis, rows, engines, colors, field)
        axis.set_title(title, fontsize=10, loc="left")
    axes[0].axhline(1, color="#333333", linewidth=0.8, linestyle=":")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(f"One training step of the whole model, batch 16, one thread, {result['date']}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, rows: list[dict[str, Any]], engines: list[str], colors: dict[str, str], field: str) -> None:
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = 0.84 / len(engines)
    for row in rows:
        engine = row["engine"]
        place = models.index(row["model"]) + (engines.index(engine) - (len(engines) - 1) / 2) * width
        axis.bar(place, row[field], width * 0.92, color=colors.get(engine, OURS_COLOR), label=engine)
    axis.set_xticks(range(len(models)), [TITLES[model] for model in models], fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
