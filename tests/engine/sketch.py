"""Small models drawn by hand, so that a test needs no file."""

import math

import numpy as np

from engine.models.graph import ABSENT, Graph, Operator, Tensor


class Sketch:
    """Draws a graph operator by operator; every method returns the tensor it makes."""

    def __init__(self, shape, lane="int8", seed=0):
        self.lane, self.tensors, self.operators = lane, [], []
        self.rng = np.random.default_rng(seed)
        self.entering = self.tensor(shape)

    def tensor(self, shape, data=None, dtype=None, scale=(0.25,), axis=0):
        dtype = dtype or self.lane
        scaled = dtype in {"int8", "int32"} and self.lane == "int8"
        scale = np.array(scale if scaled else (), np.float32)
        index = len(self.tensors)
        zeros = np.zeros(len(scale), np.int64)
        self.tensors.append(Tensor(index, f"t{index}", tuple(shape), dtype, scale, zeros, axis, data))
        return index

    def operator(self, kind, inputs, shape, activation="NONE", **options):
        leaving = self.tensor(shape)
        self.operators.append(Operator(len(self.operators), kind, tuple(inputs), (leaving,), activation, options))
        return leaving

    def weights(self, shape, axis, outputs):
        scale = np.exp2(self.rng.integers(-9, -3, outputs)).astype(np.float32)
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        if self.lane == "float32":
            data = (data / 128).astype(np.float32)
        bias = self.rng.integers(-9999, 9999, outputs).astype("int32" if self.lane == "int8" else "float32")
        return [
            self.tensor(shape, data, scale=scale, axis=axis),
            self.tensor((outputs,), bias, str(bias.dtype), scale=scale * 0.25),
        ]

    def conv(self, x, outputs, size=3, stride=1, activation="RELU", **options):
        height, width, channels = self.tensors[x].shape[1:]
        shape = (1, -(-height // stride), -(-width // stride), outputs)
        strides = {"padding": 0, "stride_height": stride, "stride_width": stride}
        given_ = [x, *self.weights((outputs, size, size, channels), 0, outputs)]
        return self.operator("CONV_2D", given_, shape, activation, **strides, **options)

    def depthwise(self, x, activation="RELU"):
        shape = self.tensors[x].shape
        given_ = [x, *self.weights((1, 3, 3, shape[3]), 3, shape[3])]
        return self.operator("DEPTHWISE_CONV_2D", given_, shape, activation, padding=0, stride_height=1, stride_width=1)

    def dense(self, x, outputs, activation="NONE", *, bias=True):
        given_ = [x, *self.weights((outputs, math.prod(self.tensors[x].shape)), 0, outputs)]
        return self.operator("FULLY_CONNECTED", given_ if bias else [*given_[:2], ABSENT], (1, outputs), activation)

    def mean(self, x):
        axes = self.tensor((2,), np.array([1, 2], np.int32), "int32")
        return self.operator("MEAN", [x, axes], (1, self.tensors[x].shape[3]))

    def same(self, kind, *inputs, activation="NONE", **options):
        return self.operator(kind, inputs, self.tensors[inputs[0]].shape, activation, **options)

    def graph(self, answer):
        return Graph(tuple(self.tensors), tuple(self.operators), (self.entering,), (answer,))


def residual_net(lane="int8"):
    """conv 0 | conv 1, conv 2, ADD 3 | dw 4, pw 5 | MEAN 6, dense 7, SOFTMAX 8."""
    sketch = Sketch((1, 6, 6, 3), lane)
    x = sketch.conv(sketch.entering, 8)
    y = sketch.conv(sketch.conv(x, 8), 8, activation="NONE")
    x = sketch.same("ADD", x, y, activation="RELU")
    x = sketch.conv(sketch.depthwise(x), 16, size=1)
    return sketch.graph(sketch.same("SOFTMAX", sketch.dense(sketch.mean(x), 4)))
