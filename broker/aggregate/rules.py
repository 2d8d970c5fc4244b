"""The registry of aggregation rules, and the one way to use them: stored updates in, the next parameters out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from broker.aggregate.centered_clipping import CENTERED_CLIPPING, clipping
from broker.aggregate.comparing import bucketed, comparing, mixed
from broker.aggregate.fedavg import FEDAVG
from broker.aggregate.fedavgm import FEDAVGM
from broker.aggregate.fedopt import FEDADAM, FEDYOGI
from broker.aggregate.geometric_median import geometric_median
from broker.aggregate.guarded import GUARDED
from broker.aggregate.krum import krum, multi_krum
from broker.aggregate.norm_bound import norm_bound
from broker.aggregate.ranked import MEDIAN, MIXED_TRIMMED_MEAN, TRIMMED_MEAN
from broker.aggregate.reading import members_of
from broker.aggregate.rule import Terms
from engine import master
from engine.codec.header import CodecError
from engine.models.graph import ModelError
from engine.ring import Purpose, RingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from broker.aggregate.rule import Rule
    from broker.effects import Pending
    from broker.estimates import Estimates
    from engine.frame import Frame
    from engine.master import Numbers

_COMPARING: Final = {
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
    "norm-bound": norm_bound,
}
_BEHIND: Final = {**_COMPARING, "centered-clipping": clipping}  # what may follow on mixing or buckets
RULES: Final[dict[str, Rule]] = {
    "guarded": GUARDED,
    "fedavg": FEDAVG,
    "fedavgm": FEDAVGM,
    "fedadam": FEDADAM,
    "fedyogi": FEDYOGI,
    "centered-clipping": CENTERED_CLIPPING,
    **{name: comparing(factors) for name, factors in _COMPARING.items()},
    **{f"mixed-{name}": comparing(mixed(factors)) for name, factors in _BEHIND.items()},
    **{f"bucketed-{name}": comparing(bucketed(factors)) for name, factors in _BEHIND.items()},
    "median": MEDIAN,
    "trimmed-mean": TRIMMED_MEAN,
    "mixed-trimmed-mean": MIXED_TRIMMED_MEAN,
}


class AggregateError(Exception):
    """No parameters come of these updates. A sentence."""


class Recipe(NamedTuple):
    """How updates become the next numbers, and for what."""

    rule: Rule
    learning_rate: float
    publish_max: int  # of the published parameters so many may change; see engine.master.advance
    round_id: int = 0  # that closes
    base_version: int = 0  # to which the step is added
    scale_epoch: int = 0
    dense: bool = False  # see engine.ring.Purpose


class Made(NamedTuple):
    """The next numbers, how many weights were held in the int8 range, and what the rule wants to remember."""

    numbers: Numbers
    held_count: int
    rule_state: bytes


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
    recipe: Recipe,
    *,
    rule_state: bytes = b"",
    estimates: Estimates | None = None,
) -> Made:
    """Add the step that the rule makes of the members' updates to a version's numbers; see engine.master.advance.

    `payload_of` (device_id, round_id) is asked for one payload at a time: where the rule only adds, memory does not
    grow with the members. `rule_state` is what the rule remembered with the version before; `estimates` what is held of
    each device, where a plan of lane hardened was ever told.
    Raises AggregateError when an update cannot be read or added, or when the result is not finite.
    """
    size, rule = frame.suffix.num_params, recipe.rule
    closing = recipe.round_id, recipe.base_version, recipe.scale_epoch, recipe.dense
    purpose = Purpose(size, frame.lane, *closing)

    try:
        terms = Terms(recipe.learning_rate, real_steps(frame), rule_state)
        added = rule.add(rule.init(purpose), members_of(frame, members, payload_of, estimates))
        step = rule.finish(added, terms)
        advanced = master.advance(frame, before, step.numbers, publish_max=recipe.publish_max)
        return Made(advanced.numbers, advanced.held_count, step.carried)
    except (CodecError, RingError, ModelError) as error:
        raise AggregateError(str(error)) from error


def real_steps(frame: Frame) -> NDArray[np.float64]:
    """How large one unit of an update is in real numbers, float64 [P]: 1 in lane 'float32'."""
    if frame.lane == "float32":
        return np.ones(frame.suffix.num_params)
    real: NDArray[np.float64] = frame.unit.astype(np.float64) * frame.scale.astype(np.float64)
    return real
