"""What aggregation costs: each rule beside Flower's strategies, NumPy and a bare copy, on the same arrays in one run.

    make bench-aggregate                    tables
    make bench-aggregate ARGS=--json        one JSON object: {machine, date, rows, targets}
    ARGS="--only dense"                     or sparse, or ingest: a part of it; what then is not measured is null

Dense: 100 updates of 1,000,000 parameters and 1,000 of 100,000, float32, one thread. Everybody takes a turn in each of
several passes, and the medians are compared: processor seconds of one call, and in a pass of its own the most memory
that numpy held beside input and result. Flower 1.41 runs in a process of its own and reads the same file
(`peers/flower_rules.py`). Sparse: 100 updates that carry 1 % of 1,000,000 parameters, as the coordinator gets them, in
the product's own rules; the mean with and without decoding. Ingest: `aggregate_ingest.py`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from benchmarks import aggregate_ingest
from benchmarks.aggregate_rules import NUMPY, OURS
from benchmarks.aggregate_sparse import CASES as SPARSE
from benchmarks.demo import machine
from benchmarks.environments import ONE_THREAD, PEERS, NotToBeHadError, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Call = Callable[[], object]

SHAPES: Final = ((100, 1_000_000), (1_000, 100_000))
PASSES: Final = 3
PACKAGES: Final = ("flwr==1.41.0",)
PARTS: Final = ("dense", "sparse", "ingest")
_FIRST: Final = f"{SHAPES[0][0]}x{SHAPES[0][1]}"
TARGETS: Final = {  # name → ours and whose figure it is divided by, as (shape, rule, who)
    "median_100x1m_vs_numpy": ((_FIRST, "median", "hedgerow"), (_FIRST, "median", "numpy")),
    "trimmed_100x1m_vs_numpy_sort": ((_FIRST, "trimmed mean", "hedgerow"), (_FIRST, "trimmed mean", "numpy")),
    "median_100x1m_vs_flower": ((_FIRST, "median", "hedgerow"), (_FIRST, "median", "flower")),
    "trimmed_100x1m_vs_flower": ((_FIRST, "trimmed mean", "hedgerow"), (_FIRST, "trimmed mean", "flower")),
    "krum_100x1m_vs_flower": ((_FIRST, "krum", "hedgerow"), (_FIRST, "krum", "flower")),
    "sparse_mean_100x1m_vs_flower": ((_FIRST, "mean, sparse 1 %", "hedgerow"), (_FIRST, "mean", "flower")),
}


class Flower:
    """The peer's process; without one every rule of it is unknown."""

    def __init__(self, rows_file: Path) -> None:
        self.rules: list[str] = []
        self.reason = ""
        self.numpy = ""
        self._process: subprocess.Popen[str] | None = None
        try:
            python = environment("faults-flower", PACKAGES)
        except NotToBeHadError as error:
            self.reason = str(error)
            return
        command = [python, str(PEERS / "flower_rules.py"), str(rows_file)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", **os.environ, **ONE_THREAD}
        self._process = subprocess.Popen(command, text=True, env=quiet, **streams)
        told = self._read()
        self.rules, self.numpy = told["rules"], told["numpy"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def ask(self, rule: str, *, trace: bool) -> float:
        """Seconds of one call, or with `trace` megabytes."""
        assert self._process is not None, "only rules that it named are asked of it"
        assert self._process.stdin is not None, "it was started with a pipe"
        self._process.stdin.write(json.dumps({"rule": rule, "trace": trace}) + "\n")
        self._process.stdin.flush()
        return float(next(iter(self._read().values())))

    def _read(self) -> dict[str, Any]:
        assert self._process is not None, "somebody must answer"
        assert self._process.stdout is not None, "it was started with a pipe"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def main() -> None:
    """Measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=PARTS, help="a part alone")
    arguments = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":  # read when numpy is loaded, so before this line
        again = [sys.executable, "-m", "benchmarks.aggregate", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | ONE_THREAD)  # noqa: S606 - the same program once more
    rows: list[dict[str, Any]] = []
    if arguments.only in (None, "dense"):
        for n, size in SHAPES:
            rows += dense(n, size)
    if arguments.only in (None, "sparse"):
        rows += [_told(row) for row in sparse()]
    ingest = [_told(row) for row in aggregate_ingest.measure()] if arguments.only in (None, "ingest") else []
    found = {
        "machine": machine(),
        "simd": simd(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "rows": [*rows, *ingest],
        "targets": targets(rows, ingest[0] if ingest else None),
    }
    print(json.dumps(found) if arguments.json else "\n".join(table(found)))


def simd() -> dict[str, Any]:
    """Which numpy this is, and how wide the vectors are that it found here."""
    found: Any = np.show_config(mode="dicts")
    return {"numpy": np.__version__, "simd": found["SIMD Extensions"].get("found", [])}


def dense(n: int, size: int) -> list[dict[str, Any]]:
    """Every rule of everybody over one array of n updates."""
    rows = np.random.default_rng(1).normal(size=(n, size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.npy"
        np.save(file, rows)
        with Flower(file) as flower:
            calls = dict(_calls(rows))
            # first of all the memory: it also makes every page and every kernel ready
            scratch = {key: max(0.0, traced(call) - 4e-6 * size) for key, call in calls.items()}
            scratch |= {(rule, "flower"): flower.ask(rule, trace=True) for rule in flower.rules}
            taken: dict[tuple[str, str], list[float]] = {key: [] for key in scratch}
            for _ in range(PASSES):
                for (rule, who), times in taken.items():
                    times.append(flower.ask(rule, trace=False) if who == "flower" else timed(calls[rule, who]))
            made = [
                {
                    "shape": f"{n}x{size}",
                    "rule": rule,
                    "who": who,
                    "cpu_s": statistics.median(seconds),
                    "scratch_mb": scratch[rule, who],
                }
                for (rule, who), seconds in taken.items()
            ]
            if flower.reason:
                made.append({"shape": f"{n}x{size}", "rule": "all", "who": "flower", "reason": flower.reason})
    return [_told(row) for row in made]


def sparse() -> Iterator[dict[str, Any]]:
    """The product's rules over what the coordinator gets."""
    for rule, call in SPARSE.items():
        scratch = traced(call)
        seconds = statistics.median(timed(call) for _ in range(2 * PASSES + 1))
        yield {"shape": _FIRST, "rule": rule, "who": "hedgerow", "cpu_s": seconds, "scratch_mb": scratch}


def timed(call: Call) -> float:
    """Processor seconds of one call; what it made is let go afterwards."""
    began = time.process_time()
    made = call()
    seconds = time.process_time() - began
    del made
    return seconds


def traced(call: Call) -> float:
    """The most megabytes that numpy and Python held during the call."""
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def targets(rows: list[dict[str, Any]], ingest: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of the target row; None for what was not measured."""
    seconds = {(row["shape"], row["rule"], row["who"]): row["cpu_s"] for row in rows if "cpu_s" in row}
    found: dict[str, Any] = {}
    for name, (ours, theirs) in TARGETS.items():
        known = ours in seconds and theirs in seconds
        found[name] = round(seconds[ours] / seconds[theirs], 4) if known else None
    # of the shape of the other targets: a thousand updates have a million inner products, 8 MB a matrix
    ours = [row for row in rows if (row["shape"], row["who"]) == (_FIRST, "hedgerow")]
    mine = [row["scratch_mb"] for row in ours if "sparse" not in row["rule"]]
    found["dense_scratch_mb"] = round(max(mine), 2) if mine else None
    found["ingest_cpu_bare_over_ours"] = ingest.get("bare_over_ours") if ingest else None
    return found


def table(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{found['machine']}, {found['date']}; numpy {found['simd']['numpy']}", ""]
    lines.append(f"{'shape':14} {'rule':32} {'who':10} {'CPU s':>8} {'scratch MB':>11}")
    for row in found["rows"]:
        if "cpu_s" in row:
            lines.append(
                f"{row['shape']:14} {row['rule']:32} {row['who']:10} {row['cpu_s']:8.4f} {row['scratch_mb']:11.1f}"
            )
        else:
            lines.append(", ".join(f"{key} {value}" for key, value in row.items()))
    lines.append("")
    return lines + [f"{name:34} {value}" for name, value in found["targets"].items()]


def _calls(rows: NDArray[np.float32]) -> Iterator[tuple[tuple[str, str], Call]]:
    for who, rules in (("hedgerow", OURS), ("numpy", NUMPY)):
        for rule, function in rules.items():
            yield (rule, who), lambda function=function: function(rows)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
