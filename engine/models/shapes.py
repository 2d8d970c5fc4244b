"""What shape each operator makes of the shapes it takes.

A file says the shape of every tensor, and kernels believe what they are told. So `check_shapes` compares each
operator's output with what its inputs allow before a kernel runs: a damaged or hostile file is refused, and cannot
make one write outside its memory. All shapes are for a single sample, [1, height, width, channels].
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from engine.models.graph import ABSENT, ModelError

if TYPE_CHECKING:
    from engine.models.graph import Graph, Operator

SAME, VALID = 0, 1
WINDOWED = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")


def check_shapes(graph: Graph, operator: Operator) -> None:
    """Raise ModelError where the file's shape of the output is not what the operator makes of its inputs.

    The operator is one of `engine/models/gradients.py`'s kinds or a SOFTMAX; others are not looked at.
    """
    taken = [graph.tensors[index].shape for index in operator.inputs if index != ABSENT]
    made = graph.tensors[operator.outputs[0]].shape
    if made not in _possible(graph, operator, taken):
        name = f"operator {operator.index} ({operator.kind})"
        raise ModelError(f"{name} cannot make the shape {made} out of {taken[0]}; export the model again")


def _possible(graph: Graph, operator: Operator, taken: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    first, made = taken[0], graph.tensors[operator.outputs[0]].shape
    match operator.kind:
        case kind if kind in WINDOWED:
            return [_slid(graph, operator, first)] if len(first) == 4 else []
        case "FULLY_CONNECTED":
            outputs, inputs = taken[1]
            rows = prod(first) // inputs
            return (
                [made]
                if prod(first) == rows * inputs and made[-1:] == (outputs,) and prod(made) == rows * outputs
                else []
            )
        case "RESHAPE":
            return [made] if prod(made) == prod(first) else []
        case "MEAN":
            return [(first[0], first[3]), (first[0], 1, 1, first[3])] if len(first) == 4 else []
        case "PAD":
            widths = graph.tensors[operator.inputs[1]].data
            if widths is None or widths.shape != (len(first), 2):
                return []
            return [tuple(n + int(a) + int(b) for n, (a, b) in zip(first, widths.tolist(), strict=True))]
        case "CONCATENATION":
            same = all(shape[:-1] == first[:-1] for shape in taken)
            return [(*first[:-1], sum(shape[-1] for shape in taken))] if same else []
        case "MUL":
            return [max(taken, key=prod)]
        case "ADD" | "LOGISTIC" | "SOFTMAX" | "QUANTIZE" | "DEQUANTIZE":
            return [first]
        case _:
            return [made]


def _slid(graph: Graph, operator: Operator, entering: tuple[int, ...]) -> tuple[int, ...]:
    options, is_layer = operator.options, operator.kind.endswith("CONV_2D")
    weights = graph.tensors[operator.inputs[1]].shape if is_layer else ()
    channels = weights[0] if operator.kind == "CONV_2D" else entering[3]
    sizes = []
    for at, axis in enumerate(("height", "width")):
        window = weights[1 + at] if is_layer else int(options[f"filter_{axis}"])
        stride, dilation = int(options[f"stride_{axis}"]), int(options.get(f"dilation_{axis}", 1))
        if min(window, stride, dilation) < 1 or options["padding"] not in {SAME, VALID}:
            name = f"operator {operator.index} ({operator.kind})"
            raise ModelError(f"{name} has the options {dict(options)}; export the model again")
        size = entering[1 + at]
        reach = size if options["padding"] == SAME else size - (window - 1) * dilation
        sizes.append(-(-reach // stride))
    return entering[0], *sizes, channels
