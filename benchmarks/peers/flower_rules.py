"""Flower's own aggregation over arrays that another process made: one rule at a time, asked for on standard input.

    python flower_rules.py ROWS.npy        then lines {"rule": "median", "trace": false}

Answers each with {"cpu_s": ..., "scratch_mb": ...}: the processor time of the call, or with `trace` the most that numpy
held at once beside the input and the result. What is called is what Flower 1.41's strategies call once the replies are
there; records are made of the rows beforehand and do not count. "krum, legacy" is what `flwr.server.strategy` has.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy import aggregate as legacy
from flwr.serverapp.strategy import fedtrimmedavg, multikrum, strategy_utils

if TYPE_CHECKING:
    from collections.abc import Callable

DISHONEST_RATE = 0.2
LEGACY_MAX = 100  # it takes the norm of every difference: minutes for a thousand


def rules(rows: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What each strategy does."""
    n = len(rows)
    f = int(DISHONEST_RATE * n)
    layers = list(rows)
    replies = [
        RecordDict({"arrays": ArrayRecord([row]), "metrics": MetricRecord({"num-examples": 1.0})}) for row in layers
    ]

    def krum(chosen: int) -> Any:
        best = multikrum.select_multikrum(replies, f, chosen)
        return strategy_utils.aggregate_arrayrecords(best, "num-examples")

    known = {
        "mean": lambda: strategy_utils.aggregate_arrayrecords(replies, "num-examples"),
        "median": lambda: np.median(np.stack(layers), axis=0),
        "trimmed mean": lambda: fedtrimmedavg.trim_mean(np.stack(layers), DISHONEST_RATE),
        "krum": lambda: krum(1),
        "multi-krum": lambda: krum(n - f),
    }
    if n <= LEGACY_MAX:
        known["krum, legacy"] = lambda: legacy.aggregate_krum([([row], 1) for row in layers], f, 0)
    return known


def main() -> None:
    """Answer until the input ends."""
    rows = np.load(sys.argv[1], mmap_mode="r")
    known = rules(rows)
    print(json.dumps({"rules": list(known), "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        call = known[asked["rule"]]
        if asked["trace"]:
            tracemalloc.start()
            made = call()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            answer = {"scratch_mb": max(0.0, peak - 4 * rows.shape[1]) / 1e6}
        else:
            began = time.process_time()
            made = call()
            answer = {"cpu_s": time.process_time() - began}
        del made
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
