"""Writes small `.tflite` files, so that a test can ask the runtime about any operator at any size and scale.

`model(tensors, operators, inputs, outputs)` gives the bytes of a file, `one(kind, given, made)` those of a file with
one operator, and `reference(data, *values)` what the runtime makes of it. A flatbuffer's offsets point forward, so
tables are written parents first: a table leaves a gap for each reference, filled when the child is written.
Here a table is a dict from field number to value: `("i", 3)` is a scalar, a dict a table, a list of dicts a vector of
tables, an array a vector of numbers, bytes a block of 16-byte-aligned bytes. Field numbers are those of `schema.fbs`.
"""

import struct
from dataclasses import dataclass

import numpy as np

from engine.models import interpreter
from engine.models.tflite import ACTIVATION_FIELD, ACTIVATIONS, DTYPES, KINDS, OPTION_FIELDS

CODES = {kind: code for code, kind in KINDS.items()}
TYPES = {dtype: number for number, dtype in DTYPES.items()}
# Which member of the union BuiltinOptions an operator carries; the ones left out carry none.
OPTIONS = {
    "CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "AVERAGE_POOL_2D": 5, "MAX_POOL_2D": 5, "FULLY_CONNECTED": 8, "SOFTMAX": 9,
    "CONCATENATION": 10, "ADD": 11, "RESHAPE": 17, "MUL": 21, "MEAN": 27,
}  # fmt: skip
# The version of each operator that knows int8.
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1}
SAME, VALID = 0, 1


@dataclass(frozen=True)
class Array:
    """A tensor; without `scale` it is not quantised, with `data` it is a constant."""

    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: float | tuple[float, ...] | None = None
    zero_point: int | tuple[int, ...] = 0
    axis: int = 0
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Node:
    """An operator; `options` by the reader's names (`OPTION_FIELDS`)."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str = "NONE"
    options: dict[str, float] | None = None


def model(tensors, operators, inputs, outputs):
    """Give the bytes of a `.tflite` file."""
    kinds = sorted({op.kind for op in operators})
    buffers, entries = [{}], []
    for index, tensor in enumerate(tensors):
        number = 0
        if tensor.data is not None:
            number = len(buffers)
            kind = np.dtype(tensor.dtype).newbyteorder("<")
            buffers.append({0: np.ascontiguousarray(tensor.data, kind).tobytes()})
        entries.append(_tensor(index, tensor, number))
    subgraph = {
        0: entries,
        1: np.array(inputs, "<i4"),
        2: np.array(outputs, "<i4"),
        3: [_operator(op, kinds.index(op.kind)) for op in operators],
    }
    codes = [
        {0: ("b", min(CODES[kind], 127)), 2: ("i", VERSIONS.get(kind, 2)), 3: ("i", CODES[kind])} for kind in kinds
    ]
    root = {0: ("I", 3), 1: codes, 2: [subgraph], 4: buffers}
    return _Writer().file(root)


def one(kind, given, made, activation="NONE", **options):
    """Give a file with one operator: `given` and `made` are its tensors; the ones without data are the inputs."""
    tensors = [*given, made]
    inputs = [index for index, tensor in enumerate(given) if tensor.data is None]
    op = Node(kind, tuple(range(len(given))), (len(given),), activation, options)
    return model(tensors, [op], inputs, [len(given)])


def reference(data, *values):
    """Run a file on the runtime's reference kernels (BUILTIN_REF); give its first output."""
    _, runtime = interpreter._runtime()
    resolver = runtime.OpResolverType.BUILTIN_REF
    opened = runtime.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    opened.allocate_tensors()
    for entry, value in zip(opened.get_input_details(), values, strict=True):
        opened.set_tensor(entry["index"], value)
    opened.invoke()
    return opened.get_tensor(opened.get_output_details()[0]["index"])


def _tensor(index, tensor, buffer):
    entry = {
        0: np.array(tensor.shape, "<i4"),
        1: ("b", TYPES[tensor.dtype]),
        2: ("I", buffer),
        3: f"tensor_{index}",
    }
    if tensor.scale is not None:
        scales = np.atleast_1d(np.array(tensor.scale, "<f4"))
        zeros = np.broadcast_to(np.array(tensor.zero_point, "<i8"), scales.shape)
        entry[4] = {2: scales, 3: zeros, 6: ("i", tensor.axis)}
    return entry


def _operator(op, code):
    options = {}
    given = op.options or {}
    known = {name: (field, letter) for name, field, letter, _ in OPTION_FIELDS.get(op.kind, ())}
    for name, value in given.items():
        field, letter = known[name]
        options[field] = (letter, value)
    if op.kind in ACTIVATION_FIELD:
        options[ACTIVATION_FIELD[op.kind]] = ("b", ACTIVATIONS.index(op.activation))
    entry = {0: ("I", code), 1: np.array(op.inputs, "<i4"), 2: np.array(op.outputs, "<i4")}
    if op.kind in OPTIONS:
        entry |= {3: ("B", OPTIONS[op.kind]), 4: options}
    return entry


class _Writer:
    def __init__(self):
        self.data = bytearray()

    def file(self, root):
        self.data += b"\0\0\0\0TFL3"
        self._fill(0, root)
        return bytes(self.data)

    def _fill(self, gap, value):
        """Write `value` at the end and let the offset in `gap` point to it."""
        at = self._write(value)
        struct.pack_into("<I", self.data, gap, at - gap)

    def _align(self, size, ahead=0):
        self.data += bytes(-(len(self.data) + ahead) % size)

    def _write(self, value):
        match value:
            case dict():
                return self._table(value)
            case list():
                return self._tables(value)
            case str():
                return self._numbers(np.frombuffer(value.encode(), np.uint8), 4, b"\0")
            case bytes():
                return self._numbers(np.frombuffer(value, np.uint8), 16)
            case _:
                return self._numbers(value, 8)

    def _table(self, fields):
        layout, size = {}, 4
        for field, value in sorted(fields.items(), key=lambda item: -_width(item[1])):
            width = _width(value)
            size += -size % width
            layout[field] = size
            size += width
        vtable = [layout.get(field, 0) for field in range(max(fields, default=-1) + 1)]
        self._align(4)
        start = len(self.data)
        self.data += struct.pack(f"<{2 + len(vtable)}H", 4 + 2 * len(vtable), size, *vtable)
        self._align(4)
        at = len(self.data)
        self.data += struct.pack("<i", at - start) + bytes(size - 4)
        for field, value in fields.items():
            if isinstance(value, tuple):
                struct.pack_into("<" + value[0], self.data, at + layout[field], value[1])
            else:
                self._fill(at + layout[field], value)
        return at

    def _tables(self, items):
        self._align(4)
        at = len(self.data)
        self.data += struct.pack("<I", len(items)) + bytes(4 * len(items))
        for index, item in enumerate(items):
            self._fill(at + 4 + 4 * index, item)
        return at

    def _numbers(self, array, alignment, end=b""):
        self._align(alignment, ahead=4)
        at = len(self.data)
        self.data += struct.pack("<I", len(array)) + array.tobytes() + end
        return at


def _width(value):
    return struct.calcsize("<" + value[0]) if isinstance(value, tuple) else 4
