"""The product's rules over 100 sparse updates, as the coordinator gets them: what `benchmarks/aggregate.py` measures.

Each carries 1 % of 1,000,000 parameters at random places in float values of four bits; the payloads are Golomb-Rice
coded. "decoded" reads the payloads first; the others begin with updates that were read before.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Final

import numpy as np

from broker.aggregate.rule import Terms
from broker.aggregate.rules import RULES
from engine.codec import payload
from engine.codec.update import Update
from engine.ring import Member, Purpose

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.aggregate.rule import Step

UPDATES: Final = 100
SIZE: Final = 1_000_000
KEPT: Final = 10_000
SHAPES: Final = ((1_000, 1_000),)
PURPOSE: Final = Purpose(SIZE, "float32")


@cache
def payloads() -> list[bytes]:
    """What 100 devices send."""
    chance = np.random.default_rng(1)
    made = []
    for _ in range(UPDATES):
        at = np.sort(chance.choice(SIZE, KEPT, replace=False)).astype(np.uint32)
        update = Update("float32", SIZE, at, chance.standard_t(3, KEPT).astype(np.float32))
        made.append(payload.encode(update, SHAPES, value_bits=4, coding="rice").payload)
    return made


def read() -> list[Member]:
    """Decode them all."""
    return [
        Member((f"device-{at:03}", 1), payload.decode(data, SHAPES, lane="float32", k_max=KEPT, coding="rice"), 40)
        for at, data in enumerate(payloads())
    ]


members = cache(read)


@cache
def _real() -> np.ndarray:
    return np.ones(SIZE)


def step(name: str, source: Callable[[], list[Member]]) -> Step:
    """One round's step by a rule of this name."""
    rule = RULES[name]
    return rule.finish(rule.add(rule.init(PURPOSE), source()), Terms(1.0, _real()))


CASES: Final[dict[str, Callable[[], object]]] = {
    "mean, sparse 1 %": partial(step, "fedavg", members),
    "mean, sparse 1 %, decoded": partial(step, "fedavg", read),
    "guarded, sparse 1 %": partial(step, "guarded", members),
    "centered clipping, sparse 1 %": partial(step, "centered-clipping", members),
    "krum, sparse 1 %": partial(step, "krum", members),
    "geometric median, sparse 1 %": partial(step, "geometric-median", members),
}
