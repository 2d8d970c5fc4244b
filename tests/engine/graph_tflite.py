"""Writes a whole Graph as a `.tflite` file: the counterpart of the reader, and a way to run any Graph in a runtime."""

import numpy as np

from engine.models.tflite import ACTIVATION_FIELD, ACTIVATIONS, OPTION_FIELDS
from tests.engine.tiny_tflite import CODES, OPTIONS, TYPES, _Writer

OPTIONS_TYPE = OPTIONS | {
    "PAD": 22, "SUB": 28, "STRIDED_SLICE": 32, "DEQUANTIZE": 38, "SHAPE": 55, "PACK": 59, "LEAKY_RELU": 75,
    "QUANTIZE": 89,
}  # fmt: skip
# What the reader does not read, and a runtime needs.
MORE_FIELDS = {
    "STRIDED_SLICE": [(name, at, "i", 0) for at, name in enumerate(("begin", "end", "ellipsis", "new", "shrink"))],
    "PACK": [("values_count", 0, "i", 0), ("axis", 1, "i", 0)],
    "SHAPE": [("out_type", 0, "b", 2)],
}


def write(graph, *, buffers=None, more_subgraphs=()):
    """Return the bytes of `graph`; `buffers` maps a tensor's index to the tensor whose buffer it uses too."""
    codes = sorted({op.kind for op in graph.operators} | {op.kind for g in more_subgraphs for op in g.operators})
    contents, subgraphs = [{}], []
    for position, part in enumerate((graph, *more_subgraphs)):
        subgraphs.append(_subgraph(part, codes, contents, (buffers or {}) if position == 0 else {}))
    listed = [{0: ("b", min(CODES[kind], 127)), 2: ("i", 1), 3: ("i", CODES[kind])} for kind in codes]
    return _Writer().file({0: ("I", 3), 1: listed, 2: subgraphs, 4: contents})


def _subgraph(graph, codes, contents, shared):
    number_of, tensors = {}, []
    for tensor in graph.tensors:
        number = number_of.get(shared.get(tensor.index), 0)
        if tensor.data is not None and not number:
            number = len(contents)
            contents.append({0: tensor.data.astype(tensor.data.dtype.newbyteorder("<")).tobytes()})
        number_of[tensor.index] = number
        entry = {0: np.array(tensor.shape, "<i4"), 1: ("b", TYPES[tensor.dtype]), 2: ("I", number), 3: tensor.name}
        if len(tensor.scale):
            zero_point = tensor.zero_point.astype("<i8")
            entry[4] = {2: tensor.scale.astype("<f4"), 3: zero_point, 6: ("i", tensor.quantized_axis)}
        tensors.append(entry)
    indices = [np.array(indices, "<i4") for indices in (graph.inputs, graph.outputs)]
    return {0: tensors, 1: indices[0], 2: indices[1], 3: [_operator(op, codes) for op in graph.operators]}


def _operator(operator, codes):
    fields = {}
    for name, at, letter, _ in [*OPTION_FIELDS.get(operator.kind, ()), *MORE_FIELDS.get(operator.kind, ())]:
        if name in operator.options:
            fields[at] = (letter, operator.options[name])
    if operator.activation != "NONE":
        fields[ACTIVATION_FIELD[operator.kind]] = ("b", ACTIVATIONS.index(operator.activation))
    inputs, outputs = (np.array(indices, "<i4") for indices in (operator.inputs, operator.outputs))
    entry = {0: ("I", codes.index(operator.kind)), 1: inputs, 2: outputs}
    if operator.kind in OPTIONS_TYPE:
        entry |= {3: ("B", OPTIONS_TYPE[operator.kind]), 4: fields}
    return entry
