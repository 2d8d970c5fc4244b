"""Local fine-tuning: features, labels and the published parameters in, the device's own parameters out.

The frozen part of a model has already turned samples into features; what trains here is the head, a chain of dense
layers. One call is one round's work on one device: shuffle, forward, loss, backward, step, for some epochs. Momentum
starts at zero in every call and is forgotten afterwards.

The same inputs give the same bits on every processor: all arithmetic is in `engine.kernels` in a fixed order, and the
order of the examples comes from the recipe's seed. Parameters travel flat, float32 [P]: per layer W [outputs][inputs]
row by row, then the bias. While training they lie in one flat vector too, but with W as [inputs][outputs], which is
the layout the kernels are fast in; `_lay_out` and `_hand_back` go between the two.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.kernels.dense import dense_backward, dense_backward_inputs, dense_forward
from engine.kernels.loss import largest_logit, softmax_backward, softmax_forward
from engine.kernels.optimize import all_finite, sgd_step
from engine.kernels.shuffle import shuffle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from engine.models.plan import Head

    Floats = NDArray[np.float32]
    Labels = NDArray[np.int32]

EVALUATION_BATCH = 256


class TrainingError(Exception):
    """Training cannot give a usable result; the message says what is wrong and how to mend it."""


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. `seed` is `mix_seed(plan seed, device, round)`; `learning_rate` is the device's own step."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int


@dataclass(frozen=True)
class Score:
    """How well parameters do on labelled features: right answers, examples, mean cross-entropy in nats."""

    correct: int
    count: int
    loss: float


def mix_seed(plan_seed: int, device_id: str, round_id: int) -> int:
    """Give a seed in [0, 2^64): SHA-256 of the three, so that no two devices or rounds share a shuffle."""
    text = f"{plan_seed}\n{round_id}\n{device_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def fine_tune(features: Floats, labels: Labels, params: Floats, head: Head, recipe: Recipe) -> Floats:
    """Train the head on `features` [n, d] with `labels` int [n], starting at `params` [P].

    Returns:
        New parameters, float32 [P]; `params` is left alone. The update is `local - global`.

    Raises:
        TrainingError: no examples, a recipe or shapes that do not fit, NaN or infinite numbers in or out.
    """
    _check_recipe(recipe)
    features, labels = _check_data(features, labels, head)
    count = len(labels)
    if count == 0:
        raise TrainingError("There is nothing to train on: this device has no labelled samples.")
    net = _lay_out(_check_params(params, head), head, min(recipe.batch_size, count))
    rate, momentum = np.float32(recipe.learning_rate), np.float32(recipe.momentum)
    order = np.arange(count, dtype=np.int64)
    for epoch in range(recipe.epochs):
        shuffle(order, np.uint64(recipe.seed), np.uint64(epoch * count))
        for start in range(0, count, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            if not math.isfinite(_gradient(net, features, labels, chosen)):
                raise _diverged(recipe)
            sgd_step(net.flat, net.velocity, net.grad, rate, momentum)
    local = _hand_back(net)
    if not all_finite(local):
        raise _diverged(recipe)
    return local


def evaluate(features: Floats, labels: Labels, params: Floats, head: Head) -> Score:
    """Score `params` [P] on `features` [n, d] and `labels` int [n]; no examples give Score(0, 0, 0.0).

    Raises:
        TrainingError: shapes that do not fit, or NaN or infinite numbers.
    """
    features, labels = _check_data(features, labels, head)
    correct, loss = 0, 0.0
    answers = np.empty(EVALUATION_BATCH, dtype=np.int32)
    for net, rows in _forward_all(features, params, head):
        size = rows.stop - rows.start
        logits = net.outputs[-1][:size]
        part = softmax_forward(logits, labels[rows], net.probabilities[:size])
        if not math.isfinite(part):
            raise TrainingError("The model's outputs are not finite: its parameters or features are too large.")
        largest_logit(logits, answers[:size])
        correct += int(np.count_nonzero(answers[:size] == labels[rows]))
        loss += float(part)
    count = len(labels)
    return Score(correct, count, loss / count if count else 0.0)


def predict(features: Floats, params: Floats, head: Head) -> Labels:
    """Give the most likely class of each row of `features` [n, d] as int32 [n]; of equals the lowest.

    Raises:
        TrainingError: shapes that do not fit, or NaN or infinite numbers going in.
    """
    features, _ = _check_data(features, np.zeros(len(features), dtype=np.int32), head)
    answers = np.empty(len(features), dtype=np.int32)
    for net, rows in _forward_all(features, params, head):
        largest_logit(net.outputs[-1][: rows.stop - rows.start], answers[rows])
    return answers


@dataclass(frozen=True)
class _Net:
    """A head laid out for training: flat vectors, views of them per layer, and room for one batch."""

    head: Head
    flat: Floats
    grad: Floats
    velocity: Floats
    weights: list[Floats]  # views of flat, [inputs][outputs] per layer
    biases: list[Floats]
    grad_weights: list[Floats]  # views of grad
    grad_biases: list[Floats]
    turned: list[Floats]  # [outputs][inputs] copies for dense_backward_inputs; unused for the first layer
    relu: list[bool]
    batch: Floats
    labels: Labels
    outputs: list[Floats]
    grad_outputs: list[Floats]
    probabilities: NDArray[np.float64]


def _lay_out(params: Floats, head: Head, batch: int) -> _Net:
    flat, grad, velocity = (np.zeros(head.num_params, dtype=np.float32) for _ in range(3))
    net = _Net(
        head=head,
        flat=flat,
        grad=grad,
        velocity=velocity,
        weights=[view for view, _ in _views(flat, head, turned=True)],
        biases=[view for _, view in _views(flat, head, turned=True)],
        grad_weights=[view for view, _ in _views(grad, head, turned=True)],
        grad_biases=[view for _, view in _views(grad, head, turned=True)],
        turned=[np.empty((layer.outputs, layer.inputs), dtype=np.float32) for layer in head.layers[1:]],
        relu=[layer.activation == "RELU" for layer in head.layers],
        batch=np.empty((batch, head.layers[0].inputs), dtype=np.float32),
        labels=np.empty(batch, dtype=np.int32),
        outputs=[np.empty((batch, layer.outputs), dtype=np.float32) for layer in head.layers],
        grad_outputs=[np.empty((batch, layer.outputs), dtype=np.float32) for layer in head.layers],
        probabilities=np.empty((batch, head.layers[-1].outputs), dtype=np.float64),
    )
    for (given, bias), weights, place in zip(_views(params, head, turned=False), net.weights, net.biases, strict=True):
        np.copyto(weights, given.T)
        np.copyto(place, bias)
    return net


def _hand_back(net: _Net) -> Floats:
    params = np.empty_like(net.flat)
    for (place, bias), weights, given in zip(
        _views(params, net.head, turned=False), net.weights, net.biases, strict=True
    ):
        np.copyto(place, weights.T)
        np.copyto(bias, given)
    return params


def _views(flat: Floats, head: Head, *, turned: bool) -> Iterator[tuple[Floats, Floats]]:
    """Give (weights, bias) of each layer as views; `turned` is the training layout [inputs][outputs]."""
    start = 0
    for layer in head.layers:
        middle = start + layer.outputs * layer.inputs
        stop = middle + layer.outputs
        shape = (layer.inputs, layer.outputs) if turned else (layer.outputs, layer.inputs)
        yield flat[start:middle].reshape(shape), flat[middle:stop]
        start = stop


def _forward(net: _Net, size: int) -> None:
    inputs = net.batch[:size]
    for weights, bias, relu, outputs in zip(net.weights, net.biases, net.relu, net.outputs, strict=True):
        dense_forward(inputs, weights, bias, relu, outputs[:size])
        inputs = outputs[:size]


def _gradient(net: _Net, features: Floats, labels: Labels, chosen: NDArray[np.int64]) -> float:
    """Fill net.grad with the gradient of the mean loss over the `chosen` rows; give their summed loss."""
    size = len(chosen)
    # mode="clip" only spares NumPy a copy of `out`; every index is in range
    np.take(features, chosen, axis=0, out=net.batch[:size], mode="clip")
    np.take(labels, chosen, out=net.labels[:size], mode="clip")
    _forward(net, size)
    loss: float = softmax_forward(net.outputs[-1][:size], net.labels[:size], net.probabilities[:size])
    softmax_backward(net.probabilities[:size], net.labels[:size], net.grad_outputs[-1][:size])
    for depth in range(len(net.weights) - 1, -1, -1):
        inputs = net.outputs[depth - 1][:size] if depth else net.batch[:size]
        outputs, grad_outputs = net.outputs[depth][:size], net.grad_outputs[depth][:size]
        dense_backward(inputs, outputs, net.relu[depth], grad_outputs, net.grad_weights[depth], net.grad_biases[depth])
        if depth:
            np.copyto(net.turned[depth - 1], net.weights[depth].T)
            dense_backward_inputs(net.turned[depth - 1], grad_outputs, net.grad_outputs[depth - 1][:size])
    return loss


def _forward_all(features: Floats, params: Floats, head: Head) -> Iterator[tuple[_Net, slice]]:
    """Run the head over all rows, a batch at a time; the outputs of `net` belong to the slice that comes with it."""
    net = _lay_out(_check_params(params, head), head, min(EVALUATION_BATCH, len(features)))
    for start in range(0, len(features), EVALUATION_BATCH):
        rows = slice(start, min(start + EVALUATION_BATCH, len(features)))
        size = rows.stop - rows.start
        np.copyto(net.batch[:size], features[rows])
        _forward(net, size)
        yield net, rows


def _check_recipe(recipe: Recipe) -> None:
    if recipe.epochs < 1 or recipe.batch_size < 1:
        raise TrainingError(
            f"The recipe asks for {recipe.epochs} epochs of batches of {recipe.batch_size}: both must be 1 or more."
        )
    if not (0.0 < recipe.learning_rate < math.inf and 0.0 <= recipe.momentum < 1.0):
        raise TrainingError(
            f"The recipe's learning rate {recipe.learning_rate} must be positive and its momentum "
            f"{recipe.momentum} at least 0 and below 1."
        )
    if not 0 <= recipe.seed < 2**64:
        raise TrainingError("The recipe's seed must be in [0, 2^64): use mix_seed.")


def _check_data(features: Floats, labels: Labels, head: Head) -> tuple[Floats, Labels]:
    width, classes = head.layers[0].inputs, head.layers[-1].outputs
    if features.ndim != 2 or features.shape[1] != width:
        raise TrainingError(f"Features have shape {features.shape}, but the head reads {width} a row.")
    if labels.shape != (len(features),):
        raise TrainingError(f"There are {len(features)} rows of features and labels of shape {labels.shape}.")
    # fresh, writable, contiguous copies: a kernel is compiled once per memory layout, and there shall be one
    features = np.array(features, dtype=np.float32, order="C")
    whole = np.array(labels, dtype=np.int64)
    if len(whole) and (whole.min() < 0 or whole.max() >= classes):
        raise TrainingError(f"A label lies outside 0 .. {classes - 1}: the data belongs to another model.")
    if not all_finite(features.reshape(-1)):
        raise TrainingError("A feature is NaN or infinite: look at the samples or their normalisation.")
    return features, whole.astype(np.int32)


def _check_params(params: Floats, head: Head) -> Floats:
    if params.shape != (head.num_params,):
        raise TrainingError(f"There are parameters of shape {params.shape}, but the head has {head.num_params}.")
    params = np.array(params, dtype=np.float32, order="C")
    if not all_finite(params):
        raise TrainingError("A parameter is NaN or infinite: the model that was received is damaged.")
    return params


def _diverged(recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"Training diverged: parameters became NaN or infinite within {recipe.epochs} epochs at learning rate "
        f"{recipe.learning_rate}. Lower the learning rate or the momentum."
    )
