"""ONNX Runtime training as a peer: a gradient graph built beforehand, then `Module` and its own SGD.

VARIANT is a directory. `python ort_training.py NETWORK.npz FIRST prepare:DIRECTORY` builds the artifacts in it (that
takes the `onnx` package); with the bare DIRECTORY the step is measured. ONNX is NCHW only.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from network import Layer, Network

ORDERS = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}


def main(path: str, first: int, variant: str) -> None:
    """Build the artifacts, or measure one network in one mode."""
    if variant.startswith("prepare:"):
        _prepare(path, first, Path(variant.removeprefix("prepare:")))
        return
    began = time.process_time()
    import onnxruntime
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    import_s = time.process_time() - began
    import network
    import numpy as np

    net, directory = network.load(path, first), Path(variant)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    state = CheckpointState.load_checkpoint(str(directory / "checkpoint"))
    files = [str(directory / f"{name}_model.onnx") for name in ("training", "eval", "optimizer")]
    module = Module(files[0], state, files[1], session_options=options)
    optimizer = Optimizer(files[2], module)
    optimizer.set_learning_rate(net.rate)
    module.train()
    x = np.ascontiguousarray(net.x.transpose(0, 3, 1, 2)) if net.x.ndim == 4 else net.x
    y = net.y.astype(np.int64) if net.classes else net.y

    def step() -> float:
        loss = module(x, y)
        optimizer.step()
        module.lazy_reset_grad()
        return float(loss)

    network.report(import_s, step)


def _prepare(path: str, first: int, directory: Path) -> None:
    import network
    import onnx
    from onnxruntime.training import artifacts

    net = network.load(path, first)
    directory.mkdir(parents=True, exist_ok=True)
    names = [
        (layer.operator, f"{kind}{layer.operator}")
        for layer in net.layers
        if layer.weights is not None
        for kind in "wb"
    ]
    artifacts.generate_artifacts(
        _model(onnx, net),
        requires_grad=[name for operator, name in names if operator >= first],
        frozen_params=[name for operator, name in names if operator < first],
        loss=artifacts.LossType.CrossEntropyLoss if net.classes else artifacts.LossType.MSELoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=str(directory),
    )


def _model(onnx: Any, net: Network) -> Any:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes, constants = [], []
    for layer in net.layers:
        nodes += _nodes(helper, layer)
        if layer.weights is not None:
            weights = layer.weights.transpose(ORDERS[layer.kind]).copy()
            constants.append(numpy_helper.from_array(weights, f"w{layer.operator}"))
            constants.append(numpy_helper.from_array(layer.bias, f"b{layer.operator}"))
    n, *rest = net.x.shape
    shape = [n, rest[-1], *rest[:-1]]
    x = helper.make_tensor_value_info(f"t{net.entering}", onnx.TensorProto.FLOAT, shape)
    answer = [n, net.classes or net.y.shape[1]]
    y = helper.make_tensor_value_info(f"t{net.answer}", onnx.TensorProto.FLOAT, answer)
    graph = helper.make_graph(nodes, "network", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model


def _nodes(helper: Any, layer: Layer) -> list[Any]:
    """One or two ONNX nodes: the operator, and the activation fused into it."""
    inputs = [f"t{number}" for number in layer.inputs]
    constants = [f"w{layer.operator}", f"b{layer.operator}"]
    output = f"t{layer.output}"
    raw = f"{output}_raw" if layer.relu else output
    top, bottom, left, right = layer.pads
    match layer.kind:
        case "CONV_2D" | "DEPTHWISE_CONV_2D":
            groups = layer.weights.shape[3] if layer.kind == "DEPTHWISE_CONV_2D" else 1
            form = {"strides": layer.strides, "pads": (top, left, bottom, right), "group": groups}
            node = helper.make_node("Conv", inputs + constants, [raw], **form)
        case "FULLY_CONNECTED":
            node = helper.make_node("Gemm", inputs + constants, [raw], transB=1)
        case "ADD":
            node = helper.make_node("Add", inputs, [raw])
        case "AVERAGE_POOL_2D":
            node = helper.make_node("AveragePool", inputs, [raw], kernel_shape=layer.window, strides=layer.strides)
        case "RESHAPE":
            node = helper.make_node("Flatten", inputs, [raw])
        case _:
            raise ValueError(
                f"operator {layer.operator}: {layer.kind} has no ONNX form here; add one to ort_training.py."
            )
    return [node, helper.make_node("Relu", [raw], [output])] if layer.relu else [node]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
