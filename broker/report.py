"""The report: one HTML page about a fleet's rounds that needs nothing but itself, and its plots as PNGs beside it.

Everything comes from the store (`broker.history`); `Extra` adds what only the demo knows: where the model started, what
all data in one place would reach, and which process was killed when.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Final

import msgspec

from broker.cost import example_core_s
from broker.database import StoreError
from broker.history import Extra, History, Step, read_history
from broker.plots import plots, say_accuracy
from broker.store import Store
from broker.versions import frame_under
from engine.models.graph import ModelError
from engine.train import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from broker.database import Place

DPI: Final = 144


class ReportError(RuntimeError):
    """The report cannot be made; the sentence says why and how to mend it."""


def write(
    place: Place, out_dir: Path, extra: Extra | None = None, show: Callable[[int, int], None] | None = None
) -> Path:
    """Read the store at `place`, beside whoever writes it, and `render` what it says. Raises StoreError too."""
    with Store(place, read_only=True) as store:
        history = msgspec.structs.replace(read_history(store), example_core_s=_example_core_s(store))
    return render(history, out_dir, extra, show)


def render(
    history: History, out_dir: Path, extra: Extra | None = None, show: Callable[[int, int], None] | None = None
) -> Path:
    """Write `index.html` and the PNGs into `out_dir` (made if missing); return the page's path.

    `show` is told how many plots of how many are drawn.
    Raises ReportError without matplotlib, or without a closed round.
    """
    extra = extra or Extra()
    if not history.steps:
        raise ReportError("no round has closed yet: there is nothing to report (broker round open --count 1)")
    try:
        from matplotlib.figure import Figure as _  # noqa: F401
    except ImportError as error:
        raise ReportError("the report needs matplotlib: pip install hedgerow[sim]") from error
    out_dir.mkdir(parents=True, exist_ok=True)
    measured = tuple(_measured(step, extra) for step in history.steps)
    history = msgspec.structs.replace(history, steps=measured)
    parts = []
    for number, (name, heading, draw, describe) in enumerate(plots()):
        if show is not None:
            show(number, len(plots()))
        path = out_dir / f"{name}.png"
        draw(history, extra).savefig(path, dpi=DPI, facecolor="white")
        parts.append(_figure(path, heading, describe(history, extra)))
    if show is not None:
        show(len(parts), len(parts))
    page = out_dir / "index.html"
    page.write_text(_page(history, extra, parts), "utf-8")
    return page


def _example_core_s(store: Store) -> float | None:
    """What a pass over an example takes of a core here, by the newest plan; None where it cannot be measured."""
    manifest, opened = store.manifest(), [row for row in store.rounds() if row.base_version]
    if manifest is None or not opened:
        return None
    plan = opened[-1].plan
    try:
        return example_core_s(plan, frame_under(manifest, plan.train, store))
    except (ModelError, StoreError, TrainingError):
        return None


def _measured(step: Step, extra: Extra) -> Step:
    """The round with the bytes of whoever watched the wire, if anyone did."""
    up, down = extra.wire_bytes.get(step.round_id, (step.bytes_up, step.bytes_down))
    return msgspec.structs.replace(step, bytes_up=up, bytes_down=down)


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #24292f; --quiet: #57606a; --page: #f6f7f8; --card: #fff; --line: #d8dee4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --quiet: #9aa4ae; --page: #111315; --card: #191c1f; --line: #2f353b }
  img { filter: invert(0.9) hue-rotate(180deg) }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 0 0 .6rem }
p { margin: .4rem 0; color: var(--quiet) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem;
  margin-top: 1.2rem; overflow-x: auto }
img { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td { padding: .25rem .6rem .25rem 0; border-top: 1px solid var(--line); vertical-align: top }
tr:first-child td { border-top: 0 } td:first-child { color: var(--quiet); width: 45% }
"""


def _page(history: History, extra: Extra, figures: list[str]) -> str:
    title = html.escape(extra.title or "A fleet and its rounds")
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in _rows(history, extra)
    )
    story = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in extra.story)
    told = f"<section><h2>What was killed</h2>{story}</section>" if story else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>{title}</h1>"
        f"<p>{html.escape(say_accuracy(history, extra))}</p>"
        f"<section><h2>In numbers</h2><table>{rows}</table></section>{told}{''.join(figures)}</main></body></html>\n"
    )


def _rows(history: History, extra: Extra) -> Sequence[tuple[str, str]]:
    if extra.rows:
        return extra.rows
    counted = sum(len(step.members) for step in history.steps)
    purposes = ", ".join(f"{name} {size / 1000:.1f} kB" for name, size in history.purposes)
    return (
        ("devices", str(len(history.devices))),
        ("rounds closed", str(len(history.steps))),
        ("newest model version", str(history.steps[-1].version)),
        ("updates counted", str(counted)),
        ("bytes on devices' links", purposes or "no device has told yet"),
    )


def _figure(path: Path, heading: str, sentence: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    said = html.escape(sentence)
    return f'<section><h2>{heading}</h2><img alt="{said}" src="data:image/png;base64,{data}"><p>{said}</p></section>\n'
