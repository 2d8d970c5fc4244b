"""What `edge-agent inspect` and `edge-agent bench` do: what a model is made of, and how fast this machine trains it.

Both run nothing but our own kernels, on made-up windows and labels, with a rate so small that no weight moves. A time
is the median of a few runs, of one thread's processor time, so that a busy machine counts less.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edge_agent import modelfile, screen, standard
from engine.kernels._jit import kernels_in_use
from engine.models import scheme
from engine.models.graph import ModelError
from engine.models.inspect import inspect
from engine.program import Runner, Training, memory_of
from engine.recording import Descent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_agent.screen import Screen
    from engine.models.graph import Graph
    from engine.models.inspect import CutFacts, LayerFacts, ModelFacts
    from engine.models.scheme import Suffix

RUNS: Final = 5
RATE: Final = 1e-12
MODES: Final = ("last-1", "blocks-2", "full")


class Times(NamedTuple):
    """Milliseconds, for one batch: the frozen part, and one step of training behind it."""

    frozen_ms: float
    step_ms: float


@dataclass(frozen=True)
class Inspection:
    """A model in numbers; `times` are those of `facts.cuts`, None where our kernels cannot run or train it."""

    model: str
    facts: ModelFacts
    times: list[Times | None]
    kernels: str


@dataclass(frozen=True)
class Pace:
    """How fast one part of a model trains: `cached` with the features already there, as from a second epoch on."""

    train: str
    params: int
    arena_bytes: int
    frozen_ms: float
    step_ms: float
    images_per_s: float
    images_per_s_cached: float


@dataclass(frozen=True)
class Bench:
    """What `edge-agent bench` tells."""

    model: str
    batch: int
    kernels: str
    paces: list[Pace]


def look_at(path: Path, batch: int, shown: Screen) -> Inspection:
    """Tell the model file in numbers, and time each of its cuts. Raises ModelError and OSError."""
    graph = modelfile.read(path).graph
    facts = inspect(graph, batch, memory_of)
    times: list[Times | None] = []
    shown.begin("timing the cuts", len(facts.cuts))
    for cut in facts.cuts:
        times.append(None if cut.refusal else _time(graph, scheme.resolve(graph, cut.train), batch))
        shown.reach(len(times))
    shown.end()
    return Inspection(path.name, facts, times, _kernels())


def pace(path: Path | None, batch: int, shown: Screen) -> Bench:
    """Time the training of the model file, or of a ResNet-8 with made-up weights. Raises ModelError and OSError."""
    graph = standard.resnet8() if path is None else modelfile.read(path).graph
    paces = []
    shown.begin("training", len(MODES))
    for train in MODES:
        suffix = scheme.resolve(graph, train)
        times = _time(graph, suffix, batch)
        if times is None:
            raise ModelError("operators before the part that trains are not ones that our kernels know")
        frozen_ms, step_ms = times
        cached = 1000.0 * batch / step_ms
        whole = 1000.0 * batch / (frozen_ms + step_ms)
        arena_bytes = memory_of(graph, suffix, batch)
        paces.append(Pace(train, suffix.num_params, arena_bytes, frozen_ms, step_ms, whole, cached))
        shown.reach(len(paces))
    shown.end()
    return Bench("ResNet-8 of MLPerf Tiny, made-up weights" if path is None else path.name, batch, _kernels(), paces)


def bench_lines(bench: Bench) -> list[str]:
    """The bench for a terminal."""
    fastest = max(pace.images_per_s_cached for pace in bench.paces)
    rows = [
        (
            pace.train, str(pace.params), f"{pace.arena_bytes / 1000:.0f}", f"{pace.frozen_ms:.2f}",
            f"{pace.step_ms:.2f}", f"{pace.images_per_s:.0f}", f"{pace.images_per_s_cached:.0f}",
            screen.bar(pace.images_per_s_cached / fastest, 12),
        )
        for pace in bench.paces
    ]  # fmt: skip
    head = ("train ", "params", "arena kB", "frozen ms", "step ms", "windows/s", "features kept", " ")
    return [
        f"{bench.model}, {bench.batch} windows a step; kernels: {bench.kernels}",
        *screen.table(head, rows),
        "features kept: from the second epoch on, when the frozen part need not run again",
    ]


def inspection_lines(found: Inspection) -> list[str]:
    """The inspection for a terminal."""
    facts = found.facts
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts.kinds.items())
    entries = [f"{dtype} {list(shape)}" for _, dtype, shape in (*facts.inputs, *facts.outputs)]
    return [
        f"{found.model}: {' -> '.join(entries)}; {facts.num_params} params, {facts.macs / 1e6:.2f} M MAC a window",
        f"operators: {kinds}",
        f"dead output channels: {facts.num_dead} of {facts.num_channels}; they never train",
        "",
        *_layer_lines(facts.layers),
        "",
        *_cut_lines(found),
    ]


def as_tree(told: Inspection | Bench) -> dict[str, Any]:
    """One object for --json."""
    return asdict(told)


def _layer_lines(layers: tuple[LayerFacts, ...]) -> list[str]:
    largest = max(layer.macs for layer in layers) or 1
    rows = [
        (
            str(layer.operator), layer.kind, "x".join(map(str, layer.weights)), str(layer.num_params),
            f"{layer.macs / 1e6:.3f}", _span(layer), _of(layer.num_dead, layer.num_channels),
            "" if layer.saturated_share is None else f"{layer.saturated_share:.1%}",
            screen.bar(layer.macs / largest, 10),
        )
        for layer in layers
    ]  # fmt: skip
    head = ("op", "layer ", "weights ", "params", "M MAC", "scales ", "dead", "at +-127", "MAC ")
    return screen.table(head, rows)


def _cut_lines(found: Inspection) -> list[str]:
    rows, refusals = [], []
    costs = [0.0 if times is None else times.step_ms for times in found.times]
    for cut, times, cost in zip(found.facts.cuts, found.times, costs, strict=True):
        if cut.refusal:
            refusals.append(f"{cut.train}: {cut.refusal}")
        rows.append((*_cut_cells(cut, times), screen.bar(cost / (max(costs) or 1.0), 10)))
    head = ("train ", "from op", "params", "features B", "arena kB", "frozen ms", "step ms", "step ")
    return [
        f"where it can be cut; times and arena for {found.facts.batch} windows; kernels: {found.kernels}",
        *screen.table(head, rows),
        *refusals,
    ]


def _cut_cells(cut: CutFacts, times: Times | None) -> tuple[str, ...]:
    arena = "-" if cut.memory_bytes is None else f"{cut.memory_bytes / 1000:.0f}"
    frozen_ms, step_ms = ("-", "-") if times is None else (f"{times.frozen_ms:.2f}", f"{times.step_ms:.2f}")
    params = "-" if cut.refusal else str(cut.num_params)
    return cut.train, str(cut.cut.operator), params, str(cut.cut.entering_bytes), arena, frozen_ms, step_ms


def _span(layer: LayerFacts) -> str:
    if layer.scale_min is None or layer.scale_max is None:
        return layer.dtype
    return f"{layer.scale_min:.1e} .. {layer.scale_max:.1e}"


def _of(count: int, whole: int) -> str:
    return f"{count}/{whole}" if count else "-"


def _kernels() -> str:
    told: Callable[[], str] = kernels_in_use
    return told()


def _time(graph: Graph, suffix: Suffix, batch: int) -> Times | None:
    """Time one batch through the frozen part, and one step; None where our kernels do not know an operator."""
    chance = np.random.default_rng(1)
    try:
        frozen_ms = 0.0
        if suffix.entering != graph.inputs[0]:
            runner = Runner(graph, suffix.entering, batch=batch)
            windows = _made_up(graph, graph.inputs[0], batch, chance)
            frozen_ms = _median_ms(lambda: runner(windows))
        training = Training(graph, suffix, Descent(RATE, 0.0), batch=batch, seed=1)
    except ModelError:
        return None
    features = _made_up(graph, suffix.entering, batch, chance)
    labels = chance.integers(0, training.classes, batch).astype(np.int32)
    chosen = np.arange(batch, dtype=np.int64)
    return Times(frozen_ms, _median_ms(lambda: training.step(features, labels, chosen)))


def _made_up(graph: Graph, tensor: int, batch: int, chance: np.random.Generator) -> NDArray[Any]:
    entry = graph.tensors[tensor]
    shape = (batch, *entry.shape[1:])
    if entry.dtype == "float32":
        return chance.random(shape, dtype=np.float32)
    return chance.integers(-128, 128, shape).astype(entry.dtype)


def _median_ms(run: Callable[[], Any]) -> float:
    run()  # the first finds the kernels
    times = []
    for _ in range(RUNS):
        began = time.thread_time()
        run()
        times.append(1000.0 * (time.thread_time() - began))
    return statistics.median(times)
