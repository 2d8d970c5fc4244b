"""How a convolution or a pool moves over its input, in ONNX's words and in TFLite's.

ONNX states the padding of each side; TFLite knows SAME (as little as needed, the smaller half first) and VALID (none).
Any other padding becomes an operator PAD before the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.models.onnx_build import Constant, Value

if TYPE_CHECKING:
    from engine.models.onnx_build import Workbench
    from engine.models.onnx_file import Node

SAME, VALID = 0, 1
STEPS_MAX = 1 << 15  # of a kernel, stride, dilation or padding


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes along (height, width); `pads` are ((top, bottom), (left, right)), `sizes` those of the output."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    sizes: tuple[int, int]

    def options(self, padding: int) -> dict[str, int]:
        """Return the numbers of a convolution."""
        return {
            "padding": padding,
            "stride_width": self.strides[1],
            "stride_height": self.strides[0],
            "dilation_width": self.dilations[1],
            "dilation_height": self.dilations[0],
        }

    def pool_options(self, padding: int) -> dict[str, int]:
        """Return the numbers of a pool."""
        return {
            "padding": padding,
            "stride_width": self.strides[1],
            "stride_height": self.strides[0],
            "filter_width": self.kernel[1],
            "filter_height": self.kernel[0],
        }


def geometry(node: Node, given: Value, kernel: tuple[int, int]) -> Geometry:
    """Read a node's strides, dilations and padding for an image `given`; ModelError where its output would be empty."""
    _, height, width, _ = given.stored_shape
    rank = len(given.shape) - 2
    strides = _pair(node, "strides", rank)
    dilations = _pair(node, "dilations", rank)
    if not all(1 <= size <= STEPS_MAX for size in (*kernel, *strides, *dilations)):
        raise node.refusal("has a kernel, stride or dilation that is no small positive number; export it again")
    reach = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
    pads = _pads(node, rank, (height, width), reach, strides)
    pairs = zip((height, width), pads, reach, strides, strict=True)
    sizes = tuple(_count(node, size + sum(pad) - span, stride) for size, pad, span, stride in pairs)
    return Geometry(kernel, strides, dilations, pads, (sizes[0], sizes[1]))


def padded(bench: Workbench, given: Value, about: Geometry, *, lowest: bool = False) -> tuple[Value, int]:
    """Return the input and TFLite's padding; the input goes through a PAD where neither SAME nor VALID says it.

    `lowest` pads with the lowest number (for a maximum) rather than with zero.
    """
    if not any(map(any, about.pads)):
        return given, VALID
    _, height, width, _ = given.stored_shape
    reach = tuple((size - 1) * dilation + 1 for size, dilation in zip(about.kernel, about.dilations, strict=True))
    if about.pads == same_pads((height, width), reach, about.strides):
        return given, SAME
    return pad(bench, given, ((0, 0), *about.pads, (0, 0)), lowest=lowest), VALID


def pad(bench: Workbench, given: Value, pads: tuple[tuple[int, int], ...], *, lowest: bool = False) -> Value:
    """Return a value with `pads` (before, after) of zeros, or of the lowest number, on each stored axis."""
    tensor = bench.tensor(given)
    sizes = tuple(size + before + after for size, (before, after) in zip(tensor.shape, pads, strict=True))
    shape = list(given.shape)
    for axis, size in zip(given.order, sizes, strict=True):
        if axis >= 0:
            shape[axis] = size
    made = bench.add(f"{tensor.name} padded", sizes, bench.quantization(given))
    amounts = bench.add_numbers("pads", pads)
    is_lowest_zero = tensor.dtype == "int8" and len(tensor.zero_point) == 1 and tensor.zero_point[0] == -128
    if not lowest or is_lowest_zero or _is_never_negative(bench, given.tensor):
        bench.emit("PAD", (given.tensor, amounts), (made,))
    else:
        number = np.array([np.finfo(np.float32).min], np.float32)
        constant = Constant(number, "lowest", None)
        if tensor.dtype == "int8":
            constant = Constant(np.array([-128], np.int8), "lowest", None, bench.quantization(given))
        bench.emit("PADV2", (given.tensor, amounts, bench.add_constant(constant)), (made,))
    return replace(given, tensor=made, shape=tuple(shape))


def same_pads(
    sizes: tuple[int, int], reach: tuple[int, ...], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return TFLite's SAME padding: ((top, bottom), (left, right))."""
    halves = []
    for size, span, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        halves.append((total // 2, total - total // 2))
    return halves[0], halves[1]


def _pads(
    node: Node, rank: int, sizes: tuple[int, int], reach: tuple[int, ...], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    automatic = node.text("auto_pad", b"NOTSET")
    same = same_pads(sizes, reach, strides)
    if automatic == b"SAME_UPPER":
        return same
    if automatic == b"SAME_LOWER":
        return (same[0][1], same[0][0]), (same[1][1], same[1][0])
    numbers = node.integers("pads") or (0,) * (2 * rank)
    if automatic == b"VALID":
        numbers = (0,) * (2 * rank)
    if len(numbers) != 2 * rank or not all(0 <= number <= STEPS_MAX for number in numbers):
        raise node.refusal(f"has the pads {numbers[:8]}; export it with {2 * rank} small positive ones")
    sides = [(numbers[axis], numbers[axis + rank]) for axis in range(rank)]
    return (sides[0], sides[1]) if rank == 2 else ((0, 0), sides[0])


def _pair(node: Node, name: str, rank: int) -> tuple[int, int]:
    numbers = node.integers(name) or (1,) * rank
    if len(numbers) != rank:
        raise node.refusal(f"has {len(numbers)} {name} for an image of {rank} axes; export it again")
    return (numbers[0], numbers[1]) if rank == 2 else (1, numbers[0])


def _count(node: Node, room: int, stride: int) -> int:
    if room < 0:
        raise node.refusal("has a kernel larger than its input; export it again")
    if node.integer("ceil_mode", 0) and room % stride:
        raise node.refusal("rounds its size up (ceil_mode); export it with ceil_mode = 0")
    return room // stride + 1


def _is_never_negative(bench: Workbench, tensor: int) -> bool:
    """Whether the operator that made a tensor ends in a RELU, so that zero is as low as any number in it."""
    maker = bench.makers.get(tensor)
    return maker is not None and maker.activation in {"RELU", "RELU6"}
