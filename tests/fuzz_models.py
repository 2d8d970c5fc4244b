"""Mutated model files, as many as asked for: each one is refused with ModelError, or read, folded, cut and patched.

`python -m tests.fuzz_models 100000` does it in one process whose address space is limited to what it has after its
imports and MEMORY_BYTES_MAX more, so that a file which makes a reader ask for too much ends in MemoryError, and that is
a failure like any other exception. File number i is the same in every run. Where FLEET_MODELS names the folder with
them, the MLPerf Tiny int8 models are mutated too.
"""

import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from engine.models import onnx, tflite
from engine.models.fold import fold, live_operators
from engine.models.graph import ModelError

SHIPPED = Path(__file__).parents[1] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
INT8 = ("ad01_int8", "kws_ref_model", "pretrainedResnet_quant", "str_ww_ref_model", "vww_96_int8")
EXTREMES = (0, 1, 2, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFC, 0xFFFF_FFFF)
ATTRIBUTES = (
    "axis",
    "axes",
    "group",
    "strides",
    "pads",
    "dilations",
    "kernel_shape",
    "perm",
    "keepdims",
    "transB",
    "to",
)
MEMORY_BYTES_MAX = 256 << 20  # beside the program itself, for reading and patching one file
SECONDS_MAX = 20.0  # of the processor, for one file


def seeds():
    """(name, bytes, positions of the bytes that are no constants' content) of the sound files."""
    from tests.engine import test_onnx as nets

    files = [(path.name, path.read_bytes()) for path in sorted(SHIPPED.glob("*.tflite"))]
    paths = [ELSEWHERE / f"{name}.tflite" for name in INT8]
    files += [(path.name, path.read_bytes()) for path in paths if path.exists()]
    for name in ("residual", "torch view", "joined", "gated", "batch normalisation", "transposed and reshaped"):
        net = nets.Net(3, 9, 8)
        nets.FLOAT[name][0](net)
        files.append((f"{name}.onnx", net.bytes()))
    for name, build in (("chain", nets.chain_of_int8), ("qlinear", lambda net: nets.qlinear(net, np.int8))):
        net = nets.QuantizedNet(3, 9, 8)
        build(net)
        files.append((f"{name}.onnx", net.bytes()))
    return [(name, data, structure_of(name, data)) for name, data in files]


def structure_of(name, data):
    """Positions of the bytes that are not weights: the ones that can lead a reader astray."""
    free = np.ones(len(data), bool)
    if name.endswith(".onnx"):
        from engine.models.onnx_file import open_file

        constants = [proto.raw_data for proto in open_file(data).protos.values()]
    else:
        constants = [tensor.data.tobytes() for tensor in tflite.read(data).tensors if tensor.data is not None]
    for content in constants:
        at = data.find(content) if len(content) > 16 else -1
        if at >= 0:
            free[at : at + len(content)] = False
    return np.flatnonzero(free).tolist()


def mutated(rng, files):
    """A sound file's name, and its bytes with something wrong in them."""
    name, sound, structure = rng.choice(files)
    if name.endswith(".onnx") and rng.random() < 0.7:
        return name, rewritten(rng, sound)
    data = bytearray(sound)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.choice(structure) if rng.random() < 0.95 else rng.randrange(len(data))
        at = min(at, max(len(data) - 4, 0))
        match rng.randrange(8):
            case 0 | 1 | 2:
                data[at] ^= 1 << rng.randrange(8)
            case 3:
                data[at] = rng.randrange(256)
            case 4:
                struct.pack_into("<I", data, at & ~3, rng.choice(EXTREMES))
            case 5:
                other = rng.choice(structure)
                length = rng.choice((1, 2, 4, 8, 40))
                data[at : at + length] = sound[other : other + length]
            case 6 if rng.random() < 0.3:
                del data[at : at + rng.choice((1, 4, 100))]
            case 7 if rng.random() < 0.3:
                data[at:at] = rng.choice((b"\0", b"\xff\xff\xff\xff\x0f", bytes(rng.randrange(256) for _ in range(8))))
            case _:
                struct.pack_into("<H", data, at & ~1, rng.choice(EXTREMES) & 0xFFFF)
    if rng.random() < 0.02:
        del data[rng.randrange(len(data)) :]
    return name, bytes(data)


def rewritten(rng, sound):
    """An ONNX model that parses, with nodes, attributes and constants that do not belong together."""
    import onnx as package

    model = package.ModelProto.FromString(sound)
    nodes, constants = model.graph.node, model.graph.initializer
    names = [name for node in nodes for name in node.output] + [constant.name for constant in constants] + ["x", ""]
    for _ in range(rng.choice((1, 1, 2, 5))):
        node, number = rng.choice(nodes), rng.choice((-9, -2, -1, 0, 1, 2, 3, 4, 5, 9, 255, 1 << 31, (1 << 63) - 1))
        match rng.randrange(12):
            case 0:
                node.op_type = rng.choice([*onnx.HANDLERS, "Constant", "Shape", "Gather", "Slice", "Loop", "Gelu"])
            case 1 | 2:
                node.input.append(rng.choice(names)) if not node.input else None
                node.input[rng.randrange(len(node.input))] = rng.choice(names)
            case 3:
                node.input.append(rng.choice(names))
            case 4:
                del node.input[rng.randrange(len(node.input) + 1) :]
            case 5 | 6:
                key = rng.choice(ATTRIBUTES)
                value = number if rng.random() < 0.5 else [number] * rng.choice((0, 1, 2, 4))
                kept = [attribute for attribute in node.attribute if attribute.name != key]
                del node.attribute[:]
                node.attribute.extend(
                    [*kept, package.helper.make_attribute(key, value, attr_type=2 if value == number else 7)]
                )
            case 7 if constants:
                dims = rng.choice(constants).dims
                dims.append(1) if rng.random() < 0.3 or not dims else dims.__setitem__(rng.randrange(len(dims)), number)
            case 8 if constants:
                constant = rng.choice(constants)
                shape = rng.choice(((), (1,), (4,), (1, 4), (4, 3, 3, 3), (3, 1, 3, 3), (0,), (2, 2, 2, 2, 2)))
                kind = rng.choice((np.float32, np.int8, np.uint8, np.int32, np.int64, np.float16, np.float64))
                array = np.array(rng.choices((0, 1, 2, -1, 3, 100), k=int(np.prod(shape)))).reshape(shape)
                constant.CopyFrom(package.numpy_helper.from_array(array.astype(kind), constant.name))
            case 9:
                size = rng.choice(model.graph.input[0].type.tensor_type.shape.dim)
                size.dim_value = number
            case 10:
                node.output[0] = rng.choice(names)
            case _:
                other = rng.randrange(len(nodes))
                copied = package.NodeProto.FromString(nodes[other].SerializeToString())
                nodes[other].CopyFrom(node)
                node.CopyFrom(copied)
    return model.SerializeToString()


def use(rng, name, data):
    """Do everything with a file that is done to one; return whether it was taken at all."""
    reader = onnx if name.endswith(".onnx") else tflite
    try:
        graph = reader.read(data)
    except ModelError:
        return False
    constants = [tensor for tensor in graph.tensors if tensor.data is not None and tensor.dtype in {"int8", "float32"}]
    chosen = rng.sample(constants, min(2, len(constants)))
    steps = [
        lambda: live_operators(fold(graph)),
        lambda: reader.patch(data, graph, {tensor.index: np.zeros_like(tensor.data) for tensor in chosen}),
    ]
    if reader is tflite and graph.operators:
        operator = rng.choice(graph.operators)
        output = operator.outputs[0] if operator.outputs else 0
        scaled = {t.index: np.ones_like(t.scale) for t in rng.sample(graph.tensors, min(2, len(graph.tensors)))}
        steps.append(lambda: tflite.read(tflite.cut_prefix(data, operator.index + 1, output)))
        steps.append(lambda: tflite.patch_scales(data, graph, scaled))
    for step in steps:
        try:
            step()
        except ModelError:
            continue
    return True


def run(count, first=0, keep=None):
    """Use `count` mutated files; return how many were taken and refused, and the slowest; raise at the first wrong."""
    files, seen, slowest = seeds(), Counter(), (0.0, "")
    for number in range(first, first + count):
        rng = random.Random(number)
        name, data = mutated(rng, files)
        start = time.thread_time()
        try:
            seen[Path(name).suffix, use(rng, name, data)] += 1
        except BaseException:
            print(f"file {number}, of {name}, is answered with:", file=sys.stderr)
            if keep:
                Path(keep).write_bytes(data)
            raise
        took = time.thread_time() - start
        assert took < SECONDS_MAX, f"file {number}, of {name}, took {took:.1f} s"
        slowest = max(slowest, (took, f"{number} of {name}"))
    return seen, slowest


def limit_memory(extra):
    """Let this process have no more than `extra` bytes of address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main():
    """Run as many files as the command line says, from a number on; print one line."""
    count, first = (int(text) for text in [*sys.argv[1:], "1000", "0"][:2])
    for name, data, _ in seeds():  # what is imported and cached once is not the reader's
        use(random.Random(0), name, data)
    limit_memory(MEMORY_BYTES_MAX)
    start = time.thread_time()
    seen, slowest = run(count, first)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    parts = [f"{kind} {'taken' if was else 'refused'} {number}" for (kind, was), number in sorted(seen.items())]
    print(
        f"{count} files from {first}: {', '.join(parts)}; {time.thread_time() - start:.0f} s of the processor, ", end=""
    )
    print(f"the slowest {slowest[0] * 1000:.0f} ms ({slowest[1]}), peak {peak} MB")


if __name__ == "__main__":
    main()
