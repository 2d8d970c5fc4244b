"""What a plan's coding costs: the bytes of one update, and this machine's time for reading it. Measured, not guessed.

An update of the plan's size is made up, coded, and read as the coordinator will. Its values lie in rows and columns,
and the signs of a row lean to one side, about as much as in updates of a federation that has run for a while (6 bits
for a place and its sign, where random places need 9): the context coder lives on that. How many bytes random places
would take is told beside it; no update should take more.

Every update is read twice: at the gate, before its receipt, and when its round is summed up. What else an update costs
here (its signature, the store) is some 0.2 ms and the same for every coding.

`example_core_s` measures the other side's work: what a device does for one example, on a core of this machine.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
from msgspec import Struct

from engine import frozen
from engine.codec import payload
from engine.codec.update import Update
from engine.train import Recipe, fine_tune
from wire import envelope, meter, topics
from wire import messages as words

if TYPE_CHECKING:
    from engine.frame import Frame
    from wire.messages import Plan

READS: Final = 2
LEAN: Final = 1.5
MEASURE_S: Final = 0.1  # for each coding
TIMES_MAX: Final = 200
EXAMPLES: Final = 64  # that a training is measured on
EXAMPLE: Final = ("fleet-name", "device-0001")  # names of a usual length


class Cost(Struct, frozen=True):
    """Of one update of a plan."""

    coding: str
    values: int
    payload_bytes: int  # of one whose values lie in rows and columns
    payload_bytes_max: int  # at random places
    around_bytes: int  # what the signature, the message's fields and MQTT add, with the acknowledgement
    read_ms: dict[str, float]  # of one core, for each coding: all readings of one update
    updates_per_s: float  # that one core can read, in the plan's coding


def cost_of(plan: Plan, frame: Frame) -> Cost:
    """Measure: takes a fifth of a second."""
    update = made_up(plan, frame, lean=LEAN)
    coded = {c: payload.encode(update, frame.shapes, value_bits=plan.value_bits, coding=c) for c in _CODINGS}
    worst = payload.encode(made_up(plan, frame, lean=0.0), frame.shapes, value_bits=plan.value_bits, coding=plan.coding)
    sizes = (len(coded[plan.coding].payload), len(worst.payload))
    sealed, sent = _message_bytes(sizes[0])
    if plan.update_bytes_max:  # which then counts the signature, too
        sizes = min(sizes[0], room := max(1, plan.update_bytes_max - sealed + sizes[0])), min(sizes[1], room)
    read_ms: dict[str, float] = {c: READS * _read_ms(coded[c].payload, plan, frame, c) for c in _CODINGS}
    return Cost(plan.coding, plan.keep_count, *sizes, sent, read_ms, 1000.0 / read_ms[plan.coding])


def sentences(cost: Cost) -> list[str]:
    """What an operator reads."""
    others = ", ".join(f"{coding} {ms:.2g} ms" for coding, ms in cost.read_ms.items() if coding != cost.coding)
    size = f"about {cost.payload_bytes} bytes ({cost.payload_bytes_max} at random places)"
    own = f"about {cost.read_ms[cost.coding]:.2g} ms of one core for each update here ({others})"
    return [
        f"An update: at most {cost.values} values, {size}, and {cost.around_bytes} for its signature and MQTT",
        f"Coding {cost.coding}: {own}, so at most {cost.updates_per_s:.0f} a second",
    ]


_CODINGS: Final[tuple[payload.Coding, ...]] = get_args(payload.Coding)


def made_up(plan: Plan, frame: Frame, *, lean: float) -> Update:
    """An update with the plan's number of values: in few rows and columns if `lean` is high, anywhere at 0."""
    chance, count = np.random.default_rng(plan.seed), plan.keep_count
    weights, signs = [], []
    for rows, columns in frame.shapes:
        busy = [np.exp(lean * chance.standard_normal(size)) for size in (rows, columns)]
        weights.append(np.outer(*busy).ravel())
        sides = chance.choice([0.5 + 0.25 * lean, 0.5 - 0.25 * lean], size=rows)
        signs.append(np.where(chance.random((rows, columns)) < sides[:, None], 1, -1).ravel())
    # the first to come of so many, each at its own rate: a draw without replacement
    waits = chance.exponential(size=plan.num_params) / np.concatenate(weights)
    indices = np.sort(np.argpartition(waits, count - 1)[:count]).astype(np.uint32)
    sign = np.concatenate(signs)[indices]
    if frame.lane == "int8":
        units = np.minimum(chance.geometric(0.6, size=count), 100)
        return Update("int8", plan.num_params, indices, (sign * units).astype(np.int32))
    reals = sign * (1.0 + chance.exponential(size=count)) / 64
    return Update("float32", plan.num_params, indices, reals.astype(np.float32))


def example_core_s(plan: Plan, frame: Frame) -> float:
    """How long a core here learns from one example in one epoch, in s. Raises ModelError or TrainingError."""
    shape = frame.graph.tensors[frame.graph.inputs[0]].shape[1:]
    windows = np.zeros((EXAMPLES, *shape), np.float32)
    features = frozen.features(frame.model, frame.graph, frame.suffix, windows)
    recipe = Recipe(1, plan.batch_size, plan.learning_rate, plan.momentum, plan.seed)
    taken = []
    for _ in range(2):  # the first brings the kernels
        began = time.thread_time_ns()
        fine_tune(frame.graph, frame.suffix, features, np.zeros(EXAMPLES, np.int32), recipe)
        taken.append((time.thread_time_ns() - began) / 1e9)
    return min(taken) / EXAMPLES


def _read_ms(data: bytes, plan: Plan, frame: Frame, coding: payload.Coding) -> float:
    taken: list[float] = []
    until = time.monotonic() + MEASURE_S
    while len(taken) < TIMES_MAX and (len(taken) < 2 or time.monotonic() < until):
        began = time.thread_time_ns()
        payload.decode(data, frame.shapes, lane=frame.lane, k_max=plan.keep_count, coding=coding)
        taken.append((time.thread_time_ns() - began) / 1e6)
    return max(statistics.median(taken), 1e-6)


def _message_bytes(payload_bytes: int) -> tuple[int, int]:
    """(bytes of the sealed update, bytes that its PUBLISH and the PUBACK have beyond its payload)."""
    topic = topics.up(*EXAMPLE, "update")
    update = words.Update(1000, 1000, 1000, 1000, 1000, bytes(payload_bytes))
    sealed = envelope.seal(update, topic, lambda _data: bytes(64))
    return len(sealed), meter.publish_bytes(topic, sealed) + meter.PUBACK_BYTES - payload_bytes
