"""The table of lanes: each of its refusals is told, with its reason, and nothing else is."""

from __future__ import annotations

import pytest

from broker.lanes import LANES, CreditWords, PlanWords, PrivacyWords, Wish, contradictions, lanes_built

UNBUILT = "not built yet"


def refused(wish: Wish) -> set[str]:
    """What can never be, in short."""
    return {told.what for told in contradictions(wish) if told.why != UNBUILT}


def unbuilt(wish: Wish) -> set[str]:
    return {told.where for told in contradictions(wish) if told.why == UNBUILT}


MASKED = "a masked sum of updates whose support each device chooses"
NOISED = "distributed differential privacy on a support that each device chooses"
RANKED = "a rule that ranks each parameter, on updates that carry a part of them"
CREDITED = "credits for each device out of a masked sum"
BUFFERED = "privacy amplified by Poisson sampling, in buffered rounds"
UNSAMPLED = "privacy amplified by Poisson sampling, where nobody is sampled"


def test_the_default_contradicts_nothing_and_all_of_it_is_built() -> None:
    assert contradictions(Wish()) == []
    assert "economy" in lanes_built()
    assert set(lanes_built()) <= set(LANES)


@pytest.mark.parametrize(
    ("wish", "what"),
    [
        (Wish(plan=PlanWords(masked_sum=True)), {MASKED}),
        (Wish(plan=PlanWords(lane="private", support="own-top-k")), {MASKED}),
        (Wish(plan=PlanWords(lane="private")), set()),
        (Wish(plan=PlanWords(masked_sum=True), carries_all=True), set()),
        (Wish(privacy=PrivacyWords(dp="distributed")), {NOISED}),
        (Wish(privacy=PrivacyWords(dp="central")), set()),
        (Wish(plan=PlanWords(support="random-k"), privacy=PrivacyWords(dp="distributed")), set()),
        (Wish(rule_ranks=True), {RANKED}),
        (Wish(rule_ranks=True, carries_all=True), set()),
        (Wish(plan=PlanWords(lane="hardened"), rule_ranks=True), set()),
        (Wish(credits=CreditWords(per_device=True)), set()),
        (Wish(plan=PlanWords(lane="private"), credits=CreditWords(per_device=True)), {CREDITED}),
        (Wish(privacy=PrivacyWords(accounting="poisson")), {BUFFERED}),
        (Wish(privacy=PrivacyWords(accounting="poisson"), mode="synchronous"), {UNSAMPLED}),
        (Wish(privacy=PrivacyWords(accounting="poisson"), mode="synchronous", cohort_max=5), set()),
        (Wish(privacy=PrivacyWords(accounting="every-round")), set()),
        (
            Wish(
                plan=PlanWords(masked_sum=True),
                privacy=PrivacyWords(dp="distributed", accounting="poisson"),
                credits=CreditWords(per_device=True),
                rule_ranks=True,
            ),
            {MASKED, NOISED, RANKED, CREDITED, BUFFERED},
        ),
    ],
)
def test_what_no_lane_can_do_is_told_and_nothing_else(wish: Wish, what: set[str]) -> None:
    assert refused(wish) == what


@pytest.mark.parametrize(
    ("wish", "where"),
    [
        (Wish(plan=PlanWords(lane="private")), "[plan] lane"),
        (Wish(plan=PlanWords(support="trainable-subset")), "[plan] support"),
        (Wish(plan=PlanWords(masked_sum=True), carries_all=True), "[plan] masked_sum"),
        (Wish(privacy=PrivacyWords(noise_multiplier=1.1)), "[privacy]"),
        (Wish(credits=CreditWords(per_device=True)), "[credits] per_device"),
    ],
)
def test_what_could_be_and_is_not_built_is_no_promise(wish: Wish, where: str) -> None:
    assert unbuilt(wish) == {where}


def test_every_sentence_says_what_where_why_and_how_to_mend_it_on_one_line() -> None:
    wish = Wish(plan=PlanWords(masked_sum=True), privacy=PrivacyWords(dp="distributed"), rule_ranks=True)
    for told in contradictions(wish):
        assert str(told).startswith(told.where)
        assert all((told.what, told.why, told.mend))
        assert "\n" not in str(told)
