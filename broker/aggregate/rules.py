"""The registry of aggregation rules, and the one way to use them: stored updates in, the next parameters out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.aggregate.fedavg import FEDAVG
from engine import master
from engine.codec import payload
from engine.codec.header import CodecError
from engine.models.graph import ModelError
from engine.ring import RingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.aggregate.rule import Rule
    from broker.effects import Pending
    from engine.codec.update import Update
    from engine.frame import Frame
    from engine.master import Advanced, Numbers

RULES: Final[dict[str, Rule]] = {"fedavg": FEDAVG}


class AggregateError(Exception):
    """No parameters come of these updates. A sentence."""


def rule_named(name: str) -> Rule:
    """The rule of this name; AggregateError with those that exist."""
    if name not in RULES:
        raise AggregateError(f"there is no aggregation rule {name!r}; known: {', '.join(sorted(RULES))}")
    return RULES[name]


def next_numbers(
    frame: Frame,
    before: Numbers,
    members: Sequence[Pending],
    payload_of: Callable[[str, int], bytes],
    *,
    rule: Rule,
    learning_rate: float,
    publish_max: int,
) -> Advanced:
    """Add the step that `rule` makes of the members' updates to a version's numbers; see engine.master.advance.

    `payload_of` (device_id, round_id) is asked for one payload at a time: memory does not grow with the members.
    Raises AggregateError when an update cannot be read or added, or when the result is not finite.
    """
    size = frame.suffix.num_params

    def read() -> Iterator[tuple[Update, int]]:
        for member in members:
            content = payload_of(member.device_id, member.round_id)
            # each was admitted by its own round's plan, and a late one's may have allowed more than this round's
            yield payload.decode(content, frame.shapes, lane=frame.lane, k_max=size, coding="context"), member.weight

    try:
        step = rule.finish(rule.add(rule.init(size, frame.lane), read()), learning_rate)
        return master.advance(frame, before, step, publish_max=publish_max)
    except (CodecError, RingError, ModelError) as error:
        raise AggregateError(str(error)) from error
