"""Takes an `.onnx` file apart into plain records: nodes, constants, inputs, outputs. No meaning is given to them here.

An `.onnx` file is a protobuf message, and the `onnx` package parses it. A parser makes large objects of short
messages, so the bytes are walked over first: what is not the content of a constant may be 2 MB at most, in so many
fields. Constants that the file keeps in files beside it are refused; nothing but the given bytes is ever opened.
Constants become arrays when they are asked for. Whatever the bytes, the answer is an `OnnxFile` or `ModelError`.

Field numbers are those of ONNX's `onnx.proto`.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models.graph import FILE_BYTES_MAX, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

STRUCTURE_BYTES_MAX = 2 << 20  # a parser makes up to seventy times as much of it
FIELDS_MAX = 400_000  # an export of a thousand nodes has a tenth of it
CONSTANT_BYTES_MAX = 2 * FILE_BYTES_MAX  # of all constants made for one graph: a file may use a large one many times
RANK_MAX = 8
OPSETS = range(7, 30)
# TensorProto.DataType: NumPy's name, and the field that holds the numbers where they are not raw bytes.
DTYPES = {
    1: ("float32", "float_data"), 2: ("uint8", "int32_data"), 3: ("int8", "int32_data"), 5: ("int16", "int32_data"),
    6: ("int32", "int32_data"), 7: ("int64", "int64_data"), 9: ("bool", "int32_data"), 11: ("float64", "double_data"),
}  # fmt: skip
# Which fields of a message are walked into, and which hold the content of a constant: (message, field) -> message.
_INTO = {("model", 7): "graph", ("graph", 5): "tensor", ("graph", 1): "node", ("node", 5): "attribute",
         ("attribute", 5): "tensor"}  # fmt: skip
_CONTENT = {("tensor", 4), ("tensor", 9), ("tensor", 10)}  # float_data, raw_data, double_data
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Node:
    """One node; attributes are integers, numbers, bytes, or tuples of them; a tensor's one is a name in `constants`."""

    index: int
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is one integer."""
        return int(self._attribute(name, default, int))

    def real(self, name: str, default: float) -> float:
        """Return an attribute that is one real number."""
        return float(self._attribute(name, default, float))

    def integers(self, name: str) -> tuple[int, ...]:
        """Return an attribute that is a list of integers; empty where it is absent."""
        return tuple(self._attribute(name, (), tuple))

    def text(self, name: str, default: bytes) -> bytes:
        """Return an attribute that is bytes."""
        return bytes(self._attribute(name, default, bytes))

    def _attribute(self, name: str, default: Any, kind: type) -> Any:
        value = self.attributes.get(name, default)
        if not isinstance(value, kind):
            raise self.refusal(f"has an attribute {name!r} of another type than it must have; export it again")
        return value

    def refusal(self, sentence: str) -> ModelError:
        """Return the error that names this node: `sentence` goes on after its name."""
        return ModelError(f"node {self.index} ({self.op}, {self.name or ', '.join(self.outputs)!r}) {sentence}")


@dataclass(frozen=True, slots=True)
class Declared:
    """A value whose type the file states; a size that it leaves open is 0. `dtype` is '' where it is no tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(slots=True)
class OnnxFile:
    """A parsed file; `protos` holds the constants' messages by the name of their value."""

    proto: Any
    opset: int
    nodes: list[Node]
    inputs: list[Declared]
    outputs: list[Declared]
    declared: dict[str, Declared]
    protos: dict[str, Any]
    budget: int = CONSTANT_BYTES_MAX
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the constant of this name, read-only, in the file's shape; None where the file has none."""
        if name in self.arrays:
            return self.arrays[name]
        proto = self.protos.get(name)
        if proto is None:
            return None
        array = _array(name, proto)
        self.spend(array.nbytes)
        self.arrays[name] = array
        return array

    def spend(self, nbytes: int) -> None:
        """Pay for an array of that many bytes; ModelError once all of them together are too many."""
        self.budget -= nbytes
        if self.budget < 0:
            raise ModelError(
                f"the constants of the model take over {CONSTANT_BYTES_MAX} bytes when they are laid out; "
                "export a smaller model"
            )


def open_file(data: bytes) -> OnnxFile:
    """Parse an `.onnx` file; ModelError for anything that is not a sound one, or where `onnx` is not installed."""
    if len(data) > FILE_BYTES_MAX:
        raise ModelError(f"the model file has {len(data)} bytes; at most {FILE_BYTES_MAX} are read")
    if _structure_bytes(data) > STRUCTURE_BYTES_MAX:
        raise ModelError(
            f"the model file has over {STRUCTURE_BYTES_MAX} bytes beside its constants; export it without debug notes"
        )
    try:
        onnx, message = (importlib.import_module(name) for name in ("onnx", "google.protobuf.message"))
    except ImportError as why:
        raise ModelError("an .onnx file needs the onnx package to be read; install hedgerow[onnx]") from why
    try:
        return _taken_apart(onnx.ModelProto.FromString(data))
    except message.DecodeError as why:
        raise ModelError(f"the model file is no sound .onnx file ({why}); fetch or export it again") from why


def write_constant(proto: Any, values: NDArray[Any]) -> None:
    """Put `values`, of the message's own shape and dtype, into a constant's message in the form it has."""
    _, plain = DTYPES[proto.data_type]
    if proto.HasField("raw_data"):
        proto.raw_data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    else:
        del getattr(proto, plain)[:]
        getattr(proto, plain).extend(values.reshape(-1).tolist())


def _structure_bytes(data: bytes) -> int:
    """Walk over the file; return how many of its bytes are not the content of constants."""
    content, fields, waiting = 0, 0, [("model", 0, len(data))]
    while waiting:
        message, at, end = waiting.pop()
        for number, first, after in _fields(data, at, end):
            fields += 1
            if fields > FIELDS_MAX:
                return STRUCTURE_BYTES_MAX + 1
            inside = _INTO.get((message, number))
            if inside and first < after:
                waiting.append((inside, first, after))
            elif (message, number) in _CONTENT:
                content += after - first
    return len(data) - content


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first byte, byte after the last) of each field; numbers are empty here."""
    while at < end:
        key, at = _varint(data, at, end)
        first = at
        match key & 7:
            case 0:
                _, at = _varint(data, at, end)
            case 2:
                length, first = _varint(data, at, end)
                at = first + length
            case kind:
                at += _FIXED_BYTES.get(kind, end)
        if at > end:
            raise ModelError(
                "the model file is no sound .onnx file (a field ends outside it); fetch or export it again"
            )
        yield key >> 3, first if key & 7 == 2 else at, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ModelError("the model file is no sound .onnx file (a number has no end); fetch or export it again")


def _taken_apart(proto: Any) -> OnnxFile:
    graph = proto.graph
    opset = max((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset not in OPSETS or not graph.node:
        raise ModelError(
            f"the model file has {len(graph.node)} nodes of opset {opset}; export an .onnx model of opset {OPSETS[0]} "
            f"to {OPSETS[-1]}"
        )
    protos, nodes = {_text(tensor.name): tensor for tensor in graph.initializer}, []
    for index, entry in enumerate(graph.node):
        attributes = {_text(attribute.name): _attribute(attribute) for attribute in entry.attribute}
        inputs, outputs = (tuple(map(_text, names)) for names in (entry.input, entry.output))
        for attribute in entry.attribute:
            if entry.op_type == "Constant" and attribute.name == "value":
                protos[next(iter(outputs), "")] = attribute.t
        nodes.append(Node(index, _text(entry.op_type), _text(entry.name), inputs, outputs, attributes))
    entering = [declared for declared in map(_declared, graph.input) if declared.name not in protos]
    leaving = [_declared(entry) for entry in graph.output]
    known = {declared.name: declared for declared in [*map(_declared, graph.value_info), *leaving]}
    return OnnxFile(proto, opset, nodes, entering, leaving, known, protos)


def _attribute(entry: Any) -> Any:
    match entry.type:
        case 1:
            return entry.f
        case 2:
            return entry.i
        case 3:
            return entry.s
        case 6:
            return tuple(entry.floats)
        case 7:
            return tuple(entry.ints)
        case _:
            return None


def _text(name: str | bytes) -> str:
    """Return a name; the parser gives bytes where it is no UTF-8."""
    if isinstance(name, bytes):
        raise ModelError(f"the model file is no sound .onnx file (the name {name[:40]!r} is no text); export it again")
    return name


def _declared(entry: Any) -> Declared:
    name = _text(entry.name)
    kind = entry.type.tensor_type
    if not entry.type.HasField("tensor_type"):
        return Declared(name, "", None)
    dtype, _ = DTYPES.get(kind.elem_type, (f"TYPE_{kind.elem_type}", ""))
    if not kind.HasField("shape"):
        return Declared(name, dtype, None)
    return Declared(name, dtype, tuple(max(size.dim_value, 0) for size in kind.shape.dim))


def _array(name: str, proto: Any) -> NDArray[Any]:
    if proto.data_location == 1 or proto.external_data:
        raise ModelError(
            f"constant {name!r} of the model is kept in another file; export the model as one file "
            "(onnx.save with save_as_external_data=False)"
        )
    if proto.data_type not in DTYPES or proto.HasField("segment"):
        raise ModelError(
            f"constant {name!r} of the model has data type {proto.data_type}; export it as float32 or int8"
        )
    dtype, plain = DTYPES[proto.data_type]
    shape = tuple(proto.dims)
    if len(shape) > RANK_MAX or any(size < 0 for size in shape):
        raise ModelError(f"constant {name!r} of the model has the shape {shape[:9]}; export it again")
    count, kind = math.prod(shape), np.dtype(dtype).newbyteorder("<")
    if proto.HasField("raw_data"):
        raw = proto.raw_data
        _check_length(name, len(raw), count * kind.itemsize)
        return np.frombuffer(raw, kind).reshape(shape)
    _check_length(name, len(getattr(proto, plain)), count)
    try:
        array = np.array(list(getattr(proto, plain)), np.int64 if plain.startswith("int") else kind)
    except OverflowError as why:
        raise ModelError(f"constant {name!r} of the model has numbers that are no {dtype}; export it again") from why
    if plain.startswith("int") and dtype != "int64":
        limits = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if count and not limits[0] <= int(array.min()) <= int(array.max()) <= limits[1]:
            raise ModelError(f"constant {name!r} of the model has numbers that are no {dtype}; export it again")
    array = array.astype(dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _check_length(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ModelError(f"constant {name!r} of the model has {found} bytes or numbers for {wanted}; export it again")
