"""TensorFlow as a peer: one `tf.function` with a gradient tape and plain SGD, NHWC.

VARIANT is `function`, or `export:DIRECTORY`: convert the step to a LiteRT training signature where the converter can,
for `litert_signature.py`. Tried and slower, or no different: XLA (`jit_compile`), oneDNN off, `+` for `bias_add`.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from network import Layer, Network


def main(path: str, first: int, variant: str) -> None:
    """Measure one network in one mode, or convert it."""
    began = time.process_time()
    import tensorflow as tf

    import_s = time.process_time() - began
    import network

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    net = network.load(path, first)
    module = tf.Module()
    module.params = {
        str(layer.operator): _params(tf, layer, trains=layer.operator >= first)
        for layer in net.layers
        if layer.weights is not None
    }
    if variant.startswith("export:"):
        module.train = _training_function(tf, net, module.params, _builtin_relu(tf))
        _export(tf, module, Path(variant.removeprefix("export:")))
        return
    module.train = _training_function(tf, net, module.params, tf.nn.relu)
    x, y = tf.constant(net.x), tf.constant(net.y)
    network.report(import_s, lambda: module.train(x, y)["loss"])


def _params(tf: Any, layer: Layer, *, trains: bool) -> list[Any]:
    """Weights as TensorFlow has them: [KH, KW, C, O], depthwise [KH, KW, C, 1], dense [I, O]."""
    order = {"CONV_2D": (1, 2, 3, 0), "DEPTHWISE_CONV_2D": (1, 2, 3, 0), "FULLY_CONNECTED": (1, 0)}[layer.kind]
    weights = layer.weights.transpose(order).copy()
    name = f"{layer.operator}"
    return [
        tf.Variable(weights, trainable=trains, name=f"w{name}"),
        tf.Variable(layer.bias, trainable=trains, name=f"b{name}"),
    ]


def _training_function(tf: Any, net: Network, params: dict[str, Any], relu: Callable[[Any], Any]) -> Any:
    trained = [variable for pair in params.values() for variable in pair if variable.trainable]

    @tf.function(input_signature=[tf.TensorSpec(net.x.shape, tf.float32), tf.TensorSpec(net.y.shape, net.y.dtype)])
    def train(x: Any, y: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            answer = _forward(tf, net, params, relu, x)
            if net.classes:
                wanted = tf.one_hot(y, net.classes)
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(wanted, answer))
            else:
                loss = tf.reduce_mean(tf.square(answer - y))
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(net.rate * gradient)
        return {"loss": loss}

    return train


def _forward(tf: Any, net: Network, params: dict[str, Any], relu: Callable[[Any], Any], x: Any) -> Any:
    tensors = {net.entering: x}
    for layer in net.layers:
        y = _apply(tf, layer, params, [tensors[number] for number in layer.inputs])
        tensors[layer.output] = relu(y) if layer.relu else y
    return tensors[net.answer]


def _apply(tf: Any, layer: Layer, params: dict[str, Any], inputs: list[Any]) -> Any:
    x, strides = inputs[0], [1, *layer.strides, 1]
    padding = "SAME" if any(layer.pads) or layer.window == (1, 1) else "VALID"
    match layer.kind:
        case "CONV_2D":
            weights, bias = params[str(layer.operator)]
            return tf.nn.bias_add(tf.nn.conv2d(x, weights, strides, padding), bias)
        case "DEPTHWISE_CONV_2D":
            weights, bias = params[str(layer.operator)]
            return tf.nn.bias_add(tf.nn.depthwise_conv2d(x, weights, strides, padding), bias)
        case "FULLY_CONNECTED":
            weights, bias = params[str(layer.operator)]
            return tf.nn.bias_add(tf.linalg.matmul(x, weights), bias)
        case "ADD":
            return x + inputs[1]
        case "AVERAGE_POOL_2D":  # the whole picture, in each of these models: a mean is TensorFlow's quickest form
            return tf.reduce_mean(x, [1, 2], keepdims=True)
        case "RESHAPE":
            return tf.reshape(x, [x.shape[0], -1])
    raise ValueError(f"operator {layer.operator}: {layer.kind} has no TensorFlow form here; add one to tensor_flow.py.")


def _builtin_relu(tf: Any) -> Callable[[Any], Any]:
    """A rectifier whose gradient LiteRT has operators for; it has none for TensorFlow's own."""

    @tf.custom_gradient
    def relu(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        y = tf.nn.relu(x)
        return y, lambda gradient: gradient * tf.cast(y > 0, tf.float32)

    return relu


def _export(tf: Any, module: Any, directory: Path) -> None:
    """Write train.tflite with LiteRT's own operators only, or why.txt with the converter's reason."""
    directory.mkdir(parents=True, exist_ok=True)
    tf.saved_model.save(module, str(directory / "saved"), signatures={"train": module.train.get_concrete_function()})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory / "saved"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    try:
        (directory / "train.tflite").write_bytes(converter.convert())
    except Exception as error:  # noqa: BLE001 - the converter's own family of errors is private
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        why = f"it has no operator for {', '.join(missing)}" if missing else str(error)[:200]
        (directory / "why.txt").write_text(f"LiteRT's converter refuses the training step: {why}.")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
