"""One fine-tuning step against its peers: ResNet-8, KWS, VWW and AD, batch 16; last layer, two blocks, everything.

    make bench-finetune                        one table
    make bench-finetune ARGS=--json            one JSON object: {machine, date, rows, targets}
    make bench-finetune ARGS="--rounds 10"     more rounds; --models resnet8 for some of the models; Ctrl-C ends early

Peers are PyTorch in both layouts, ONNX Runtime training, TensorFlow and LiteRT's training signatures. Each has an
environment of its own under .cache/bench (TensorFlow that of `make model`), made here once; one that cannot be had is
a row with its reason. FLEET_MODELS names the folder that holds mlperf_tiny/.

Every engine x model x mode is a process with one thread, started afresh in each round, the engines in rotation. Times
are processor time; a ratio is formed within a round, and the median over the rounds counts. Time and memory of a row
come from the same processes. Peers run a frozen part in float32, ours is int8: `full` is the like-for-like column.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import finetune_engines
from benchmarks.finetune_engines import ENGINES
from benchmarks.finetune_models import MODELS, MODES, Model, export

Figures = dict[str, Any]
Key = tuple[str, str, str]  # model, mode, engine

PEERS = [engine for engine in ENGINES if not engine.ours]
OURS = "hedgerow"  # as the product does it: features once, then steps
TORCH = ("PyTorch NCHW", "PyTorch NHWC")


def main() -> None:
    """Run the rounds, print the table or the object."""
    arguments = _arguments()
    wanted = [model for model in MODELS if model.name in arguments.models]
    rounds, reasons = _rounds(wanted, arguments.rounds)
    rows = _rows(rounds, reasons)
    result = {"machine": machine(), "date": dt.datetime.now(tz=dt.UTC).date().isoformat(), "rows": rows}
    result["targets"] = targets(rounds)
    if arguments.plot:
        from benchmarks.finetune_plot import plot

        plot(result, arguments.plot)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def machine() -> str:
    """What ran it, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processors = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or ["unnamed"]
    return f"{platform.machine()}, {processors[0]}, {os.cpu_count()} cores, Python {platform.python_version()}"


def targets(rounds: list[dict[Key, Figures]]) -> dict[str, float | None]:
    """The figures of this benchmark by name; None for one whose rows are missing."""

    def over_rounds(figure: Any) -> float | None:
        found = [value for measured in rounds if (value := figure(measured)) is not None]
        return statistics.median(found) if found else None

    def step_ratio(model: str, mode: str, ours: str | None) -> float | None:
        engine = ours or _best_of_ours(rounds, model, mode)
        return over_rounds(lambda measured: _against_best(measured, model, mode, engine))

    full = ("resnet8", "full", OURS)
    return {
        "resnet8_full_vs_best_peer": step_ratio("resnet8", "full", OURS),
        "resnet8_last_two_vs_best_peer": step_ratio("resnet8", "last_two", None),
        "resnet8_last_vs_best_peer": step_ratio("resnet8", "last", None),
        "resnet8_last_two_cached_vs_best_peer": step_ratio("resnet8", "last_two", OURS),
        "resnet8_last_cached_vs_best_peer": step_ratio("resnet8", "last", OURS),
        "kws_full_vs_best_peer": step_ratio("kws", "full", OURS),
        "vww_full_vs_best_peer": step_ratio("vww", "full", OURS),
        "ad_full_vs_best_peer": step_ratio("ad", "full", OURS),
        "resnet8_full_rss_mb": over_rounds(lambda measured: measured.get(full, {}).get("rss_mb")),
        "resnet8_full_rss_vs_torch": over_rounds(lambda measured: _against_torch(measured, full, "rss_mb", "rss_mb")),
        "cold_start_vs_import_torch": over_rounds(
            lambda measured: _against_torch(measured, full, "first_step_s", "import_s")
        ),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=[model.name for model in MODELS])
    parser.add_argument("--plot", type=Path, help="also draw the full column into this file")
    return parser.parse_args()


def _rounds(models: list[Model], count: int) -> tuple[list[dict[Key, Figures]], dict[Key, str]]:
    """Measure; return the figures of each round, and why the rows that are missing are missing."""
    cases = [(model, mode, engine) for model in models for mode in MODES for engine in ENGINES if engine.has(mode)]
    reasons: dict[Key, str] = {}
    folder = os.environ.get("FLEET_MODELS")
    if not folder:
        why = "FLEET_MODELS is not set: let it name the folder that holds mlperf_tiny/."
        return [], {(model.name, mode, engine.name): why for model, mode, engine in cases}
    directory = Path(folder) / "mlperf_tiny"
    finetune_engines.CACHE.mkdir(parents=True, exist_ok=True)
    for model in models:
        export(directory, model, finetune_engines.network_of(model))
    commands: dict[Key, list[str]] = {}
    for model, mode, engine in cases:
        key = (model.name, mode, engine.name)
        try:
            commands[key] = engine.prepare(directory, model, mode)
        except finetune_engines.NotToBeHadError as error:
            reasons[key] = str(error)
    rounds: list[dict[Key, Figures]] = []
    try:
        for number in range(count):
            rounds.append({})
            _one_round(commands, number, rounds[-1], reasons)
    except KeyboardInterrupt:
        print("stopped; what follows are the rounds so far", file=sys.stderr)
    return rounds, reasons


def _one_round(
    commands: dict[Key, list[str]], number: int, measured: dict[Key, Figures], reasons: dict[Key, str]
) -> None:
    """Measure every case once; an engine that fails is left out of this round and the next ones."""
    for key in _rotated(commands, number):
        if key in reasons:
            continue
        _say(f"round {number + 1}: {', '.join(key)} ...")
        try:
            measured[key] = finetune_engines.run(commands[key])
        except finetune_engines.NotToBeHadError as error:
            reasons[key] = str(error)
    _say("")


def _rotated(commands: dict[Key, list[str]], number: int) -> list[Key]:
    """Give one round's order: case by case, all its engines, beginning with another one in each round."""
    order: list[Key] = []
    for case in dict.fromkeys(key[:2] for key in commands):
        engines = [key for key in commands if key[:2] == case]
        turn = number % len(engines)
        order += engines[turn:] + engines[:turn]
    return order


def _rows(rounds: list[dict[Key, Figures]], reasons: dict[Key, str]) -> list[Figures]:
    names, order = [model.name for model in MODELS], [engine.name for engine in ENGINES]
    keys = {key for measured in rounds for key in measured} | set(reasons)
    inorder = sorted(keys, key=lambda key: (names.index(key[0]), MODES.index(key[1]), order.index(key[2])))
    return [_row(rounds, key, reasons.get(key)) for key in inorder]


def _row(rounds: list[dict[Key, Figures]], key: Key, reason: str | None) -> Figures:
    """Medians over the rounds; `loss_off` compares the loss after three steps with the median of the peers'."""
    row: Figures = dict(zip(("model", "mode", "engine"), key, strict=True))
    if reason:
        row["reason"] = reason
    found = [measured[key] for measured in rounds if key in measured]
    if not found:
        return row
    for name, value in found[0].items():
        row[name] = statistics.median(figures[name] for figures in found) if isinstance(value, float) else value
    steps = [figures["step_ms"] for figures in found]
    ratios = [_against_best(measured, *key) for measured in rounds if key in measured]
    peers = [figures["loss_after"] for measured in rounds for figures in _peers_of(measured, *key[:2])]
    return row | {
        "step_ms_min": min(steps),
        "step_ms_max": max(steps),
        "rounds": len(found),
        "step_vs_best_peer": statistics.median(ratio for ratio in ratios if ratio) if any(ratios) else None,
        "loss_off": row["loss_after"] / statistics.median(peers) - 1 if peers else None,
    }


def _best_of_ours(rounds: list[dict[Key, Figures]], model: str, mode: str) -> str:
    """Of our rows with the frozen part inside the step the one with the lowest median: chosen once, not per round."""
    medians = {}
    for engine in ENGINES:
        key = (model, mode, engine.name)
        found = [measured[key]["step_ms"] for measured in rounds if key in measured]
        if engine.ours and engine.name != OURS and found:
            medians[engine.name] = statistics.median(found)
    return min(medians, key=medians.__getitem__, default="")


def _against_best(measured: dict[Key, Figures], model: str, mode: str, engine: str) -> float | None:
    """Our step over that of the quickest peer, both of this round."""
    mine = measured.get((model, mode, engine))
    quickest = min((figures["step_ms"] for figures in _peers_of(measured, model, mode)), default=None)
    return mine["step_ms"] / quickest if mine and quickest else None


def _peers_of(measured: dict[Key, Figures], model: str, mode: str) -> list[Figures]:
    """Give the figures of this round's peers in one case."""
    return [measured[model, mode, peer.name] for peer in PEERS if (model, mode, peer.name) in measured]


def _against_torch(measured: dict[Key, Figures], mine: Key, ours: str, theirs: str) -> float | None:
    """One of our figures over the lower one of PyTorch's two layouts, in the same mode and round."""
    layouts = [measured.get((*mine[:2], name)) for name in TORCH]
    lowest = min((figures[theirs] for figures in layouts if figures), default=None)
    return measured[mine][ours] / lowest if mine in measured and lowest else None


def _print_table(result: Figures) -> None:
    print(f"{result['machine']}, {result['date']}")
    print(
        f"{'':9}{'':9}{'':36}{'step ms [min .. max]':>24}{'x best peer':>12}{'peak MB':>9}{'loss after 3, off by':>22}"
    )
    for row in result["rows"]:
        name = f"{row['model']:9}{row['mode']:9}{row['engine']:36}"
        if "step_ms" not in row:
            print(f"{name}  {row['reason']}")
            continue
        step = f"{row['step_ms']:.2f} [{row['step_ms_min']:.2f} .. {row['step_ms_max']:.2f}]"
        ratio = f"{row['step_vs_best_peer']:.2f}" if row["step_vs_best_peer"] else "-"
        off = "-" if row["loss_off"] is None else f"{row['loss_off']:.2%}"
        print(f"{name}{step:>24}{ratio:>12}{row['rss_mb']:9.0f}{row['loss_after']:14.4f}{off:>8}")
    for kernels in dict.fromkeys(row["kernels"] for row in result["rows"] if "kernels" in row):
        print(f"our kernels: {kernels}")
    for name, value in result["targets"].items():
        print(f"{name:40} {'not measured' if value is None else format(value, '.3g')}")


def _say(text: str) -> None:
    """Show progress on a terminal's one line; nothing where nobody looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
