"""PyTorch as a peer: eager autograd and its own SGD, in the layout named by VARIANT (`nchw` or `nhwc`).

The frozen part runs without gradients, as its users would do it.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from network import Layer, Network


def main(path: str, first: int, variant: str) -> None:
    """Measure one network in one mode and layout."""
    began = time.process_time()
    import torch

    import_s = time.process_time() - began
    import network

    torch.set_num_threads(1)
    net = network.load(path, first)
    form = torch.channels_last if variant == "nhwc" else torch.contiguous_format
    params = {layer.operator: _params(torch, layer, form) for layer in net.layers if layer.weights is not None}
    trained = [array for operator, pair in params.items() if operator >= first for array in pair]
    for array in trained:
        array.requires_grad_()
    optimizer = torch.optim.SGD(trained, lr=net.rate)
    x = torch.from_numpy(net.x)
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=form) if x.ndim == 4 else x
    y = torch.from_numpy(net.y).long() if net.classes else torch.from_numpy(net.y)
    lose = torch.nn.functional.cross_entropy if net.classes else torch.nn.functional.mse_loss

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = lose(_forward(torch, net, params, x, first), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    network.report(import_s, step, cpu=torch.backends.cpu.get_cpu_capability())


def _params(torch: Any, layer: Layer, form: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as PyTorch has them: [O, C, KH, KW], depthwise [C, 1, KH, KW], dense [O, I]."""
    order = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}[layer.kind]
    weights = torch.from_numpy(layer.weights.transpose(order).copy())
    return weights.contiguous(memory_format=form) if weights.ndim == 4 else weights, torch.from_numpy(layer.bias)


def _forward(torch: Any, net: Network, params: dict[int, Any], x: torch.Tensor, first: int) -> torch.Tensor:
    tensors = {net.entering: x}
    for layer in net.layers:
        with torch.set_grad_enabled(layer.operator >= first):
            y = _apply(torch.nn.functional, layer, params, [tensors[number] for number in layer.inputs])
            tensors[layer.output] = torch.nn.functional.relu(y) if layer.relu else y
    return tensors[net.answer]


def _apply(functional: Any, layer: Layer, params: dict[int, Any], inputs: list[torch.Tensor]) -> torch.Tensor:
    x, (top, bottom, left, right) = inputs[0], layer.pads
    match layer.kind:
        case "CONV_2D" | "DEPTHWISE_CONV_2D":
            weights, bias = params[layer.operator]
            groups = weights.shape[0] if layer.kind == "DEPTHWISE_CONV_2D" else 1
            if (top, left) != (bottom, right):
                x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
            return functional.conv2d(x, weights, bias, layer.strides, (top, left), 1, groups)
        case "FULLY_CONNECTED":
            return functional.linear(x, *params[layer.operator])
        case "ADD":
            return x + inputs[1]
        case "AVERAGE_POOL_2D":
            return functional.avg_pool2d(x, layer.window, layer.strides)
        case "RESHAPE":
            return x.flatten(1)
    raise ValueError(f"operator {layer.operator}: {layer.kind} has no PyTorch form here; add one to pytorch.py.")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
