"""Every aggregation rule: the order of updates and their grouping change not a byte, and one update is itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.aggregate.rules import RULES, AggregateError, next_numbers, rule_named
from broker.effects import Pending
from engine import master
from engine.codec import payload as payloads
from engine.codec.update import Update, dense
from engine.models.scheme import load_params
from tests.engine.test_master import frame

if TYPE_CHECKING:
    from broker.aggregate.rule import Rule

SIZE = 12
LANES = ("float32", "int8")
FLOATS, INTEGERS = frame(SIZE, 0, lane="float32"), frame(SIZE - 2, 2, unit=32)
all_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
both_lanes = pytest.mark.parametrize("lane", LANES)


def made(lane: str, indices: list[int], values: list[float]) -> Update:
    at = np.array(indices, np.uint32)
    return Update(lane, SIZE, at, np.array(values, np.float32 if lane == LANES[0] else np.int32))


def coded(update: Update, value_bits: int) -> bytes:
    shapes = FLOATS.shapes if update.lane == "float32" else INTEGERS.shapes
    return payloads.encode(update, shapes, value_bits=value_bits, coding="context").payload


@st.composite
def an_update(draw: st.DrawFn) -> tuple[str, list[int], list[float], int]:
    lane = draw(st.sampled_from(LANES))
    indices = sorted(draw(st.sets(st.integers(0, SIZE - 1))))
    value = st.floats(-64, 64, width=32) if lane == LANES[0] else st.integers(-254, 254).filter(bool)
    return lane, indices, [draw(value) for _ in indices], draw(st.integers(1, 4096))


@st.composite
def several(draw: st.DrawFn) -> tuple[str, list[tuple[Update, int]]]:
    lane, *_ = draw(an_update())
    drawn = draw(st.lists(an_update().filter(lambda one: one[0] == lane), min_size=1, max_size=5))
    return lane, [(made(lane, indices, values), weight) for _, indices, values, weight in drawn]


def fold(rule: Rule, lane: str, members: list[tuple[Update, int]], learning_rate: float = 1.0) -> bytes:
    return rule.finish(rule.add(rule.init(SIZE, lane), members), learning_rate).tobytes()


@all_rules
@settings(deadline=None)
@given(updates=several(), order=st.randoms(use_true_random=False))
def test_the_order_of_updates_changes_nothing(rule: Rule, updates, order) -> None:
    lane, members = updates
    shuffled = list(members)
    order.shuffle(shuffled)
    assert fold(rule, lane, shuffled) == fold(rule, lane, members)


@all_rules
@settings(deadline=None)
@given(updates=several(), cut=st.integers(0, 6))
def test_sums_that_were_made_apart_join_to_the_same(rule: Rule, updates, cut: int) -> None:
    lane, members = updates
    parts = [rule.add(rule.init(SIZE, lane), part) for part in (members[:cut], members[cut:])]
    assert rule.finish(rule.merge(parts[0], parts[1]), 1.0).tobytes() == fold(rule, lane, members)
    assert rule.finish(rule.merge(parts[1], parts[0]), 1.0).tobytes() == fold(rule, lane, members)


@all_rules
@settings(deadline=None)
@given(updates=several())
def test_one_update_alone_is_itself(rule: Rule, updates) -> None:
    lane, members = updates
    step = rule.finish(rule.add(rule.init(SIZE, lane), members[:1]), 1.0)
    assert np.abs(step - dense(members[0][0])).max() <= (2**-30 if lane == LANES[0] else 0)


@all_rules
@both_lanes
def test_adding_one_by_one_is_adding_all_and_leaves_the_state_alone(rule: Rule, lane: str) -> None:
    members = [(made(lane, [at], [1]), at + 1) for at in range(3)]
    empty = rule.init(SIZE, lane)
    state = empty
    for member in members:
        state = rule.add(state, [member])
    assert rule.finish(state, 1.0).tobytes() == fold(rule, lane, members)
    assert rule.finish(rule.add(empty, members), 1.0).tobytes() == fold(rule, lane, members)


@all_rules
@both_lanes
def test_the_learning_rate_scales_the_step(rule: Rule, lane: str) -> None:
    step = rule.finish(rule.add(rule.init(SIZE, lane), [(made(lane, [3], [2]), 9)]), 0.25)
    assert step[3] == 0.5
    assert np.count_nonzero(step) == 1


CABIN_AND_DUNE = (Pending("cabin", 1, 1, 30), Pending("dune", 1, 1, 10))


def payload_of(device_id: str, _round_id: int) -> bytes:
    return coded(made("float32", [{"cabin": 0, "dune": 1, "elm": 2}[device_id]], [0.5]), 8)


def steps_of(device_id: str, _round_id: int) -> bytes:
    return coded(made("int8", [{"cabin": 0, "dune": 1}[device_id], SIZE - 1], [2, -3]), 0)


def sum_of(frame, before, read, rate, members=CABIN_AND_DUNE, *, most=SIZE):
    return next_numbers(frame, before, members, read, rule=RULES["fedavg"], learning_rate=rate, publish_max=most)


def test_the_next_parameters_of_a_float_model_are_the_last_ones_and_the_weighted_mean() -> None:
    before = master.first(FLOATS, np.arange(SIZE, dtype=np.float32))
    numbers, _ = sum_of(FLOATS, before, payload_of, 1.0)
    after = np.frombuffer(numbers.published, "<f4")
    assert list(after[:3]) == [0.375, 1.125, 2.0]
    assert list(after[3:]) == list(range(3, SIZE))


def test_the_next_numbers_of_an_int8_model_are_the_master_and_the_weighted_mean_of_steps() -> None:
    numbers = master.first(INTEGERS, np.arange(SIZE, dtype=np.int32))
    numbers, held = sum_of(INTEGERS, numbers, steps_of, 0.5)
    whole = master.read(INTEGERS, numbers) / 65536
    assert list(whole) == [0.75, 1.25, *range(2, SIZE - 1), SIZE - 1 - 0.5 * 3 * 32]
    assert load_params(INTEGERS.suffix, numbers.published).tolist() == [1, 1, *range(2, SIZE - 1), SIZE - 1 - 32]
    assert held == 0


@pytest.mark.parametrize(
    ("payload", "before", "rate", "sentence"),
    [
        (b"no update", 0.0, 1.0, "format"),
        (None, 3e38, 1e38, "not finite"),
        (None, 0.0, 1e39, "not finite"),
        (None, 0.0, float("nan"), "not finite"),
        (coded(made("int8", [1], [1]), 0), 0.0, 1.0, "belongs to another plan"),
    ],
)
def test_what_gives_no_parameters_is_a_sentence(
    payload: bytes | None, before: float, rate: float, sentence: str
) -> None:
    base = master.first(FLOATS, np.full(SIZE, before, np.float32))

    def read(device_id: str, round_id: int) -> bytes:
        return payload or payload_of(device_id, round_id)

    with pytest.raises(AggregateError, match=sentence):
        sum_of(FLOATS, base, read, rate, (Pending("cabin", 1, 1, 1),))


def test_a_version_changes_no_more_parameters_than_it_may() -> None:
    numbers = master.first(INTEGERS, np.arange(SIZE, dtype=np.int32))
    after, _ = sum_of(INTEGERS, numbers, steps_of, 1.0, most=1)
    assert load_params(INTEGERS.suffix, after.published).tolist() == [*range(SIZE - 1), SIZE - 1 - 3 * 32]


def test_a_rule_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(AggregateError, match="'mean'; known: fedavg"):
        rule_named("mean")
