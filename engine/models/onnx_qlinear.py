"""Operators that work on int8 by their own account: QLinearConv, and ONNX Runtime's QGemm, QLinearAdd and others.

Each takes numbers, scale and zero-point one after the other, and its result's scale and zero-point; so each is one
operator of the engine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine.models.onnx_build import Constant, Quantization, Value
from engine.models.onnx_layers import (
    UNIT,
    Layer,
    Tail,
    check_weights,
    combine,
    constant_input,
    conv_layer,
    dense_layer,
    make_layer,
)
from engine.models.onnx_moves import emit_concatenation, emit_mean, pool
from engine.models.onnx_quantization import bias_steps, per_tensor, quantization_of, weights_of, with_scale

if TYPE_CHECKING:
    from engine.models.onnx_build import Workbench
    from engine.models.onnx_file import Node


def qlinear_conv(bench: Workbench, node: Node) -> None:
    """QLinearConv: numbers, weights, result, and a bias in int32."""
    weights = weights_of(bench, node, constant_input(bench, node, 3), 4, 0)
    bias = constant_input(bench, node, 8) if any(node.inputs[8:]) else None
    _finish(bench, node, conv_layer(bench, node, _numbers(bench, node, 0), weights, bias), bias, 6)


def qlinear_dense(bench: Workbench, node: Node) -> None:
    """QLinearMatMul, and QGemm with a bias in int32 before its result."""
    is_gemm = node.op == "QGemm"
    axis = 0 if node.integer("transB", 0) else 1
    weights = weights_of(bench, node, constant_input(bench, node, 3), 4, axis)
    layer = dense_layer(bench, node, _numbers(bench, node, 0), weights)
    bias = constant_input(bench, node, 6) if is_gemm and any(node.inputs[6:7]) else None
    if bias is not None and bias.data.size != layer.shape[-1]:
        raise node.refusal(f"has a bias {bias.data.shape} for {layer.shape[-1]} outputs; export it again")
    _finish(bench, node, layer, bias.reshaped((bias.data.size,)) if bias else None, 7 if is_gemm else 6)


def qlinear_arithmetic(bench: Workbench, node: Node) -> None:
    """QLinearAdd and QLinearMul."""
    operands: list[Value | Constant] = []
    for position in (0, 3):
        known = bench.known(node, position)
        if isinstance(known, Constant):
            operands.append(weights_of(bench, node, known, position + 1, 0))
        else:
            operands.append(_numbers(bench, node, position))
    combine(bench, node, "ADD" if node.op == "QLinearAdd" else "MUL", operands, _end(bench, node, 6))


def qlinear_pool(bench: Workbench, node: Node) -> None:
    """QLinearGlobalAveragePool and QLinearAveragePool."""
    given, end = _numbers(bench, node, 0), _end(bench, node, 3)
    if node.integer("channels_last", 0):
        raise node.refusal("has its channels last; export it with them first")
    if node.op == "QLinearGlobalAveragePool":
        emit_mean(bench, bench.image(node, given), tuple(range(2, len(given.shape))), end, keeps=True)
        return
    pool(bench, replace(node, op="AveragePool"))
    _requantize(bench, end)


def qlinear_concat(bench: Workbench, node: Node) -> None:
    """QLinearConcat: the result's scale and zero-point come first."""
    parts = [_numbers(bench, node, position) for position in range(2, len(node.inputs), 3)]
    emit_concatenation(bench, node, parts, _end(bench, node, 0), node.integer("axis", 1))


def qlinear_activation(bench: Workbench, node: Node) -> None:
    """QLinearSigmoid and QLinearSoftmax, which the engine answers in steps of 1/256."""
    given, end = _numbers(bench, node, 0), _end(bench, node, 3)
    given = bench.plain(given) if node.op == "QLinearSoftmax" else given
    rank = len(given.shape)
    if node.op == "QLinearSoftmax" and node.integer("axis", -1) % max(rank, 1) != rank - 1:
        raise node.refusal("runs over another axis than the last; export it over the last one")
    made = replace(given, tensor=bench.add(f"{end.name} in 256ths", bench.tensor(given).shape, UNIT))
    options = {"beta": 1.0} if node.op == "QLinearSoftmax" else {}
    bench.emit("SOFTMAX" if options else "LOGISTIC", (given.tensor,), (made.tensor,), "NONE", **options)
    bench.values[end.name] = made
    _requantize(bench, end)


def _finish(bench: Workbench, node: Node, layer: Layer, bias: Constant | None, position: int) -> None:
    about, known = bench.quantization(layer.inputs), layer.weights.quantization
    assert about is not None, "int8 numbers have a scale"
    assert known is not None, "int8 weights have a scale"
    check_weights(node, layer)
    steps = bias_steps(node, bias, about, known) if bias else None
    make_layer(bench, replace(layer, bias=steps), _end(bench, node, position), is_real=False)


def _requantize(bench: Workbench, end: Tail) -> None:
    assert end.known is not None, "the operator states its result's scale"
    made = bench.requantized(bench.values[end.name], end.known, end.name)
    bench.values[end.name] = replace(made, is_real=False)


def _numbers(bench: Workbench, node: Node, position: int) -> Value:
    """Return the int8 numbers at `position`, with the scale and zero-point behind them."""
    known = _quantization(bench, node, position + 1)
    return with_scale(bench, node, bench.value(node, position), known)


def _end(bench: Workbench, node: Node, position: int) -> Tail:
    return Tail(node.outputs[0], "NONE", _quantization(bench, node, position))


def _quantization(bench: Workbench, node: Node, position: int) -> Quantization:
    known, _ = quantization_of(bench, node, position)
    return per_tensor(node, known)
