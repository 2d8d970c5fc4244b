"""Every coder on every sample, in turn: bytes, and processor time of one thread.

Ours are timed in this process, peers in theirs (`codec_peers.py`). A repetition asks each coder once for each sample,
beginning with another coder each time, so that what else the machine does strikes all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import codec_peers
from benchmarks.codec_peers import NotToBeHadError, bound_bits, rice_bytes, stc_bytes
from benchmarks.codec_runs import DEVICE
from benchmarks.postage import sealed_update_bytes
from engine.codec import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.codec_runs import Run, Sample
    from engine.codec.payload import Coding

REPETITIONS: Final = 5
BY_CONTEXT: Final = "ours, context, 1 bit"
ZSTD: Final = "zstd-19"


@dataclass(frozen=True)
class Ours:
    """One of our own modes; `value_bits` 0 sends whole units as they are, and is for int8 models."""

    coding: Coding
    value_bits: int

    @property
    def name(self) -> str:
        """As the rows call it."""
        bits = {0: "exact", 1: "1 bit"}.get(self.value_bits, f"{self.value_bits} bits")
        return f"ours, {self.coding}, {bits}"

    def can(self, sample: Sample) -> bool:
        """Whether the sample's lane has this mode."""
        return self.value_bits > 0 or sample.update.lane == "int8"

    def ask(self, sample: Sample) -> dict[str, float]:
        """Code a sample once, and read it back."""
        update = sample.update
        began = time.process_time_ns()
        coded = payload.encode(update, sample.shapes, value_bits=self.value_bits, coding=self.coding)
        between = time.process_time_ns()
        found = payload.decode(
            coded.payload, sample.shapes, lane=update.lane, k_max=len(update.indices), coding=self.coding
        )
        ended = time.process_time_ns()
        assert np.array_equal(found.indices, coded.sent.indices), "what is read is what was sent"
        assert np.array_equal(found.values, coded.sent.values), "what is read is what was sent"
        return {
            "bytes": len(coded.payload),
            "sealed": sealed_update_bytes(DEVICE, coded.payload),
            "encode_ms": (between - began) / 1e6,
            "decode_ms": (ended - between) / 1e6,
        }


OURS: Final = tuple(Ours(coding, bits) for coding in ("rice", "context") for bits in (1, 4, 8, 0))


def measure(runs: Sequence[Run], path: Path, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Give one row for each run and coder. `path` is where samples are written for the peers."""
    samples = [sample for run in runs for sample in run.samples]
    codec_peers.write_updates(path, [(s.update.indices, s.update.values.astype(np.float32), s.shapes) for s in samples])
    processes, reasons = codec_peers.start(path)
    found: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    askers: dict[str, Callable[[int], dict[str, float]]] = {}
    for mode in OURS:
        askers[mode.name] = lambda number, mode=mode: mode.ask(samples[number])
    for name, process in processes.items():
        askers[name] = lambda number, name=name, process=process: process.ask(name, number)
    able = {mode.name: mode.can for mode in OURS}
    for repetition in range(-1, REPETITIONS):  # the first one is thrown away: imports, caches
        tell(f"coding {len(samples)} updates, {repetition + 1} of {REPETITIONS}")
        for number, sample in enumerate(samples):
            for name in _turned(list(askers), number + repetition):
                if name in reasons or not able.get(name, lambda _: True)(sample):
                    continue
                try:
                    figures = askers[name](number)
                except NotToBeHadError as error:
                    reasons[name] = str(error)
                    continue
                if repetition >= 0:
                    found[number, name].append(figures)
    for process in set(processes.values()):
        process.end()
    return _rows(runs, found, reasons)


def _turned(names: list[str], by: int) -> list[str]:
    at = by % len(names)
    return names[at:] + names[:at]


def _rows(
    runs: Sequence[Run], found: dict[tuple[int, str], list[dict[str, float]]], reasons: dict[str, str]
) -> list[dict[str, Any]]:
    """One row for each run and coder, those that are formulas behind the others."""
    names = [*(mode.name for mode in OURS), *(name for peer in codec_peers.ALL for name in peer.coders)]
    rows, first = [], 0
    for run in runs:
        numbers = range(first, first + len(run.samples))
        first += len(run.samples)
        head = {"kind": "coder", "data": run.group.data, "spread": run.group.spread, "rate": run.group.rate}
        for name in names:
            medians = [_medians(found[number, name]) for number in numbers if (number, name) in found]
            if name in reasons:
                rows.append(head | {"coder": name, "reason": reasons[name]})
            elif medians:
                rows.append(head | {"coder": name} | _row(run.samples, medians))
        for name, length in (("Golomb-Rice, 1 bit", _rice), ("STC's formula, 1 bit", _stc)):
            rows.append(head | {"coder": name} | _row(run.samples, [{"bytes": length(s)} for s in run.samples]))
    return rows


def _medians(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in figures) for name in figures[0]}


def _row(samples: Sequence[Sample], figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over the samples; ratios of sums. `figures[i]` is about `samples[i]`."""
    total = sum(figure["bytes"] for figure in figures)
    sent = sum(figure.get("sealed", figure["bytes"]) for figure in figures)
    bound = sum(bound_bits(sample.update.size, len(sample.update.indices)) for sample in samples)
    row = {
        "updates": len(figures),
        "bytes": total / len(figures),
        "bits_per_nonzero": 8.0 * total / sum(len(sample.update.indices) for sample in samples),
        "over_bound": 8.0 * total / bound,
        "dense_over_bytes": 4.0 * sum(sample.update.size for sample in samples) / sent,
    }
    for name in ("encode_ms", "decode_ms"):
        if name in figures[0]:
            row[name] = statistics.mean(figure[name] for figure in figures)
    return row


def _rice(sample: Sample) -> float:
    return float(rice_bytes(sample.update.indices))


def _stc(sample: Sample) -> float:
    return stc_bytes(sample.update.size, len(sample.update.indices))
