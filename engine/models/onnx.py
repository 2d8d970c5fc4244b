"""Reads an `.onnx` file into the same Graph as a `.tflite` one, and writes tuned constants back into it.

Taken are float models, models with QuantizeLinear and DequantizeLinear around their operators, and models of QLinear
operators. The graph is one for a single window, in the engine's layout [N, H, W, C] with TFLite's kinds of operators:
weights are transposed, uint8 numbers become int8, a batch normalisation behind a layer is folded into it (`onnx_build`
says how). So a window for an ONNX model of images [N, C, H, W] is given as [H, W, C], and one of rows [N, C, L] as
[1, L, C]. What the engine has no kind for becomes an operator 'ONNX_<op>' if the file states its output's shape.

Each constant knows its `origin` in the file; one that was computed from several (a folded batch normalisation) has
none, and cannot be written back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models import onnx_layers as layers
from engine.models import onnx_moves as moves
from engine.models import onnx_qlinear as qlinear
from engine.models import onnx_quantization as quantization
from engine.models.graph import ABSENT, ModelError
from engine.models.onnx_build import IMAGE, Constant, Value, Workbench
from engine.models.onnx_file import open_file, write_constant
from engine.models.soundness import check_written, replacement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engine.models.graph import Graph, Origin
    from engine.models.onnx_file import Declared, Node

HANDLERS: dict[str, layers.Handler] = {
    "Conv": layers.conv,
    "Gemm": layers.dense,
    "MatMul": layers.dense,
    "BatchNormalization": layers.batch_normalization,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), layers.arithmetic),
    **dict.fromkeys(("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu"), layers.activation),
    **dict.fromkeys(("Softmax", "LogSoftmax"), layers.softmax),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool"), moves.pool),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), moves.mean),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
    "Transpose": moves.transpose,
    "Concat": moves.concatenate,
    "Pad": moves.pad_node,
    **dict.fromkeys(("Identity", "Dropout", "Cast"), moves.same),
    "QuantizeLinear": quantization.quantize_linear,
    "DequantizeLinear": quantization.dequantize_linear,
    "QLinearConv": qlinear.qlinear_conv,
    **dict.fromkeys(("QLinearMatMul", "QGemm"), qlinear.qlinear_dense),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), qlinear.qlinear_arithmetic),
    **dict.fromkeys(("QLinearGlobalAveragePool", "QLinearAveragePool"), qlinear.qlinear_pool),
    "QLinearConcat": qlinear.qlinear_concat,
    **dict.fromkeys(("QLinearSigmoid", "QLinearSoftmax"), qlinear.qlinear_activation),
}
# What stands between a model's input and the first operator that shows whether it takes images.
_PASSED_BY = {"QuantizeLinear", "DequantizeLinear", "Add", "Sub", "Mul", "Div", "Identity", "Cast", "Relu", "Clip"}
_PASSED_BY_MAX = 16


def read(data: bytes) -> Graph:
    """Read an `.onnx` file (one file, opset 7 to 29).

    Needs the package `onnx`. Raises ModelError, naming node and operator, for anything that cannot be read.
    """
    file = open_file(data)
    bench = Workbench(file)
    inputs = tuple(_input(bench, declared) for declared in file.inputs)
    for node in file.nodes:
        if node.index in bench.done or moves.computed(bench, node):
            continue
        if not node.outputs or not node.outputs[0]:
            raise node.refusal("makes nothing; export the model again")
        HANDLERS.get(node.op, _unknown)(bench, node)
    return bench.finished(inputs)


def patch(data: bytes, graph: Graph, constants: Mapping[int, NDArray[Any]]) -> bytes:
    """Return the file with the constants of some tensors replaced, each in the form the file keeps it in.

    `graph` is `read(data)`; `constants` maps a tensor's index to an array of its shape and dtype. The nodes stay as
    they are. Raises ModelError for a tensor that is no constant of the file, an array that does not fit, NaN or
    infinity, and constants that the file uses for another tensor too.
    """
    before, file = read(data), open_file(data)
    if (before.operators, len(before.tensors)) != (graph.operators, len(graph.tensors)):
        raise ModelError("the graph was read from another file than the one to be patched; read this one")
    written: dict[str, bytes] = {}
    for index, values in constants.items():
        replacement(before, index, values)
        origin = before.tensors[index].origin
        if origin is None:
            raise ModelError(
                f"tensor {index} ({before.tensors[index].name!r}) is computed from several constants of the file; "
                "export the model with its batch normalisation folded"
            )
        stored = stored_form(origin, values)
        if written.setdefault(origin.name, stored.tobytes()) != stored.tobytes():
            raise ModelError(f"constant {origin.name!r} of the file was to be written twice; train another layer")
        write_constant(file.protos[origin.name], stored)
    patched: bytes = file.proto.SerializeToString(deterministic=True)
    check_written(before, read(patched), constants, {})
    return patched


def stored_form(origin: Origin, values: NDArray[Any]) -> NDArray[Any]:
    """Return a constant of the graph in the shape and dtype of the file: the way back along its origin."""
    places = np.arange(math.prod(origin.shape), dtype=np.int64).reshape(origin.shape)
    for move, numbers in origin.moves:
        places = places.reshape(numbers) if move == "reshape" else places.transpose(numbers)
    stored = np.empty(origin.shape, origin.dtype)
    if origin.step is not None:
        values = values.astype(np.float32) * origin.step
    elif origin.shift:
        values = values.astype(np.int16) + origin.shift
    stored.reshape(-1)[places.reshape(-1)] = values.reshape(-1).astype(origin.dtype)
    return stored


def _input(bench: Workbench, declared: Declared) -> int:
    """Make the tensor of a model's input, for one window; images are stored as [1, H, W, C]."""
    if declared.shape is None or declared.dtype not in {"float32", "int8", "uint8"}:
        raise ModelError(
            f"the model's input {declared.name!r} is {declared.dtype or 'no tensor'} without a shape or of a kind that "
            "cannot be read; export it as float32, int8 or uint8 with fixed sizes"
        )
    shape = (1, *declared.shape[1:])
    if len(shape) < 2 or declared.shape[0] not in {0, 1} or 0 in shape:
        raise ModelError(
            f"the model's input {declared.name!r} has the shape {declared.shape[:9]} (0: open); export it with one "
            "window, or an open number of them, and every other size fixed"
        )
    order = IMAGE[len(shape)] if _takes_images(bench, declared.name, len(shape)) else tuple(range(len(shape)))
    is_real = declared.dtype == "float32"
    made = Value(ABSENT, shape, order, is_real)
    tensor = bench.add(declared.name, made.stored_shape, None, "float32" if is_real else "int8")
    bench.values[declared.name] = Value(tensor, shape, order, is_real)
    return tensor


def _takes_images(bench: Workbench, name: str, rank: int) -> bool:
    """Whether an input of this rank is [N, C, ...]; an exporter that has it as [N, ..., C] transposes it first."""
    for _ in range(_PASSED_BY_MAX):
        users = bench.users(name)
        if not users or users[0].op not in _PASSED_BY or not users[0].outputs:
            break
        name = users[0].outputs[0]
    ops = {user.op for user in bench.users(name)}
    if "Transpose" in ops or rank not in IMAGE:
        return False
    return rank == 4 or any("Conv" in op or "Pool" in op or op == "BatchNormalization" for op in ops)


def _unknown(bench: Workbench, node: Node) -> None:
    """Keep an operator that the engine has no kind for, if the file states the shape of what it makes."""
    inputs = []
    for position, name in enumerate(node.inputs):
        known = bench.known(node, position) if name else None
        if isinstance(known, Constant):
            inputs.append(bench.add_constant(known))
        else:
            inputs.append(known.tensor if known else ABSENT)
    outputs = []
    for name in filter(None, node.outputs):
        declared = bench.file.declared.get(name)
        if declared is None or not declared.shape or 0 in declared.shape[1:] or declared.shape[0] > 1:
            raise node.refusal("is an operator that cannot be read; train a model without it")
        shape = (1, *declared.shape[1:])
        made = Value(ABSENT, shape, IMAGE[4] if len(shape) == 4 else tuple(range(len(shape))), is_real=True)
        tensor = bench.add(name, made.stored_shape, None, declared.dtype or "float32")
        bench.values[name] = Value(tensor, made.shape, made.order, is_real=True)
        outputs.append(tensor)
    bench.emit(f"ONNX_{node.op[:64]}", tuple(inputs), tuple(outputs))
