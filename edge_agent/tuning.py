"""What `edge-agent finetune` does: one model, one owner's data, on this machine alone, no fleet.

    DATA ─▶ windows ─▶ frozen part ─▶ features ─▶ fine-tune, epoch by epoch ─▶ the file, patched in place ─▶ OUT
                                          └─▶ a rate, where none is given: the best of a few on a part of them

An int8 model trains in the very integers that its file stores, so the tuned file is as large as the old one and runs
wherever that one ran. What is reported of OUT is measured on the bytes that were written, by our own kernels and by
the model runtime where one is installed, on windows that neither trained nor chose the rate.

Imports NumPy and the engine: for commands, never for the agent.
"""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edge_agent import datafile, flash, modelfile, screen
from edge_agent.screen import Epoch, Screen
from engine import frozen, train
from engine.models import interpreter, scheme
from engine.models.graph import ModelError
from engine.models.inspect import inspect
from engine.program import memory_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_agent.datafile import Part
    from edge_agent.modelfile import ModelFile
    from engine.models.graph import Graph
    from engine.models.scheme import Suffix

RATES: Final = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # what is tried where the owner names no rate
CHOOSING_MAX: Final = 1024  # so many windows choose it at most
CHOOSING_RATE: Final = 0.25  # the share of them that measures
SETTLING: Final = (3, 0.2)  # the last third of the epochs takes a fifth of the rate: stochastic rounding settles


class TuningError(ValueError):
    """No tuned model comes of this; the sentence says why, and how to mend it."""


@dataclass(frozen=True)
class Wish:
    """What the owner asks for. `rate` None: choose one. `overwrite`: OUT may be MODEL itself."""

    model: Path
    data: Path
    out: Path
    train: str
    epochs: int
    batch_size: int
    rate: float | None
    seed: int
    overwrite: bool


class Accuracy(NamedTuple):
    """The share of right answers on the windows that measure; `runtime` is None where no runtime runs the file."""

    own: float
    runtime: float | None


@dataclass(frozen=True)
class Report:
    """Every figure that `edge-agent finetune` prints; times in seconds."""

    model: str
    out: str
    plot: str | None
    lane: str
    train: str
    layers: int
    params: int
    windows: int
    test_windows: int
    rate: float
    rates_tried: dict[str, float]  # rate → accuracy on the training windows set aside for choosing
    epochs: list[Epoch]
    before: Accuracy
    after: Accuracy
    runtime: str | None
    file_bytes: int
    params_changed: int
    saturated_count: int  # how often an int8 weight wanted to leave [-127, 127]
    saturated_rate: float  # the share of trained int8 weights that stand at +-127 now
    channels: int  # of the layers that train
    channels_dead: int
    arena_planned_bytes: int
    arena_bytes: int
    peak_rss_bytes: int
    frozen_s: float
    training_s: float
    steps: int


class _Model(NamedTuple):
    """A model file and what of it trains."""

    file: ModelFile
    suffix: Suffix

    @property
    def graph(self) -> Graph:
        return self.file.graph


class _Set(NamedTuple):
    """Windows, what the frozen part makes of them, and their labels."""

    windows: NDArray[Any]
    features: NDArray[Any]
    labels: NDArray[np.int32]


def finetune(wish: Wish, shown: Screen) -> Report:
    """Do what the owner asks for and write OUT.

    Raises TuningError, DataFileError, ModelError and TrainingError, each one sentence, and OSError. Nothing is written
    then.
    """
    _check_out(wish)
    file = modelfile.read(wish.model)
    model = _Model(file, scheme.resolve(file.graph, wish.train))
    data = datafile.read(wish.data)
    began = time.monotonic()
    shown.begin("features", 2)
    mine = _through_frozen(model, data.mine, wish.data)
    shown.reach(1)
    test = _through_frozen(model, data.test, wish.data)
    shown.reach(2)
    frozen_s = time.monotonic() - began
    rate, tried = (wish.rate, {}) if wish.rate else _choose_rate(model, mine, wish, shown)
    tuned = _train(model, mine, test, replace(wish, rate=rate), shown)
    peak_rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before a plot or a runtime adds to it
    shown.begin("measuring", 2)
    written = model.file.patched(tuned.constants)
    before = _measured(model.file, test)
    shown.reach(1)
    after = _measured(written, test)
    shown.end()
    flash.write_file(wish.out, written.data)
    plot = wish.out.with_suffix(".png")
    title = f"{wish.model.name}, {wish.train}, rate {rate:g}"
    has_plot = screen.plot(plot, tuned.epochs, title)
    return _report(
        wish, model, tuned, written, plot=str(plot) if has_plot else None, windows=len(mine.labels),
        test_windows=len(test.labels), rate=rate, rates_tried=tried, before=before, after=after,
        frozen_s=frozen_s, peak_rss_bytes=peak_rss_bytes,
    )  # fmt: skip


def as_tree(report: Report) -> dict[str, Any]:
    """One object for --json."""
    named = {"before": report.before._asdict(), "after": report.after._asdict()}
    return asdict(report) | named | {"epochs": [epoch._asdict() for epoch in report.epochs]}


def lines(report: Report) -> list[str]:
    """The report for a terminal."""
    drawn = screen.table(
        ("epoch", "loss", "accuracy", " "),
        [
            (str(at), "" if loss is None else f"{loss:.3f}", f"{accuracy:.3f}", screen.bar(accuracy))
            for at, loss, accuracy in report.epochs
        ],
    )
    runtime = "no model runtime here runs the file"
    if report.before.runtime is not None and report.after.runtime is not None:
        runtime = f"{report.before.runtime:.3f} -> {report.after.runtime:.3f} by {report.runtime}"
    arena = f"an arena of {report.arena_bytes} bytes, planned {report.arena_planned_bytes}"
    steps = f"{report.steps} steps {report.training_s:.1f} s, {1000.0 * report.training_s / report.steps:.1f} ms each"
    ends = f"{report.saturated_rate:.1%} stand at +-127, {report.saturated_count} times one wanted beyond"
    return [
        f"{report.train} of {report.model}: {report.params} params in {report.layers} layers, {report.lane}",
        f"{report.windows} windows train at rate {report.rate:g}, {report.test_windows} others measure",
        *drawn,
        f"accuracy   {report.before.own:.3f} -> {report.after.own:.3f} by our kernels, {runtime}",
        f"memory     {arena}; {report.peak_rss_bytes / 1e6:.0f} MB resident at most",
        f"time       features {report.frozen_s:.1f} s; {steps}",
        f"weights    {report.params_changed} of {report.params} changed; {ends}",
        f"channels   {report.channels_dead} of {report.channels} are dead and do not train",
        f"wrote      {report.out}, {report.file_bytes} bytes" + (f"; {report.plot}" if report.plot else ""),
    ]


class _Tuned(NamedTuple):
    constants: dict[int, NDArray[Any]]
    params: NDArray[Any]
    epochs: list[Epoch]
    saturated: int
    memory_bytes: int
    training_s: float
    steps: int


def _check_out(wish: Wish) -> None:
    if wish.out.exists() and wish.out.samefile(wish.model) and not wish.overwrite:
        raise TuningError(f"{wish.out} is the model itself: name another file with --out, or say --overwrite")
    if not wish.out.parent.is_dir():
        raise TuningError(f"{wish.out.parent} is not a folder: make it, or name another --out")


def _through_frozen(model: _Model, part: Part, path: Path) -> _Set:
    entry = model.graph.tensors[model.graph.inputs[0]]
    windows = datafile.fitted(part.windows, entry.dtype)
    if windows.shape[1:] != entry.shape[1:]:
        raise TuningError(f"a window in {path} is {list(windows.shape[1:])}; the model takes {list(entry.shape[1:])}")
    return _Set(windows, frozen.features(model.file.data, model.graph, model.suffix, windows), part.labels)


def _choose_rate(model: _Model, mine: _Set, wish: Wish, shown: Screen) -> tuple[float, dict[str, float]]:
    """Train with each of RATES on some of the training windows, measure on others; of equals take the lowest loss."""
    order = np.random.default_rng(wish.seed).permutation(len(mine.labels))[:CHOOSING_MAX]
    measures, trains = np.split(order, [max(1, round(CHOOSING_RATE * len(order)))])
    if not len(trains):
        raise TuningError(f"{wish.data} has too few windows to choose a rate with: add windows, or name a --rate")
    inner, outer = (_Set(mine.windows, mine.features[rows], mine.labels[rows]) for rows in (trains, measures))
    shown.begin("choosing a rate", len(RATES))
    found: list[tuple[int, float, float]] = []
    for done, rate in enumerate(RATES, 1):
        try:
            graph = model.graph
            for epoch in range(wish.epochs):
                graph = train.with_constants(graph, _epoch(model, graph, inner, wish, rate=rate, epoch=epoch).constants)
            score = train.evaluate(graph, model.suffix, outer.features, outer.labels)
            found.append((score.correct, -score.loss, rate))
        except train.TrainingError:  # too large a rate diverges; labels that do not fit make every rate fail
            if done == len(RATES) and not found:
                raise
        shown.reach(done)
    shown.end()
    return max(found)[2], {f"{rate:g}": correct / len(outer.labels) for correct, _, rate in found}


def _train(model: _Model, mine: _Set, test: _Set, wish: Wish, shown: Screen) -> _Tuned:
    """Train epoch by epoch, and measure after each."""
    assert wish.rate is not None, "the owner names a rate, or one is chosen"
    graph, constants = model.graph, {}
    score = train.evaluate(graph, model.suffix, test.features, test.labels)
    epochs, saturated, training_s = [Epoch(0, None, score.correct / score.count)], 0, 0.0
    steps = -(-len(mine.labels) // wish.batch_size)
    for epoch in range(wish.epochs):
        shown.begin(f"epoch {epoch + 1} of {wish.epochs}", steps)
        began = time.monotonic()
        tuned = _epoch(model, graph, mine, wish, rate=wish.rate, epoch=epoch, shown=shown)
        training_s += time.monotonic() - began
        constants = tuned.constants
        graph = train.with_constants(graph, constants)
        score = train.evaluate(graph, model.suffix, test.features, test.labels)
        epochs.append(Epoch(epoch + 1, tuned.losses[0], score.correct / score.count))
        saturated += tuned.saturated
    shown.end()
    return _Tuned(constants, tuned.params, epochs, saturated, tuned.memory_bytes, training_s, steps * wish.epochs)


def _epoch(
    model: _Model, graph: Graph, part: _Set, wish: Wish, *, rate: float, epoch: int, shown: Screen | None = None
) -> train.Tuned:
    """One epoch from `graph` on; its shuffle and its rounding come from the owner's seed and the epoch's number."""
    parts, factor = SETTLING
    settles = epoch >= wish.epochs - wish.epochs // parts
    seed = train.mix_seed(wish.seed, "finetune", epoch)
    recipe = train.Recipe(1, wish.batch_size, rate * (factor if settles else 1.0), 0.0, seed)
    tell = None if shown is None else lambda progress: shown.reach(progress.steps_done)
    return train.fine_tune(graph, model.suffix, part.features, part.labels, recipe, progress=tell)


def _measured(file: ModelFile, test: _Set) -> Accuracy:
    """Run the file over the windows that measure: with our kernels, and with the model runtime if there is one."""
    own = frozen.predict(file.data, file.graph, test.windows)
    try:
        answers = interpreter.open_model(file.data, fast=True)(test.windows).argmax(axis=1)
    except ModelError:
        return Accuracy(_share(own == test.labels), None)
    return Accuracy(_share(own == test.labels), _share(answers == test.labels))


def _share(right: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(right)) / len(right)


def _report(wish: Wish, model: _Model, tuned: _Tuned, written: ModelFile, **more: Any) -> Report:
    facts = inspect(written.graph, wish.batch_size)
    trained = {layer.operator for layer in model.suffix.layers}
    told = [layer for layer in facts.layers if layer.operator in trained]
    stored = [tuned.constants[layer.weights] for layer in model.suffix.layers if layer.channels is not None]
    ends = [int(np.count_nonzero(np.abs(array.astype(np.int16)) == 127)) for array in stored if array.dtype == np.int8]
    sizes = sum(array.size for array in stored if array.dtype == np.int8)
    batch = min(wish.batch_size, more["windows"])
    before = scheme.params_of(model.graph, model.suffix)
    return Report(
        model=wish.model.name, out=str(wish.out), lane=model.suffix.lane, train=wish.train,
        layers=len(model.suffix.layers), params=model.suffix.num_params, epochs=tuned.epochs,
        runtime=interpreter.runtime_name() if more["after"].runtime is not None else None,
        file_bytes=len(written.data), params_changed=int(np.count_nonzero(before != tuned.params)),
        saturated_count=tuned.saturated, saturated_rate=sum(ends) / sizes if sizes else 0.0,
        channels=sum(layer.num_channels for layer in told), channels_dead=sum(layer.num_dead for layer in told),
        arena_planned_bytes=memory_of(model.graph, model.suffix, batch), arena_bytes=tuned.memory_bytes,
        training_s=tuned.training_s, steps=tuned.steps, **more,
    )  # fmt: skip
