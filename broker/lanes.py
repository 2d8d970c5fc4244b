"""The lanes of a plan, and what contradicts itself in any of them. Pure: a wish goes in, sentences come out.

A lane is a choice that holds together: who chooses which parameters an update carries (its support), what keeps it
private, and by which rule updates become one. Lanes are never mixed, because the halves of two lanes do not fit: a sum
of masked updates needs one support for all, a rule that ranks each parameter needs a value of it from every device.

The words of all three lanes are known here, also where nothing is built behind them yet, so that who asks for them
hears whether it could ever be, and not that a word is misspelt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args, get_type_hints

from msgspec import Struct

from wire.messages import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

LaneName: TypeAlias = Literal["economy", "hardened", "private"]
Support: TypeAlias = Literal["own-top-k", "trainable-subset", "random-k"]
Privacy: TypeAlias = Literal["central", "distributed"]
Accounting: TypeAlias = Literal["poisson", "every-round"]


class Lane(Struct, frozen=True):
    """One line of the table: what a lane stands for."""

    support: Support
    values: str
    privacy: str
    rule: str
    masked_sum: bool = False
    dense_state: bool = False  # the coordinator keeps every parameter of every device


LANES: Final[dict[LaneName, Lane]] = {
    "economy": Lane(
        support="own-top-k",
        values="1 to 4 bit, or an int8 model's whole steps",
        privacy="TLS and signatures",
        rule="norms bounded, devices compared as wholes",
    ),
    "hardened": Lane(
        support="own-top-k",
        values="4 bit",
        privacy="TLS and signatures",
        rule="each parameter ranked, on what the coordinator keeps of every device",
        dense_state=True,
    ),
    "private": Lane(
        support="random-k",
        values="8 bit in a ring of 16 to 32 bit",
        privacy="a masked sum and distributed differential privacy",
        rule="devices clip, sums of buckets are compared",
        masked_sum=True,
    ),
}


def lanes_built() -> tuple[str, ...]:
    """The lanes that a plan on the wire can name, of those in the table."""
    return tuple(name for name in get_args(get_type_hints(Plan)["lane"]) if name in LANES)


class PlanWords(Struct, frozen=True, forbid_unknown_fields=True):
    """Of section [plan]: words of the lanes."""

    lane: LaneName = "economy"
    support: Support | None = None  # the lane's own
    masked_sum: bool | None = None  # the lane's own


class PrivacyWords(Struct, frozen=True, forbid_unknown_fields=True):
    """Section [privacy]: differential privacy, and how what it costs is accounted."""

    dp: Privacy | None = None
    accounting: Accounting | None = None
    noise_multiplier: float | None = None
    dp_epsilon: float | None = None
    dp_delta: float | None = None


class CreditWords(Struct, frozen=True, forbid_unknown_fields=True):
    """Section [credits]: what devices earn by taking part."""

    per_device: bool = False


RESERVED: Final[dict[str, type[Struct]]] = {"plan": PlanWords, "privacy": PrivacyWords, "credits": CreditWords}


class Contradiction(Struct, frozen=True):
    """What cannot be, where it is asked for, why not, and how to mend it."""

    what: str
    where: str  # the sections and keys, as in: [plan] lane, [aggregate] rule
    why: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.why}; {self.mend}"


class Wish(Struct, frozen=True):
    """What of a configuration the lanes speak of."""

    plan: PlanWords = PlanWords()
    privacy: PrivacyWords = PrivacyWords()
    credits: CreditWords = CreditWords()
    rule: str = ""
    rule_ranks: bool = False  # parameter by parameter, so that it wants each from every device
    carries_all: bool = False  # an update carries every parameter: no support is chosen
    mode: Literal["buffered", "synchronous"] = "buffered"
    cohort_max: int = 0

    @property
    def lane(self) -> Lane:
        """The line of the table."""
        return LANES[self.plan.lane]

    @property
    def chooses(self) -> bool:
        """Does each device choose the parameters that its update carries?"""
        support = self.plan.support or self.lane.support
        return support == "own-top-k" and not self.carries_all

    @property
    def is_masked(self) -> bool:
        """Does the coordinator see the sum of updates alone?"""
        return self.lane.masked_sum if self.plan.masked_sum is None else self.plan.masked_sum

    @property
    def shares_noise(self) -> bool:
        """Does each device add its part of the noise?"""
        return self.privacy.dp == "distributed"


def contradictions(wish: Wish) -> list[Contradiction]:
    """Everything in `wish` that no lane can do, and then everything that none does yet."""
    return [told for applies, told in _REFUSED if applies(wish)] + _unbuilt(wish)


_REFUSED: Final[tuple[tuple[Callable[[Wish], bool], Contradiction], ...]] = (
    (
        lambda wish: wish.chooses and wish.is_masked,
        Contradiction(
            "a masked sum of updates whose support each device chooses",
            "[plan] lane, support, masked_sum",
            "masks cancel only where all devices send the same parameters, and the places that one chooses are its own",
            'let support be "trainable-subset" or "random-k", or masked_sum false',
        ),
    ),
    (
        lambda wish: wish.chooses and wish.shares_noise,
        Contradiction(
            "distributed differential privacy on a support that each device chooses",
            "[plan] support, [privacy] dp",
            "which places a device chooses tells of its data, and no noise on the values hides that",
            'let support be "trainable-subset" or "random-k", or dp "central"',
        ),
    ),
    (
        lambda wish: wish.rule_ranks and wish.chooses and not wish.lane.dense_state,
        Contradiction(
            "a rule that ranks each parameter, on updates that carry a part of them",
            "[plan] keep_rate, update_bytes_max, [aggregate] rule",
            "of updates that carry a hundredth nearly every median is 0, and the model unlearns (0.93 to 0.15)",
            'take one that compares devices ("guarded"), or lane "hardened", or keep_rate 1 and update_bytes_max 0',
        ),
    ),
    (
        lambda wish: wish.credits.per_device and wish.is_masked,
        Contradiction(
            "credits for each device out of a masked sum",
            "[credits] per_device, [plan] lane, masked_sum",
            "whoever sees the sum alone cannot tell what one device added to it",
            "let per_device be false, or masked_sum",
        ),
    ),
    (
        lambda wish: wish.privacy.accounting == "poisson" and wish.mode == "buffered",
        Contradiction(
            "privacy amplified by Poisson sampling, in buffered rounds",
            "[privacy] accounting, [round] mode",
            "devices choose when they come, by a coin that anyone can throw again: no secret chance draws them",
            'let accounting be "every-round"',
        ),
    ),
    (
        lambda wish: wish.privacy.accounting == "poisson" and wish.mode != "buffered" and not wish.cohort_max,
        Contradiction(
            "privacy amplified by Poisson sampling, where nobody is sampled",
            "[privacy] accounting, [round] cohort_max",
            "with cohort_max = 0 everyone who is there takes part",
            'let accounting be "every-round", or set cohort_max',
        ),
    ),
)


def _unbuilt(wish: Wish) -> list[Contradiction]:
    """What the wish asks for that could be, and is not built yet."""
    built, lane = lanes_built(), wish.plan.lane
    asked = {
        "[plan] lane": lane not in built and f"the lane {lane!r}",
        "[plan] support": wish.plan.support not in (None, "own-top-k") and f"the support {wish.plan.support!r}",
        "[plan] masked_sum": bool(wish.plan.masked_sum) and "a masked sum",
        "[privacy]": wish.privacy != PrivacyWords() and "differential privacy",
        "[credits] per_device": wish.credits.per_device and "credits",
    }
    lanes = " or ".join(f'"{name}"' for name in built)
    mend = {"[plan] lane": f"let lane be {lanes}"}
    return [
        Contradiction(str(what), where, "not built yet", mend.get(where, "leave it out"))
        for where, what in asked.items()
        if what
    ]
