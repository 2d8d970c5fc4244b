"""The registry of aggregation rules, and the one way to use them: stored updates in, the next parameters out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from broker.aggregate.fedavg import FEDAVG
from engine.codec import sparse
from engine.ring import RingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.aggregate.rule import Rule
    from broker.effects import Pending
    from engine.codec.sparse import Sparse

RULES: Final[dict[str, Rule]] = {"fedavg": FEDAVG}


class AggregateError(Exception):
    """No parameters come of these updates. A sentence."""


def rule_named(name: str) -> Rule:
    """The rule of this name; AggregateError with those that exist."""
    if name not in RULES:
        raise AggregateError(f"there is no aggregation rule {name!r}; known: {', '.join(sorted(RULES))}")
    return RULES[name]


def next_params(
    params: bytes,
    members: Sequence[Pending],
    payload_of: Callable[[str, int], bytes],
    rule: Rule,
    learning_rate: float,
) -> bytes:
    """Add the step that `rule` makes of the members' updates to `params` (little-endian float32 [P]).

    `payload_of` (device_id, round_id) is asked for one payload at a time: memory does not grow with the members.
    Raises AggregateError when an update cannot be read or added, or when the result is not finite.
    """
    before = np.frombuffer(params, dtype="<f4")

    def read() -> Iterator[tuple[Sparse, int]]:
        for member in members:
            payload = payload_of(member.device_id, member.round_id)
            yield sparse.decode(payload, size=len(before), k_max=len(before)), member.weight

    try:
        step = rule.finish(rule.add(rule.init(len(before)), read()), learning_rate)
    except (sparse.CodecError, RingError) as error:
        raise AggregateError(str(error)) from error
    after = (before + step).astype("<f4")
    if not np.isfinite(after).all():
        raise AggregateError("the next parameters are not finite: the learning rate is too large, or an update is")
    return after.tobytes()
