"""Every aggregation rule: the order of updates and their grouping change not a byte, and one update is itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.aggregate.rules import RULES, AggregateError, next_params, rule_named
from broker.effects import Pending
from engine.codec import sparse
from engine.codec.sparse import Sparse

if TYPE_CHECKING:
    from broker.aggregate.rule import Rule

SIZE = 12
all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


@st.composite
def an_update(draw: st.DrawFn) -> tuple[Sparse, int]:
    indices = sorted(draw(st.sets(st.integers(0, SIZE - 1))))
    values = [draw(st.floats(-64, 64, width=32)) for _ in indices]
    decoded = Sparse(SIZE, np.array(indices, np.uint32), np.array(values, np.float32))
    return decoded, draw(st.integers(1, 4096))


updates = st.lists(an_update(), min_size=1, max_size=6)


def fold(rule: Rule, members: list[tuple[Sparse, int]], learning_rate: float = 1.0) -> bytes:
    return rule.finish(rule.add(rule.init(SIZE), members), learning_rate).tobytes()


@all_rules
@settings(deadline=None)
@given(members=updates, order=st.randoms(use_true_random=False))
def test_the_order_of_updates_changes_nothing(rule: Rule, members: list[tuple[Sparse, int]], order) -> None:
    shuffled = list(members)
    order.shuffle(shuffled)
    assert fold(rule, shuffled) == fold(rule, members)


@all_rules
@settings(deadline=None)
@given(members=updates, cut=st.integers(0, 6))
def test_sums_that_were_made_apart_join_to_the_same(rule: Rule, members: list[tuple[Sparse, int]], cut: int) -> None:
    parts = [rule.add(rule.init(SIZE), part) for part in (members[:cut], members[cut:])]
    assert rule.finish(rule.merge(parts[0], parts[1]), 1.0).tobytes() == fold(rule, members)
    assert rule.finish(rule.merge(parts[1], parts[0]), 1.0).tobytes() == fold(rule, members)


@all_rules
@settings(deadline=None)
@given(member=an_update())
def test_one_update_alone_is_itself(rule: Rule, member: tuple[Sparse, int]) -> None:
    step = rule.finish(rule.add(rule.init(SIZE), [member]), 1.0)
    assert np.abs(step - sparse.dense(member[0])).max() <= 2**-30


@all_rules
def test_adding_one_by_one_is_adding_all_and_leaves_the_state_alone(rule: Rule) -> None:
    members = [(Sparse(SIZE, np.array([at], np.uint32), np.array([0.5], np.float32)), at + 1) for at in range(3)]
    empty = rule.init(SIZE)
    state = empty
    for member in members:
        state = rule.add(state, [member])
    assert rule.finish(state, 1.0).tobytes() == fold(rule, members)
    assert rule.finish(rule.add(empty, members), 1.0).tobytes() == fold(rule, members)


@all_rules
def test_the_learning_rate_scales_the_step(rule: Rule) -> None:
    member = (Sparse(SIZE, np.array([3], np.uint32), np.array([0.5], np.float32)), 9)
    step = rule.finish(rule.add(rule.init(SIZE), [member]), 0.25)
    assert step[3] == 0.125
    assert np.count_nonzero(step) == 1


def payload_of(device_id: str, _round_id: int) -> bytes:
    vector = np.zeros(SIZE, np.float32)
    vector[{"cabin": 0, "dune": 1, "elm": 2}[device_id]] = 0.5
    return sparse.compress(vector, 1, 8)[0]


def test_the_next_parameters_are_the_last_ones_and_the_weighted_mean() -> None:
    members = (Pending("cabin", 1, 1, 30), Pending("dune", 1, 1, 10))
    before = np.arange(SIZE, dtype="<f4")
    after = np.frombuffer(next_params(before.tobytes(), members, payload_of, RULES["fedavg"], 1.0), "<f4")
    assert list(after[:3]) == [0.375, 1.125, 2.0]
    assert list(after[3:]) == list(before[3:])


@pytest.mark.parametrize(
    ("payload", "before", "sentence"),
    [(b"no update", 0.0, "format"), (None, np.inf, "not finite")],
)
def test_what_gives_no_parameters_is_a_sentence(payload: bytes | None, before: float, sentence: str) -> None:
    base = np.full(SIZE, before, "<f4").tobytes()

    def read(device_id: str, round_id: int) -> bytes:
        return payload or payload_of(device_id, round_id)

    with pytest.raises(AggregateError, match=sentence):
        next_params(base, (Pending("cabin", 1, 1, 1),), read, RULES["fedavg"], 1.0)


def test_a_rule_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(AggregateError, match="'mean'; known: fedavg"):
        rule_named("mean")
