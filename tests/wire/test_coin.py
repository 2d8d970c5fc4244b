"""The coin of a buffered round: the same for everyone who throws it, blind, and fair."""

from __future__ import annotations

import hashlib

import pytest

from wire import coin
from wire.limits import COIN_SIDES
from wire.messages import Offer, digest_of

NONCE = bytes(range(16))
DEVICES = [f"pi-{index}" for index in range(4_000)]


def offer(draw: int = COIN_SIDES, jitter_ms: int = 0, round_id: int = 7, nonce: bytes = NONCE) -> Offer:
    return Offer(round_id, digest_of(b"plan"), 3, 60_000, nonce, draw, jitter_ms)


def drawn(draw: int, **changes: object) -> set[str]:
    return {name for name in DEVICES if coin.wait_ms(offer(draw, **changes), "barn", name) is not None}


def test_the_coin_is_what_the_page_says() -> None:
    """printf 'hedgerow/coin/barn/7/pi-07/\\x00…\\x0f' | sha256sum, the first four bytes."""
    text = b"hedgerow/coin/barn/7/pi-07/" + NONCE
    assert coin.side("barn", 7, NONCE, "pi-07") == int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
    assert coin.side("barn", 7, NONCE, "pi-07") == 2_376_285_897  # for ever: it is part of the contract


@pytest.mark.parametrize(
    "other",
    [
        ("farm", 7, NONCE, "pi-07"),
        ("barn", 8, NONCE, "pi-07"),
        ("barn", 7, NONCE[:-1], "pi-07"),
        ("barn", 7, NONCE, "pi-7"),
    ],
)
def test_another_fleet_round_nonce_or_device_has_another_coin(other: tuple[str, int, bytes, str]) -> None:
    assert coin.side(*other) != coin.side("barn", 7, NONCE, "pi-07")


def test_a_share_draws_so_many_and_a_larger_one_the_same_and_more() -> None:
    quarter, half = drawn(COIN_SIDES // 4), drawn(COIN_SIDES // 2)
    assert 850 < len(quarter) < 1_150  # five standard deviations
    assert quarter < half
    assert drawn(COIN_SIDES) == set(DEVICES)
    assert drawn(0) == set()


def test_the_next_round_draws_others() -> None:
    """Nobody is left out for long: of two rounds' quarters about a sixteenth is in both."""
    both = drawn(COIN_SIDES // 4) & drawn(COIN_SIDES // 4, round_id=8)
    assert 150 < len(both) < 350


def test_the_waits_are_spread_over_the_jitter_and_are_none_without_one() -> None:
    waits = [coin.wait_ms(offer(jitter_ms=1_000), "barn", name) for name in DEVICES]
    assert all(wait is not None and 0 <= wait < 1_000 for wait in waits)
    tenths = [sum(100 * tenth <= (wait or 0) < 100 * tenth + 100 for wait in waits) for tenth in range(10)]
    assert min(tenths) > 300
    assert {coin.wait_ms(offer(), "barn", name) for name in DEVICES} == {0}


def test_the_wait_has_nothing_to_do_with_the_coin() -> None:
    """Else those whom a small share draws would all begin at the beginning."""
    waits = [coin.wait_ms(offer(COIN_SIDES // 8, 1_000), "barn", name) for name in DEVICES]
    assert max(wait for wait in waits if wait is not None) > 900
