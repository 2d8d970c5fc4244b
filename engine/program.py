"""A model, or a stretch of it, as a program of kernel calls: to run it, and to train its end.

`Runner` runs operators forward on our own kernels, for int8 models with exactly the numbers of the TFLite reference
kernels. `Training` holds the trainable part of a model while it learns: forward as deployed, the loss, and the way
back, where every layer takes its step as soon as its gradient is formed. Both are recorded first (`engine/tape.py`),
so that their memory is one arena whose size is known before anything runs: `memory_of` gives it to whoever plans.

While training, a last layer without activation hands its real numbers to the loss, before they are rounded to int8:
the deployed answer is their rounding, and a logit at the end of its range still learns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import int8
from engine.kernels.layout import dequantize_int8
from engine.kernels.loss import mse_backward, mse_forward, softmax_backward, softmax_forward
from engine.kernels.pointwise import gate_bits, gate_float, gate_int8, pack_bits_int8
from engine.layers import needs_input
from engine.models.graph import ModelError
from engine.models.shapes import check_shapes
from engine.operators import OPERATORS
from engine.recording import Descent, Recording, downstream, flat, operators_between
from engine.tape import Arena, Room, Tape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from engine.models.graph import Graph, Operator
    from engine.models.scheme import Suffix


class Runner:
    """Runs the operators from index `first` on that `wanted` needs, forward, on batches of up to `batch` windows.

    `entering` is the tensor that goes in (the model's input, or what enters a cut), as stored: int8 or float32.
    Raises ModelError, naming the operator, for a model that our kernels cannot run.
    """

    def __init__(
        self, graph: Graph, wanted: int, *, first: int = 0, entering: int | None = None, batch: int = 16
    ) -> None:
        self.entering = graph.inputs[0] if entering is None else entering
        recording, self._source = _begin(graph, operators_between(graph, first, wanted), self.entering)
        for operator in recording.operators:
            _forward(recording, operator)
        self._answer = recording.value(wanted)
        recording.tape.touch(self._answer, len(recording.tape.calls))
        self._shape = graph.tensors[wanted].shape[1:]
        self._arena = Arena(recording.tape, batch)
        self._calls: dict[int, list[Callable[[], Any]]] = {}

    @property
    def num_bytes(self) -> int:
        """How much memory it holds."""
        return self._arena.num_bytes

    def __call__(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Give the wanted tensor for windows [n, ...], as stored, [n, ...]."""
        parts = [np.empty((0, *self._shape), self._answer.dtype)]
        for start in range(0, len(stored), self._arena.batch):
            part = stored[start : start + self._arena.batch]
            source = self._arena.array(self._source, len(part))
            np.copyto(source, part.reshape(source.shape), casting="no")
            if len(part) not in self._calls:
                self._calls[len(part)] = self._arena.bound(len(part), int)
            for call in self._calls[len(part)]:
                call()
            parts.append(self._arena.array(self._answer, len(part)).reshape(len(part), *self._shape).copy())
        return np.concatenate(parts)


class Training:
    """The trainable part of a model while it learns, on batches of up to `batch` examples.

    `graph` is the file's; its constants are copied, and `changed` hands them back. `regression` chooses the loss:
    the mean squared error to float32 targets, else cross-entropy to class labels. `seed` is that of the rounding.
    """

    def __init__(
        self, graph: Graph, suffix: Suffix, descent: Descent, *, batch: int, seed: int, regression: bool = False
    ) -> None:
        self._recording, self._source, rooms = _record(graph, suffix, descent, regression=regression)
        self._logits, self._targets, self._loss_at = rooms
        self._arena = Arena(self._recording.tape, batch)
        self._suffix, self._seed, self._steps = suffix, seed, 0
        self._calls: dict[int, list[Callable[[], Any]]] = {}

    @property
    def num_bytes(self) -> int:
        """How much memory it holds; `memory_of` says the same beforehand."""
        return self._arena.num_bytes

    @property
    def saturated(self) -> int:
        """How many times so far an int8 weight wanted to leave [-127, 127]."""
        return int(self._tally()[0])

    @property
    def classes(self) -> int:
        """How many numbers the model answers with."""
        return self._logits.shape[-1]

    def step(self, features: NDArray[Any], targets: NDArray[Any], chosen: NDArray[np.int64]) -> float:
        """Learn from the rows `chosen` of `features` and `targets`; give their summed loss before the step.

        A loss that is not finite stops the step before anything has changed.
        """
        count = len(chosen)
        # mode="clip" only spares NumPy a copy of `out`; every index is in range
        source = self._arena.array(self._source, count)
        np.take(features, chosen, axis=0, out=source.reshape(count, *features.shape[1:]), mode="clip")
        np.take(targets, chosen, axis=0, out=self._arena.array(self._targets, count), mode="clip")
        if count not in self._calls:
            self._calls[count] = self._arena.bound(count, self._key)
        calls = self._calls[count]
        for call in calls[: self._loss_at]:
            call()
        loss = float(calls[self._loss_at]())
        if math.isfinite(loss):
            for call in calls[self._loss_at + 1 :]:
                call()
            self._steps += 1
        return loss

    def changed(self) -> dict[int, NDArray[Any]]:
        """Show the weights and biases that train, by tensor, in the file's shape, where they stand now."""
        graph, arrays = self._recording.graph, {}
        for layer in self._suffix.layers:
            wanted = [layer.weights] * (layer.channels is not None) + [layer.bias] * bool(layer.num_bias)
            for index in wanted:
                room = self._recording.params[index]
                arrays[index] = self._arena.array(room).reshape(graph.tensors[index].shape)
        return arrays

    def mean_gradient(self) -> NDArray[np.float32]:
        """Give the mean over all steps of the gradient before it was corrected, of real numbers: float32 [P]."""
        assert self._recording.totals, "gradients are summed where a descent corrects them"
        mean = np.zeros(self._suffix.num_params, np.float32)
        for part, total in self._recording.totals:
            part.take_back(self._arena.array(total) / np.float32(max(self._steps, 1)), mean)
        return mean

    def is_sound(self) -> bool:
        """Whether every step was a number."""
        return int(self._tally()[1]) == 0

    def _tally(self) -> NDArray[np.int64]:
        assert self._recording.tally is not None, "a training counts"
        return self._arena.array(self._recording.tally)

    def _key(self, tensor: int) -> np.uint64:
        return np.uint64(int8.tensor_key(self._seed, self._steps, tensor))


def memory_of(
    graph: Graph, suffix: Suffix, batch: int, momentum: float = 0.0, *, proximal: float = 0.0, corrects: bool = False
) -> int:
    """Give the bytes of the arena in which `suffix` trains with batches of `batch`: what `Training` will hold."""
    correction = np.zeros(suffix.num_params, np.float32) if corrects else None
    recording, _, _ = _record(graph, suffix, Descent(1.0, momentum, proximal, correction), regression=False)
    return recording.tape.places(batch)[1]


def _begin(graph: Graph, operators: Iterable[Operator], entering: int) -> tuple[Recording, Room]:
    recording = Recording(graph, Tape(), tuple(operators))
    for operator in recording.operators:
        if operator.kind not in OPERATORS or len(operator.outputs) != 1:
            name = graph.tensors[operator.outputs[0]].name if operator.outputs else ""
            raise ModelError(f"operator {operator.index} ({operator.kind}, {name!r}) is not one that our kernels know")
        check_shapes(graph, operator)
    return recording, recording.make(entering)


def _forward(recording: Recording, operator: Operator) -> None:
    OPERATORS[operator.kind].forward(recording, operator)


def _record(
    graph: Graph, suffix: Suffix, descent: Descent, *, regression: bool
) -> tuple[Recording, Room, tuple[Room, Room, int]]:
    """Record forward, loss and the way back; give the source's room, and (logits, targets, the loss's call)."""
    recording, source = _begin(graph, operators_between(graph, suffix.cut, suffix.answer), suffix.entering)
    recording.layers = {layer.operator: layer for layer in suffix.layers}
    recording.descent = descent
    recording.tally = recording.table("tally", np.zeros(2, np.int64))
    recording.flowing = downstream(recording.operators, set(recording.layers))
    last = recording.operators[-1]
    if last.kind in {"CONV_2D", "FULLY_CONNECTED"} and last.activation == "NONE":
        recording.real_answer = suffix.answer
    recording.kept = _kept(recording)
    for operator in recording.operators:
        _forward(recording, operator)
        _keep_gate(recording, operator)
    targets = _record_loss(recording, suffix.answer, regression=regression)
    for operator in reversed(recording.operators):
        if recording.flows(operator.outputs[0]):
            _pass_gate(recording, operator)
            OPERATORS[operator.kind].backward(recording, operator)
    return recording, source, targets


def _record_loss(recording: Recording, answer: int, *, regression: bool) -> tuple[Room, Room, int]:
    """Record the loss and its gradient with respect to the answer."""
    tape, value = recording.tape, recording.value(answer)
    real = value
    if value.dtype == np.int8:
        scale, zero = recording.quantization(answer)
        real = tape.room("logits", value.shape, np.float32, batched=True)
        tape.call(dequantize_int8, flat(value), zero, scale, flat(real))
    width = math.prod(real.shape)
    logits, (gradient, _) = real.seen_as((width,)), recording.give(answer)
    if regression:
        targets = tape.room("targets", (width,), np.float32, batched=True)
        loss_at = tape.call(mse_forward, logits, targets)
        tape.call(mse_backward, logits, targets, gradient.seen_as((width,)))
    else:
        targets = tape.room("targets", (), np.int32, batched=True)
        probabilities = tape.room("probabilities", (width,), np.float64, batched=True)
        loss_at = tape.call(softmax_forward, logits, targets, probabilities)
        tape.call(softmax_backward, probabilities, targets, gradient.seen_as((width,)))
    tape.touch(targets, 0)
    return logits, targets, loss_at


def _kept(recording: Recording) -> frozenset[int]:
    """Give the tensors whose values the way back reads; where only a clamp matters a bit for each entry is kept."""
    kept: set[int] = set()
    for operator in reversed(recording.operators):
        if operator.kind == "RESHAPE" and operator.outputs[0] in kept:
            kept.add(operator.inputs[0])
        if not recording.flows(operator.outputs[0]):
            continue
        keeps = OPERATORS[operator.kind].keeps
        if keeps == "layer" and needs_input(recording, operator):
            kept.add(operator.inputs[0])
        if keeps in {"input and output", "inputs"} and any(recording.flows(index) for index in operator.inputs):
            kept.update(operator.inputs if keeps == "inputs" else operator.inputs[:1])
        if keeps in {"input and output", "output"}:
            kept.add(operator.outputs[0])
    return frozenset(kept)


def _clamps(recording: Recording, operator: Operator) -> bool:
    output = operator.outputs[0]
    if output == recording.real_answer or not recording.flows(output):
        return False
    return operator.activation != "NONE" or (recording.is_int8(output) and OPERATORS[operator.kind].clamps)


def _keep_gate(recording: Recording, operator: Operator) -> None:
    """Where nobody keeps an int8 output for longer, keep one bit for each of its entries."""
    output = operator.outputs[0]
    if not _clamps(recording, operator) or output in recording.kept or not recording.is_int8(output):
        return
    room = recording.values[output]
    bits = recording.tape.room("bits", ((math.prod(room.shape) + 7) // 8,), np.uint8, batched=True)
    recording.tape.call(pack_bits_int8, flat(room), *recording.range_of(operator), bits)
    recording.bits[output] = bits


def _pass_gate(recording: Recording, operator: Operator) -> None:
    """Stop the gradient where the operator clamped."""
    output = operator.outputs[0]
    if not _clamps(recording, operator):
        return
    gradient = recording.grad(output)
    if output in recording.bits:
        recording.tape.call(gate_bits, recording.bits[output], flat(gradient))
    else:
        gate = gate_int8 if recording.is_int8(output) else gate_float
        recording.tape.call(gate, flat(recording.values[output]), *recording.range_of(operator), flat(gradient))
