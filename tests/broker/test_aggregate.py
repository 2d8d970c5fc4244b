"""Every aggregation rule: what all of them promise, in both lanes of numbers, and then what each is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.aggregate.rule import Step, Terms
from broker.aggregate.rules import RULES, AggregateError, Recipe, next_numbers, rule_named
from broker.effects import Pending
from engine import master, ring
from engine.codec import payload as payloads
from engine.codec.update import Update, dense
from engine.models.scheme import load_params
from engine.ring import Member, Purpose, RingError
from tests.engine.test_master import frame

if TYPE_CHECKING:
    from broker.aggregate.rule import Rule

SIZE = 12
LANES = ("float32", "int8")
REAL = np.linspace(0.25, 3.0, SIZE)  # how large a unit is, parameter by parameter
ADAPTIVE = (RULES["fedadam"], RULES["fedyogi"])
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
def several(draw: st.DrawFn) -> tuple[str, list[Member]]:
    lane, *_ = draw(an_update())
    drawn = draw(st.lists(an_update().filter(lambda one: one[0] == lane), min_size=1, max_size=7))
    names = draw(st.permutations([f"device-{at}" for at in range(len(drawn))]))
    return lane, [
        Member((name, 1), made(lane, indices, values), weight)
        for name, (_, indices, values, weight) in zip(names, drawn, strict=True)
    ]


def empty(rule: Rule, lane: str, round_id: int = 7) -> Any:
    return rule.init(Purpose(SIZE, lane, round_id, 6, 1, rule.needs_dense))


def finish(rule: Rule, state: Any, learning_rate: float = 1.0, carried: bytes = b"") -> Step:
    return rule.finish(state, Terms(learning_rate, REAL, carried))


def fold(rule: Rule, lane: str, members: list[Member], carried: bytes = b"") -> Step:
    return finish(rule, rule.add(empty(rule, lane), members), carried=carried)


def same(one: Step, other: Step) -> bool:
    return (one.numbers.tobytes(), one.carried) == (other.numbers.tobytes(), other.carried)


def remembered(rule: Rule, lane: str) -> bytes:
    """What a rule carries on from a round before."""
    before = [Member(("elm", 6), made(lane, [1, 4, 9], [3, -2, 1]), 5), Member(("fen", 6), made(lane, [4], [2]), 9)]
    return fold(rule, lane, before).carried


@all_rules
@settings(deadline=None, max_examples=30)
@given(updates=several(), order=st.randoms(use_true_random=False), late=st.booleans())
def test_the_order_of_updates_changes_nothing(rule: Rule, updates, order, late: bool) -> None:
    lane, members = updates
    carried = remembered(rule, lane) if late else b""
    shuffled = list(members)
    order.shuffle(shuffled)
    assert same(fold(rule, lane, shuffled, carried), fold(rule, lane, members, carried))


@all_rules
@settings(deadline=None, max_examples=30)
@given(updates=several(), cut=st.integers(0, 8))
def test_what_was_gathered_apart_joins_to_the_same(rule: Rule, updates, cut: int) -> None:
    lane, members = updates
    one, other = (rule.add(empty(rule, lane), part) for part in (members[:cut], members[cut:]))
    whole = fold(rule, lane, members)
    assert same(finish(rule, rule.merge(one, other)), whole)
    assert same(finish(rule, rule.merge(other, one)), whole)
    assert same(finish(rule, rule.merge(rule.merge(one, empty(rule, lane)), other)), whole)


@all_rules
@settings(deadline=None, max_examples=30)
@given(updates=several())
def test_one_update_alone_is_itself(rule: Rule, updates) -> None:
    lane, members = updates
    step = fold(rule, lane, members[:1]).numbers
    alone = dense(members[0].update)
    if rule in ADAPTIVE:
        assert np.array_equal(np.sign(np.rint(step * 2**20)), np.sign(np.rint(step * 2**20) * (alone != 0)))
        assert (step * alone >= 0).all()
    else:
        assert np.abs(step - alone).max() <= (2**-29 if lane == LANES[0] else 0)


@all_rules
@both_lanes
def test_adding_one_by_one_is_adding_all_and_leaves_the_state_alone(rule: Rule, lane: str) -> None:
    members = [Member((f"device-{at}", 1), made(lane, [at], [1]), at + 1) for at in range(3)]
    before = empty(rule, lane)
    state = before
    for member in members:
        state = rule.add(state, [member])
    assert same(finish(rule, state), fold(rule, lane, members))
    assert same(finish(rule, rule.add(before, members)), fold(rule, lane, members))


@all_rules
@both_lanes
def test_the_learning_rate_scales_the_step_and_not_what_is_remembered(rule: Rule, lane: str) -> None:
    members = [Member(("cabin", 1), made(lane, [3], [2]), 9), Member(("dune", 1), made(lane, [3], [2]), 9)]
    state, carried = rule.add(empty(rule, lane), members), remembered(rule, lane)
    whole, quarter = finish(rule, state, 1.0, carried), finish(rule, state, 0.25, carried)
    np.testing.assert_allclose(quarter.numbers, whole.numbers / 4, rtol=1e-12)
    assert quarter.carried == whole.carried
    with pytest.raises(RingError, match="not finite"):
        finish(rule, state, float("nan"))


@all_rules
@both_lanes
def test_nobody_counts_twice_and_nothing_foreign_is_joined(rule: Rule, lane: str) -> None:
    cabin, dune = (Member((name, 1), made(lane, [3], [2]), 9) for name in ("cabin", "dune"))
    state = rule.add(empty(rule, lane), [cabin])
    with pytest.raises(RingError, match="cabin's update of round 1 is in the sum already"):
        rule.add(state, [dune, cabin])
    with pytest.raises(RingError, match="is in both sums"):
        rule.merge(state, rule.add(empty(rule, lane), [dune, cabin]))
    with pytest.raises(RingError, match="different purposes"):
        rule.merge(state, rule.add(empty(rule, lane, round_id=8), [dune]))
    with pytest.raises(RingError, match="does not belong"):
        rule.add(state, [Member(("dune", 1), made(LANES[lane == LANES[0]], [3], [2]), 9)])
    with pytest.raises(RingError, match="closed empty"):
        finish(rule, empty(rule, lane))


@all_rules
@both_lanes
def test_a_rule_says_whether_it_takes_the_sums_of_others(rule: Rule, lane: str) -> None:
    purpose = Purpose(SIZE, lane, 7, 6, 1, rule.needs_dense)
    pair = [Member((name, 1), made(lane, [3], [2]), 9) for name in ("cabin", "dune")]
    mine = rule.add(rule.init(purpose), [Member(("elm", 1), made(lane, [5], [4]), 9)])
    theirs = ring.add_all(ring.empty(purpose), pair)
    if rule.takes_sums:
        assert same(finish(rule, rule.merge(mine, theirs)), finish(rule, rule.add(mine, pair)))
    else:
        with pytest.raises(RingError, match="a sum of 2 updates hides each of them"):
            rule.merge(mine, theirs)


@all_rules
@both_lanes
def test_what_a_rule_remembers_is_bounded_and_another_rules_memory_is_none(rule: Rule, lane: str) -> None:
    members = [Member(("cabin", 1), made(lane, [3, 5], [2, 1]), 9), Member(("dune", 1), made(lane, [4], [2]), 9)]
    carried = remembered(rule, lane)
    assert len(carried) <= 4 + 8 * SIZE
    begun = fold(rule, lane, members)
    assert (not same(fold(rule, lane, members, carried), begun)) == bool(carried)
    for other in (b"what?" + bytes(4 * SIZE), carried[:-4], carried + bytes(4)):
        assert same(fold(rule, lane, members, other if other[:4] != b"" else b"x"), begun)


@all_rules
@both_lanes
def test_a_fleet_that_agrees_gets_what_it_agrees_on(rule: Rule, lane: str) -> None:
    """Ten times the same, dense: no rule may take it for an attack."""
    value = made(lane, list(range(SIZE)), [2] * SIZE)
    step = fold(rule, lane, [Member((f"device-{at}", 1), value, 7) for at in range(10)]).numbers
    if rule not in ADAPTIVE:
        np.testing.assert_allclose(step, np.full(SIZE, 2.0), rtol=1e-12)


SPARSE_PLAN = Purpose(SIZE, "float32")


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "mixed-trimmed-mean"])
def test_a_rule_that_ranks_parameters_refuses_updates_that_lack_most_of_them_and_says_why(name: str) -> None:
    rule = RULES[name]
    state = rule.add(rule.init(SPARSE_PLAN), [Member(("cabin", 1), made("float32", [3], [2]), 9)])
    with pytest.raises(RingError, match="with 1 % sent the median moves nothing"):
        finish(rule, state)


def test_the_median_of_sparse_updates_would_move_nothing() -> None:
    """Why it is refused: the same updates, as if what was not sent were 0."""
    members = [Member((f"device-{at}", 1), made("float32", [at], [2]), 9) for at in range(SIZE)]
    assert not fold(RULES["median"], "float32", members).numbers.any()
    assert fold(RULES["fedavg"], "float32", members).numbers.all()


ALMOST_ALL = [name for name in RULES if name not in ("fedavg", "fedavgm", "fedadam", "fedyogi")]


@pytest.mark.parametrize("name", ALMOST_ALL)
@both_lanes
def test_one_liar_among_ten_is_not_followed(name: str, lane: str) -> None:
    """The honest agree but for a little; the liar sends a hundred times the opposite."""
    rule, chance = RULES[name], np.random.default_rng(1)
    honest = [made(lane, list(range(SIZE)), list(np.rint(2 + chance.uniform(-1, 1, SIZE)))) for _ in range(9)]
    honest = [Update(each.lane, SIZE, each.indices, np.where(each.values == 0, 1, each.values)) for each in honest]
    liar = made(lane, list(range(SIZE)), [-60 if lane == LANES[0] else -200] * SIZE)
    updates = [liar, *honest]
    members = [Member((f"device-{at}", 1), update, 9) for at, update in enumerate(updates)]
    step = fold(rule, lane, members).numbers
    assert (step > 0.5).all(), "the fleet goes where the nine go"
    assert (fold(RULES["fedavg"], lane, members).numbers < 0).all()


@both_lanes
def test_the_default_does_not_believe_who_claims_to_know_more_than_all_others(lane: str) -> None:
    """Weights are what devices say of themselves: nine with 5 to 9 examples, and one with 4,096."""
    honest = [made(lane, [0, 1, at + 2], [2, 3, 1]) for at in range(9)]
    liar = made(lane, [0, 1, SIZE - 1], [3, 2, -3])
    members = [Member((f"device-{at}", 1), update, 5 + at % 5) for at, update in enumerate(honest)]
    steps = [
        fold(RULES["guarded"], lane, [*members, Member(("liar", 1), liar, weight)]).numbers for weight in (7, 4_096)
    ]
    assert np.array_equal(*steps)
    assert fold(RULES["fedavg"], lane, [*members, Member(("liar", 1), liar, 4_096)]).numbers[SIZE - 1] < -2.9
    light = fold(RULES["guarded"], lane, [*members, Member(("liar", 1), liar, 1)]).numbers
    assert abs(light[SIZE - 1]) < abs(steps[0][SIZE - 1]) < 0.5


def test_fedavgm_goes_on_where_it_was_going() -> None:
    rule = RULES["fedavgm"]
    one = [Member(("cabin", 1), made("int8", [3], [10]), 9)]
    first = fold(rule, "int8", one)
    second = fold(rule, "int8", one, first.carried)
    assert (first.numbers[3], second.numbers[3]) == (10.0, pytest.approx(19.0))


def test_fedadam_and_fedyogi_are_the_papers_formulas() -> None:
    """Reddi et al. 2021, algorithm 2, two rounds, in real numbers, one parameter."""
    for name, yogi in (("fedadam", False), ("fedyogi", True)):
        m = v = 0.0
        carried = b""
        for value in (0.5, -2.0):
            step = fold(RULES[name], "float32", [Member(("cabin", 1), made("float32", [3], [value]), 9)], carried)
            mean = value * REAL[3]
            m = 0.9 * m + 0.1 * mean
            v = v - 0.01 * mean**2 * np.sign(v - mean**2) if yogi else 0.99 * v + 0.01 * mean**2
            assert step.numbers[3] * REAL[3] == pytest.approx(m / (np.sqrt(v) + 0.001), rel=1e-5)
            carried = step.carried


def test_the_default_remembers_its_course_in_real_numbers_whatever_the_scales() -> None:
    """A new scale epoch doubles what a step is worth; the course stays."""
    rule = RULES["guarded"]
    members = [Member((name, 1), made("int8", [3, at], [8, 2]), 9) for at, name in enumerate(("cabin", "dune"))]
    carried = fold(rule, "int8", members).carried
    state = rule.add(empty(rule, "int8"), members[:1])
    halved = [Member(("cabin", 1), made("int8", [0, 3], [1, 4]), 9)]
    old = rule.finish(state, Terms(1.0, REAL, carried))
    new = rule.finish(rule.add(empty(rule, "int8"), halved), Terms(1.0, REAL * 2, carried))
    np.testing.assert_allclose(new.numbers * 2, old.numbers, rtol=1e-9)
    assert new.carried == old.carried


CABIN_AND_DUNE = (Pending("cabin", 1, 1, 30), Pending("dune", 1, 1, 10))


def payload_of(device_id: str, _round_id: int) -> bytes:
    return coded(made("float32", [{"cabin": 0, "dune": 1, "elm": 2}[device_id]], [0.5]), 8)


def steps_of(device_id: str, _round_id: int) -> bytes:
    return coded(made("int8", [{"cabin": 0, "dune": 1}[device_id], SIZE - 1], [2, -3]), 0)


def sum_of(frame, before, read, rate, members=CABIN_AND_DUNE, *, most=SIZE):
    return next_numbers(frame, before, members, read, Recipe(RULES["fedavg"], rate, most))


def test_the_next_parameters_of_a_float_model_are_the_last_ones_and_the_weighted_mean() -> None:
    before = master.first(FLOATS, np.arange(SIZE, dtype=np.float32))
    numbers, _, _ = sum_of(FLOATS, before, payload_of, 1.0)
    after = np.frombuffer(numbers.published, "<f4")
    assert list(after[:3]) == [0.375, 1.125, 2.0]
    assert list(after[3:]) == list(range(3, SIZE))


def test_the_next_numbers_of_an_int8_model_are_the_master_and_the_weighted_mean_of_steps() -> None:
    numbers = master.first(INTEGERS, np.arange(SIZE, dtype=np.int32))
    numbers, held, _ = sum_of(INTEGERS, numbers, steps_of, 0.5)
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
    after, _, _ = sum_of(INTEGERS, numbers, steps_of, 1.0, most=1)
    assert load_params(INTEGERS.suffix, after.published).tolist() == [*range(SIZE - 1), SIZE - 1 - 3 * 32]


def test_a_rule_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(AggregateError, match=r"'mean'; known: bucketed-.*, fedavg, "):
        rule_named("mean")
