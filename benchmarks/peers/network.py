"""What every peer of the fine-tuning benchmark shares: the network to build, and how a step is measured.

A peer runs in an environment of its own and imports nothing of the project. `benchmarks/finetune.py` therefore writes
each model as one `.npz` file: a list of layers with names of tensors in and out, float32 weights in the file's order
([O, KH, KW, C], depthwise [1, KH, KW, C], dense [O, I]), one batch of inputs (NHWC) and its targets. A peer is a
script, `python PEER.py NETWORK.npz FIRST [VARIANT]`: it trains the layers from operator FIRST on, and prints one JSON
object.

The time of a step is processor time of all threads, the median of blocks; memory is the peak of the same process.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS_CHECKED = 3  # the loss is compared after so many steps
STEPS_OF_WARMING = 5
BLOCKS = 15
BLOCK_CPU_S = 0.04


@dataclass(frozen=True)
class Layer:
    """One operator: `pads` is (top, bottom, left, right); `inputs` and `output` are tensor numbers."""

    operator: int
    kind: str
    inputs: tuple[int, ...]
    output: int
    relu: bool
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    window: tuple[int, int]
    weights: Any  # float32, or None
    bias: Any


@dataclass(frozen=True)
class Network:
    """The whole: `classes` is 0 where the loss is the mean squared error, else the number of logits."""

    layers: tuple[Layer, ...]
    entering: int
    answer: int
    classes: int
    rate: float
    x: Any  # float32 [n, H, W, C] or [n, I]
    y: Any  # int32 [n], or float32 [n, O]


def save(path: Path, head: dict[str, Any], layers: list[dict[str, Any]], arrays: dict[str, Any]) -> None:
    """Write a network; `arrays` holds x, y and, per operator k, w<k> and b<k>."""
    text = json.dumps(head | {"layers": layers})
    np.savez(path, text=np.frombuffer(text.encode(), np.uint8), **arrays)


def load(path: str, first: int) -> Network:
    """Read what `save` wrote; the learning rate is that for training from operator `first` on."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    head = json.loads(arrays["text"].tobytes())
    layers = tuple(
        Layer(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()},
            weights=arrays.get(f"w{layer['operator']}"),
            bias=arrays.get(f"b{layer['operator']}"),
        )
        for layer in head.pop("layers")
    )
    rate = dict(head.pop("rates"))[first]
    return Network(rate=rate, layers=layers, x=arrays["x"], y=arrays["y"], **head)


def report(import_s: float, step: Callable[[], Any], **more: object) -> None:
    """Run `step`, which returns the loss before its update, and print what was measured as JSON."""
    losses = [float(step())]
    first_step_s = time.process_time()
    losses += [float(step()) for _ in range(STEPS_CHECKED + STEPS_OF_WARMING - 1)]
    step_ms = time_steps(step)
    print(
        json.dumps(
            {
                "step_ms": step_ms,
                "import_s": import_s,
                "first_step_s": first_step_s,
                "rss_mb": peak_rss_mb(),
                "loss_first": losses[0],
                "loss_after": losses[STEPS_CHECKED],
            }
            | more
        )
    )


def time_steps(step: Callable[[], Any]) -> float:
    """Processor milliseconds of one step: median over blocks of at least BLOCK_CPU_S."""
    import statistics  # not at the top: the first step's time counts what is imported before it

    began = time.process_time()
    step()
    per_block = max(1, round(BLOCK_CPU_S / max(time.process_time() - began, 1e-5)))
    blocks = []
    for _ in range(BLOCKS):
        began = time.process_time()
        for _ in range(per_block):
            step()
        blocks.append((time.process_time() - began) / per_block)
    return 1e3 * statistics.median(blocks)


def peak_rss_mb() -> float:
    """Peak resident memory of this process. VmHWM, since ru_maxrss would remember the parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
