"""A standard model to measure machines with: MLPerf Tiny's ResNet-8 for 32x32 pictures, int8, with made-up weights.

Its operators, shapes and quantisation are those of the reference file (Banbury et al. 2021, arXiv:2106.07597), so a
step costs what it costs there; it knows nothing. It exists as a graph only and needs no file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.models.graph import Graph, Operator, Tensor

SAME, VALID = 0, 1
WEIGHT_SCALE = 0.003
ACTIVATION_SCALE = 0.06
CLASSES = 10


class _Maker:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._chance = np.random.default_rng(8)

    def tensor(self, shape: tuple[int, ...], dtype: str, scale: Any, zero_point: int, data: Any = None) -> int:
        scales = np.atleast_1d(np.asarray(scale, np.float32))
        zeros = np.full(len(scales), zero_point, np.int64)
        index = len(self.tensors)
        self.tensors.append(Tensor(index, f"tensor {index}", shape, dtype, scales, zeros, 0, data))
        return index

    def add(self, kind: str, inputs: tuple[int, ...], output: int, activation: str, options: dict[str, int]) -> int:
        self.operators.append(Operator(len(self.operators), kind, inputs, (output,), activation, options))
        return output

    def activation(self, shape: tuple[int, ...], *, relu: bool) -> int:
        return self.tensor((1, *shape), "int8", ACTIVATION_SCALE, -128 if relu else 0)

    def constants(self, shape: tuple[int, ...], scale_in: float) -> tuple[int, int]:
        scale = np.full(shape[0], WEIGHT_SCALE, np.float32)
        weights = self.tensor(shape, "int8", scale, 0, self._chance.integers(-127, 128, shape).astype(np.int8))
        bias = self.tensor(shape[:1], "int32", scale * np.float32(scale_in), 0, np.zeros(shape[0], np.int32))
        return weights, bias

    def conv(self, entering: int, outputs: int, window: int, stride: int, activation: str) -> int:
        _, height, width, channels = self.tensors[entering].shape
        constants = self.constants((outputs, window, window, channels), float(self.tensors[entering].scale[0]))
        leaving = self.activation((-(-height // stride), -(-width // stride), outputs), relu=activation == "RELU")
        options: dict[str, int] = {"padding": SAME, "stride_height": stride, "stride_width": stride}
        options |= {"dilation_height": 1, "dilation_width": 1}
        return self.add("CONV_2D", (entering, *constants), leaving, activation, options)

    def unit(self, entering: int, outputs: int, stride: int) -> int:
        """A residual unit: two 3x3 convolutions beside the input, or beside a 1x1 convolution of it."""
        inside = self.conv(self.conv(entering, outputs, 3, stride, "RELU"), outputs, 3, 1, "NONE")
        beside = entering if stride == 1 else self.conv(entering, outputs, 1, stride, "NONE")
        leaving = self.activation(self.tensors[inside].shape[1:], relu=True)
        return self.add("ADD", (beside, inside), leaving, "RELU", {})


def resnet8() -> Graph:
    """The graph: 32x32x3 in, ten logits and their SOFTMAX out, 78 thousand params, 12.5 M multiplications."""
    made = _Maker()
    entering = made.tensor((1, 32, 32, 3), "int8", 1.0, -128)
    value = made.conv(entering, 16, 3, 1, "RELU")
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        value = made.unit(value, outputs, stride)
    pooled = made.activation((1, 1, 64), relu=True)
    options = {"padding": VALID, "stride_height": 8, "stride_width": 8, "filter_height": 8, "filter_width": 8}
    made.add("AVERAGE_POOL_2D", (value,), pooled, "NONE", options)
    shape = made.tensor((2,), "int32", [], 0, np.array([-1, 64], np.int32))
    flat = made.add("RESHAPE", (pooled, shape), made.activation((64,), relu=True), "NONE", {})
    logits = made.tensor((1, CLASSES), "int8", ACTIVATION_SCALE, 0)
    options = {"weights_format": 0, "keep_dimensions": 0}
    made.add("FULLY_CONNECTED", (flat, *made.constants((CLASSES, 64), ACTIVATION_SCALE)), logits, "NONE", options)
    answer = made.tensor((1, CLASSES), "int8", 1.0 / 256.0, -128)
    made.add("SOFTMAX", (logits,), answer, "NONE", {})
    return Graph(tuple(made.tensors), tuple(made.operators), (entering,), (answer,))
