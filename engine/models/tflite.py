"""Reads a `.tflite` file, cuts its frozen part off, and writes tuned constants back into it.

A `.tflite` file is a flatbuffer (`flatbuffer.py` takes the steps in it, each one checked). `read` makes the graph;
`patch` and `patch_scales` change numbers in place, so that the file keeps its size and every byte that is not meant,
and read the result again before they hand it out. Whatever the bytes, the answer is a graph, a file, or `ModelError`.

Field numbers are those of TensorFlow's `lite/schema/schema.fbs`, version 3.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.flatbuffer import File, Table, table_at
from engine.models.graph import FILE_BYTES_MAX, Graph, ModelError, Operator, Tensor
from engine.models.soundness import check_shape, check_written, checked, replacement, scale_replacement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from engine.models.graph import Content

IDENTIFIER = b"TFL3"
STRUCTURE_COST_MAX = 8 << 20  # MobileNet's 31 operators cost 0.2 M; all of it is read within two seconds

DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
    12: "uint64", 15: "uint32", 16: "uint16",
}  # fmt: skip
KINDS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 9: "FULLY_CONNECTED", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D", 14: "LOGISTIC", 16: "LSTM",
    17: "MAX_POOL_2D", 18: "MUL", 19: "RELU", 20: "RELU_N1_TO_1", 21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR",
    24: "RNN", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH", 27: "SVDF", 28: "TANH", 32: "CUSTOM", 34: "PAD", 36: "GATHER",
    37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 42: "DIV", 43: "SQUEEZE",
    45: "STRIDED_SLICE", 49: "SPLIT", 50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU", 55: "MAXIMUM", 57: "MINIMUM",
    60: "PADV2", 67: "TRANSPOSE_CONV", 70: "EXPAND_DIMS", 74: "SUM", 75: "SQRT", 76: "RSQRT", 77: "SHAPE",
    82: "REDUCE_MAX", 83: "PACK", 98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 114: "QUANTIZE", 117: "HARD_SWISH",
    150: "GELU",
}  # fmt: skip
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
# Per kind of operator: where the fused activation stands in its options, and the numbers: (name, field, struct
# letter, value when the field is absent).
ACTIVATION_FIELD = {
    "ADD": 0, "SUB": 0, "MUL": 0, "DIV": 0, "CONCATENATION": 1, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4,
    "FULLY_CONNECTED": 0, "AVERAGE_POOL_2D": 5, "MAX_POOL_2D": 5, "L2_POOL_2D": 5, "L2_NORMALIZATION": 0,
}  # fmt: skip
_POOL = (("padding", 0, "b", 0), ("stride_width", 1, "i", 0), ("stride_height", 2, "i", 0),
         ("filter_width", 3, "i", 0), ("filter_height", 4, "i", 0))  # fmt: skip
OPTION_FIELDS: dict[str, tuple[tuple[str, int, str, int | float], ...]] = {
    "CONV_2D": (("padding", 0, "b", 0), ("stride_width", 1, "i", 0), ("stride_height", 2, "i", 0),
                ("dilation_width", 4, "i", 1), ("dilation_height", 5, "i", 1)),
    "DEPTHWISE_CONV_2D": (("padding", 0, "b", 0), ("stride_width", 1, "i", 0), ("stride_height", 2, "i", 0),
                          ("multiplier", 3, "i", 0), ("dilation_width", 5, "i", 1), ("dilation_height", 6, "i", 1)),
    "FULLY_CONNECTED": (("weights_format", 1, "b", 0), ("keep_dimensions", 2, "B", 0)),
    "AVERAGE_POOL_2D": _POOL, "MAX_POOL_2D": _POOL,
    "CONCATENATION": (("axis", 0, "i", 0),),
    "SOFTMAX": (("beta", 0, "f", 0.0),),
    "MEAN": (("keep_dimensions", 0, "B", 0),),
    "LEAKY_RELU": (("alpha", 0, "f", 0.0),),
}  # fmt: skip


def read(data: Content) -> Graph:
    """Read the first subgraph of a `.tflite` file.

    Constants are read-only views into `data`. Weights kept outside the flatbuffer, in a sparse layout or in a type
    the engine does not know are left as `data=None`. Raises ModelError for anything that is not a sound file.
    """
    return _read_graph(_open(data))


def operators(data: Content) -> tuple[tuple[str, int], ...]:
    """The kinds of operators that the file has and their versions, sorted: a runtime that lacks one loads none of it.

    Raises ModelError for what is no sound file.
    """
    return tuple(sorted({(_kind(code), max(1, int(code.number(2, "i", 1)))) for code in _open(data).tables(1)}))


def cut_prefix(data: Content, operator_count: int, output_tensor: int) -> bytes:
    """Return the file cut down to its first `operator_count` operators, with `output_tensor` as its only output.

    Three numbers are changed in place, and the file keeps its size: the length of the operators' vector, outputs[0],
    and the tensor a signature names as its output. Every runtime then loads the frozen part as a model of its own.
    Raises ModelError if the file is unsound, has not exactly one output, or has no such operators or tensor.
    """
    root = _open(data)
    graph = _read_graph(root)
    if not 0 <= operator_count <= len(graph.operators):
        raise ModelError(
            f"cannot keep {operator_count} operators of a model with {len(graph.operators)}; cut inside the model"
        )
    made = {tensor for op in graph.operators[:operator_count] for tensor in op.outputs} | set(graph.inputs)
    if output_tensor not in made:
        raise ModelError(
            f"tensor {output_tensor} is not made by the first {operator_count} operators; cut where it is an output"
        )
    if len(graph.outputs) != 1:
        raise ModelError(f"the model has {len(graph.outputs)} outputs; export one with a single output to cut it")
    subgraph = root.tables(2)[0]
    patched = bytearray(data)
    _overwrite(patched, subgraph.vector_at(3)[0] - 4, operator_count)
    _overwrite(patched, subgraph.vector_at(2)[0], output_tensor)
    for signature in root.tables(7):
        if signature.number(4, "I") == 0:
            for entry in signature.tables(1):
                _overwrite(patched, entry.field_at(1, 4), output_tensor)
    cut = read(bytes(patched))
    if len(cut.operators) != operator_count or cut.outputs != (output_tensor,):
        raise ModelError("the file's tables overlap, so it cannot be cut; export the model again")
    return bytes(patched)


def patch(data: Content, graph: Graph, constants: Mapping[int, NDArray[Any]]) -> bytes:
    """Return the file with the constants of some tensors replaced in place; it keeps its size and all other bytes.

    `graph` is `read(data)`, folded or not; `constants` maps a tensor's index to an array of its shape and dtype.
    Raises ModelError for a tensor that is no constant inside the file, an array that does not fit, NaN or infinity,
    and bytes that another tensor shares: converters keep equal constants once, such as biases that are all zero.
    """
    before = _same_file(data, graph)
    patched, root = bytearray(data), _open(data)
    buffers, users = root.tables(4), _buffer_users(root)
    buffer_of = {user: number for number, who in users.items() for user in who}
    for index, values in constants.items():
        stored = replacement(before, index, values)
        number = buffer_of[0, index]
        for subgraph, other in users[number]:
            if subgraph or other not in constants or constants[other].tobytes() != values.tobytes():
                raise ModelError(
                    f"tensor {index} ({before.tensors[index].name!r}) shares its bytes with tensor {other} of subgraph "
                    f"{subgraph}, so it cannot be written back alone; train another layer, or convert the model anew"
                )
        first, _ = buffers[number].constant_at(0)
        patched[first : first + stored.nbytes] = stored.tobytes()
    written = bytes(patched)
    check_written(before, read(written), constants, {})
    return written


def patch_scales(data: bytes, graph: Graph, scales: Mapping[int, NDArray[np.float32]]) -> bytes:
    """Return the file with the scales of some tensors replaced in place; it keeps its size and all other bytes.

    `scales` maps a tensor's index to as many float32 as it has scales. Who rescales weights rescales their bias too
    (scale of the input times scale of the weights). Raises ModelError as `patch` does.
    """
    before = _same_file(data, graph)
    patched, entries = bytearray(data), _open(data).tables(2)[0].tables(0)
    for index, scale in scales.items():
        stored = scale_replacement(before, index, scale)
        quantization = entries[index].table(4)
        assert quantization is not None, "a tensor with scales has a table of them"
        first, _ = quantization.vector_at(2)
        patched[first : first + stored.nbytes] = stored.tobytes()
    written = bytes(patched)
    check_written(before, read(written), {}, scales)
    return written


def _same_file(data: Content, graph: Graph) -> Graph:
    """Read the file; ModelError where `graph` was read from another one."""
    before = read(data)
    if (before.operators, len(before.tensors)) != (graph.operators, len(graph.tensors)):
        raise ModelError("the graph was read from another file than the one to be patched; read this one")
    return before


def _buffer_users(root: Table) -> dict[int, list[tuple[int, int]]]:
    """Return for each buffer the (subgraph, tensor) pairs that hold its bytes."""
    users: dict[int, list[tuple[int, int]]] = {}
    for position, subgraph in enumerate(root.tables(2)):
        for index, entry in enumerate(subgraph.tables(0)):
            users.setdefault(int(entry.number(2, "I")), []).append((position, index))
    return users


def _open(data: Content) -> Table:
    if len(data) > FILE_BYTES_MAX:
        raise ModelError(f"the model file has {len(data)} bytes; at most {FILE_BYTES_MAX} are read")
    if data[4:8] != IDENTIFIER:
        raise ModelError("the model file is no .tflite (bytes 4 to 8 are not 'TFL3'); give a TensorFlow Lite model")
    file = File(memoryview(data).toreadonly(), STRUCTURE_COST_MAX)
    root = table_at(file, int(file.unpack("I", 0)))
    version = root.number(0, "I")
    if version != 3:
        raise ModelError(f"the model file has schema version {version}; version 3 is read: convert it again")
    return root


def _read_graph(root: Table) -> Graph:
    subgraphs = root.tables(2)
    if not subgraphs:
        raise ModelError("the model file holds no graph; export it again")
    kinds = [_kind(code) for code in root.tables(1)]
    buffers = [_buffer(entry) for entry in root.tables(4)]
    tensors = tuple(_tensor(index, entry, buffers) for index, entry in enumerate(subgraphs[0].tables(0)))
    operators = tuple(_operator(index, entry, kinds) for index, entry in enumerate(subgraphs[0].tables(3)))
    return checked(Graph(tensors, operators, subgraphs[0].integers(1), subgraphs[0].integers(2)))


def _kind(code: Table) -> str:
    # The field was one byte once; newer files put the code into field 3, and the older field then holds 127 at most.
    number = max(int(code.number(0, "b")), int(code.number(3, "i")))
    return KINDS.get(number, f"OP_{number}")


def _buffer(entry: Table) -> tuple[int, int] | None:
    """Return (first byte, length) of a constant, or None where its bytes stand outside the flatbuffer."""
    return None if int(entry.number(1, "Q")) > 1 else entry.constant_at(0)


def _tensor(index: int, entry: Table, buffers: list[tuple[int, int] | None]) -> Tensor:
    shape = entry.integers(0)
    check_shape(index, shape)
    number = int(entry.number(1, "b"))
    dtype = DTYPES.get(number, f"TYPE_{number}")
    buffer = int(entry.number(2, "I"))
    if buffer >= len(buffers):
        raise ModelError(f"tensor {index} of the model names buffer {buffer} of {len(buffers)}; export it again")
    span = None if number not in DTYPES or entry.target(6) else buffers[buffer]
    data = _constant(entry.file.data, span, index, shape, dtype) if span and span[1] else None
    scale, zero_point, axis = _quantization(index, entry.table(4), shape)
    return Tensor(index, entry.text(3), shape, dtype, scale, zero_point, axis, data)


def _constant(data: memoryview, span: tuple[int, int], index: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    kind = np.dtype(dtype).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != span[1]:
        raise ModelError(
            f"tensor {index} of the model has {span[1]} bytes for the shape {shape} of {dtype}; export it again"
        )
    return np.frombuffer(data, kind, math.prod(shape), span[0]).reshape(shape)


def _quantization(
    index: int, entry: Table | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    if entry is None:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    scale, zero_point, axis = entry.vector(2, "<f4"), entry.vector(3, "<i8"), int(entry.number(6, "i"))
    if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        raise ModelError(
            f"tensor {index} of the model has {len(scale)} scales along axis {axis} of {shape}; export it again"
        )
    if len(zero_point) not in {len(scale), 0}:
        raise ModelError(f"tensor {index} has {len(scale)} scales and {len(zero_point)} zero-points; export it again")
    if not bool((np.isfinite(scale) & (scale >= 0)).all()):
        raise ModelError(f"tensor {index} of the model has a scale that is no positive number; export it again")
    return scale, zero_point, axis


def _operator(index: int, entry: Table, kinds: list[str]) -> Operator:
    code = int(entry.number(0, "I"))
    if code >= len(kinds):
        raise ModelError(f"operator {index} of the model names code {code} of {len(kinds)}; export it again")
    kind, options = kinds[code], entry.table(4)
    activation, numbers = 0, {name: default for name, _, _, default in OPTION_FIELDS.get(kind, ())}
    if options is not None and kind in ACTIVATION_FIELD:
        activation = int(options.number(ACTIVATION_FIELD[kind], "b"))
    if not 0 <= activation < len(ACTIVATIONS):
        raise ModelError(f"operator {index} ({kind}) has the unknown activation {activation}; export it again")
    if options is not None:
        numbers = {
            name: options.number(at, letter, default) for name, at, letter, default in OPTION_FIELDS.get(kind, ())
        }
    if not all(map(math.isfinite, numbers.values())):
        raise ModelError(f"operator {index} ({kind}) has NaN or infinity among its numbers; export it again")
    return Operator(index, kind, entry.integers(1), entry.integers(2), ACTIVATIONS[activation], numbers)


def _overwrite(data: bytearray, at: int, value: int) -> None:
    if at <= 0 or at + 4 > len(data):
        raise ModelError("the model file has no place to write the cut into; export it again")
    struct.pack_into("<i", data, at, value)
