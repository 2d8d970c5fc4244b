"""What an update costs elsewhere: bounds and formulas, and processes of peers that code it when asked.

    bound          log2 C(n, k) + k bits: any k of n indices, and a sign for each, if all were equally likely
    Golomb-Rice    one parameter for the whole vector, the best one; a sign each; one magnitude, 4 bytes
    STC's formula  what Sattler et al. 2019 count (felisat/federated-learning, compression_utils.py) and do not write:
                   b* + 1 / (1 - (1 - p)^(2^b*)) bits an index, p = k / n; a sign each; one magnitude

The others run in environments of their own (`benchmarks/peers`), one process each, and are asked for one update at a
time, so that their times and ours are taken in turn.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.environments import ONE_THREAD, PEERS, ROOT, NotToBeHadError, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RICE_PARAMETER_MAX: Final = 30
MAGNITUDE_BYTES: Final = 4
GOLDEN: Final = (1.0 + math.sqrt(5.0)) / 2.0


@dataclass(frozen=True)
class Peer:
    """A script of `benchmarks/peers` with its packages, and the coders that it knows."""

    script: str
    environment: str
    packages: tuple[str, ...]
    coders: tuple[str, ...]


ALL: Final = (
    Peer(
        "compressors.py", "codec", ("zstandard==0.25.0", "pcodec==1.1.0", "constriction==0.5.0", "numpy"),
        ("raw", "zstd-3", "zstd-19", "pcodec", "gaps zstd-19, 1 bit", "pcodec, 1 bit", "constriction, 1 bit"),
    ),
    Peer("flower_wire.py", "codec-flower", ("flwr==1.41.0",), ("Flower, dense", "Flower, pairs")),
    Peer("fedn_wire.py", "codec-fedn", ("fedn==0.33.0",), ("FEDn, dense", "FEDn, pairs")),
)  # fmt: skip


def bound_bits(size: int, count: int) -> float:
    """log2 C(size, count) + count."""
    chosen = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return chosen / math.log(2.0) + count


def rice_bytes(indices: NDArray[np.uint32]) -> int:
    """The exact length of the plain Golomb-Rice message: gaps, signs, magnitude."""
    gaps = np.diff(indices.astype(np.int64), prepend=-1) - 1
    bits = min(int((gaps >> low).sum()) + len(gaps) * (1 + low) for low in range(RICE_PARAMETER_MAX + 1))
    return -(-bits // 8) + -(-len(gaps) // 8) + MAGNITUDE_BYTES


def stc_index_bits(rate: float) -> float:
    """What STC counts for one index where a part `rate` of all is sent: 8.108 bits at 0.01."""
    low = 1 + math.floor(math.log2(math.log(GOLDEN - 1.0) / math.log(1.0 - rate)))
    return low + 1.0 / (1.0 - (1.0 - rate) ** (2**low))


def stc_bytes(size: int, count: int) -> float:
    """The length that STC counts for a whole message."""
    return count * (stc_index_bits(count / size) + 1.0) / 8.0 + MAGNITUDE_BYTES


class Process:
    """A peer that answers: bytes, and processor ms of encoding and decoding, for one coder and update at a time."""

    def __init__(self, peer: Peer, updates: Path) -> None:
        """Start it. `updates` is the file that benchmarks/peers/update_server.py describes."""
        self._name = peer.script
        python = environment(peer.environment, peer.packages)
        self._process = subprocess.Popen(
            [python, str(PEERS / peer.script), str(updates)],
            cwd=ROOT, env=os.environ | ONE_THREAD, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, coder: str, update: int) -> dict[str, float]:
        """Code one update once. Raises NotToBeHadError with the last line that the process wrote if it ended."""
        assert self._process.stdin is not None, "opened as a pipe"
        assert self._process.stdout is not None, "opened as a pipe"
        assert self._process.stderr is not None, "opened as a pipe"
        try:
            self._process.stdin.write(json.dumps({"coder": coder, "update": update}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = (self._process.stderr.read().strip().splitlines() or ["no message"])[-1]
            raise NotToBeHadError(f"{self._name} ended: {last[:300]}")
        found: dict[str, float] = json.loads(line)
        return found

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


def start(updates: Path) -> tuple[dict[str, Process], dict[str, str]]:
    """Give each coder its process; and, for those that cannot take part, the reason."""
    processes: dict[str, Process] = {}
    reasons: dict[str, str] = {}
    for peer in ALL:
        try:
            process = Process(peer, updates)
        except NotToBeHadError as error:
            reasons |= dict.fromkeys(peer.coders, str(error))
        else:
            processes |= dict.fromkeys(peer.coders, process)
    return processes, reasons


def write_updates(path: Path, updates: Sequence[tuple[NDArray[np.uint32], Any, Sequence[tuple[int, int]]]]) -> None:
    """Write (indices, real values, shapes) for the processes to read."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, (indices, values, shapes) in enumerate(updates):
        arrays[f"i{number}"] = np.ascontiguousarray(indices, np.uint32)
        arrays[f"v{number}"] = np.ascontiguousarray(values, np.float32)
        arrays[f"s{number}"] = np.array(shapes, np.int64)
    np.savez(path, **arrays)
