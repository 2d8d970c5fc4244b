"""The account of bytes: by purpose, over restarts, and through clocks that lie."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent import traffic
from edge_agent.budget import UPDATE_BYTES_MIN, Limits
from edge_agent.disk import Directory
from wire.messages import Traffic
from wire.meter import Carried

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC
DAY = 86_400.0
NAMES = Traffic.__struct_fields__


class Hand:
    """A wall clock and a steady one, moved by hand, the wall alone too; and what the kernel counts as written."""

    def __init__(self, wall: float = NOON) -> None:
        self.wall, self.steady = wall, 100.0
        self.written: int | None = 0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def start(tmp_path, hand):
    """A fresh run of the agent over the same file."""

    def make(**limits) -> traffic.Ledger:
        clocks = {"wall": lambda: hand.wall, "steady": lambda: hand.steady}
        return traffic.Ledger(Directory(tmp_path), Limits(**limits), written=lambda: hand.written, **clocks)

    return make


def spend(ledger: traffic.Ledger, count: int) -> None:
    ledger.meter.on_fetched(count)


def test_every_kind_of_message_has_one_purpose_and_no_byte_is_lost():
    kinds = ("birth", "death", "update", "resent", "want", "telemetry", "offer", "chunk", "patch", "state", "other")
    sent = {kind: 1 << n for n, kind in enumerate(kinds)}
    received = {kind: 1 << (n + 16) for n, kind in enumerate(kinds)}
    found = traffic.by_purpose(Carried(sent, received, 1 << 39, 1 << 40, 1 << 41))
    assert traffic.bytes_of(found) == sum(sent.values()) + sum(received.values()) + (7 << 39)
    assert (found.update_up, found.retry_up, found.telemetry_up) == (sent["update"], sent["resent"], sent["telemetry"])
    assert found.model_up == sent["want"] + sent["chunk"] + sent["patch"]
    assert found.model_down == received["want"] + received["chunk"] + received["patch"] + (1 << 39)
    assert (found.transport_up, found.transport_down) == (1 << 40, 1 << 41)


def test_the_rows_of_a_status_add_up_to_the_last(start):
    ledger = start(day_bytes_max=5_000)
    ledger.meter.on_publish("fl/v1/f/00/d/up/update", bytes(100))
    ledger.meter.on_puback("update")
    spend(ledger, 50)
    shown = ledger.shown()
    assert [row.purpose for row in shown.rows] == [*traffic.PURPOSES, "all"]
    *rows, whole = shown.rows
    for name in ("up", "down", "today", "this_month"):
        assert getattr(whole, name) == sum(getattr(row, name) for row in rows)
    assert rows[0].up > 100
    assert (rows[2].down, whole.down, whole.today) == (50, 54, whole.up + whole.down)
    assert (shown.day_bytes_max, shown.month_bytes_max) == (5_000, 0)


def test_the_account_goes_on_after_a_restart_and_the_day_with_it(start, hand):
    first = start(day_bytes_max=10_000)
    spend(first, 3_000)
    first.save()
    hand.pass_(3600)
    second = start(day_bytes_max=10_000)
    spend(second, 500)
    look = second.look()
    assert (look.total.model_down, look.today.model_down, look.day_left) == (3_500, 3_500, 6_500)
    hand.pass_(DAY)
    look = second.look()
    assert (look.total.model_down, look.today.model_down, look.day_left) == (3_500, 0, 10_000)
    assert look.this_month.model_down == 3_500


def test_an_update_sent_before_a_restart_is_a_retry_after_it(start):
    topic, sealed = "fl/v1/f/00/d/up/update", bytes(200)
    first = start()
    assert first.meter.on_publish(topic, sealed) == "update"
    first.save()
    second = start()
    second.meter.on_publish(topic, sealed)
    total = second.look().total
    assert (total.update_up, total.retry_up) == (total.retry_up, total.update_up)
    second.meter.on_publish(topic, sealed + b"!")
    assert second.look().total.update_up > total.update_up


def test_a_power_cut_forgets_at_most_what_was_counted_since_the_last_write(start, hand, tmp_path):
    first = start()
    spend(first, 50_000)
    first.save_if_due()
    assert not (tmp_path / "traffic").exists()  # not twice within ten minutes
    hand.pass_(traffic.SAVE_S_MIN)
    first.save_if_due()
    spend(first, traffic.SAVE_BYTES_MIN - 1)
    hand.pass_(traffic.SAVE_S_MIN)
    first.save_if_due()  # not worth a write
    assert start().look().total.model_down == 50_000
    spend(first, 1)
    first.save_if_due()
    assert start().look().total.model_down == 50_000 + traffic.SAVE_BYTES_MIN


def test_the_core_seconds_of_trainings_belong_to_their_day_and_survive_a_restart(start, hand):
    first = start()
    first.train(40.0)
    hand.pass_(traffic.SAVE_S_MIN)
    first.save_if_due()  # not worth a write
    assert start().look().core_s_today == 0.0
    first.train(20.0)
    first.save_if_due()
    second = start()
    assert second.look().core_s_today == 60.0
    hand.pass_(DAY)
    assert second.look().core_s_today == 0.0
    second.train(1.0)
    assert second.look().core_s_today == 1.0


def test_a_damaged_file_is_told_and_begins_anew(start, tmp_path):
    (tmp_path / "traffic").write_bytes(b"{]")
    ledger = start()
    assert ledger.damaged
    assert ledger.look().total == Traffic()
    ledger.save()
    assert not start().damaged


def test_the_month_goes_on_when_the_day_ends_and_ends_with_its_last_day(start, hand):
    ledger = start(month_bytes_max=100_000)
    ledger.look()
    for _day in range(9):  # to noon of the 30th
        spend(ledger, 1_000)
        hand.pass_(DAY)
    assert ledger.look().month_left == 91_000
    hand.pass_(DAY)
    look = ledger.look()
    assert (look.month_left, look.this_month) == (100_000, Traffic())


# The card


def test_what_was_written_is_kept_over_restarts_and_told_by_the_day(start, hand):
    first = start()
    hand.written = 40_960
    assert first.shown().card == traffic.Wear(40_960, 40_960, 40_960, None)
    hand.pass_(traffic.WEAR_S_MIN)
    first.save()
    hand.written = 4_096  # the next process begins at nothing, and so does the kernel
    second = start()
    assert second.shown().card == traffic.Wear(45_056, 45_056, 45_056, 45_056 * 24)
    hand.pass_(DAY)
    second.look()  # in the first moment of the next day
    hand.written += 8_192
    card = second.shown().card
    assert (card.total, card.today, card.this_month) == (53_248, 8_192, 53_248)
    assert card.per_day == pytest.approx(53_248 * 24 / 25, abs=1)


def test_a_child_between_two_readings_takes_nothing_off_and_a_kernel_that_is_silent_shows_nothing(start, hand):
    ledger = start()
    hand.written = 81_920
    ledger.look()
    hand.written = 40_960  # a child is gone, and not yet among those that have ended
    assert ledger.shown().card.total == 81_920
    hand.written = 81_920 + 4_096
    assert ledger.shown().card.total == 81_920 + 4_096
    ledger.save()
    hand.written = None
    assert start().shown().card is None


def test_an_account_of_an_earlier_program_goes_on_with_nothing_written(start, hand, tmp_path):
    first = start()
    spend(first, 700)
    first.save()
    kept = msgspec.json.decode((tmp_path / "traffic").read_bytes())
    del kept["written"], kept["written_s"], kept["day"]["written_before"], kept["month"]["written_before"]
    (tmp_path / "traffic").write_bytes(msgspec.json.encode(kept))
    second = start()
    assert not second.damaged
    assert (second.look().today.model_down, second.shown().card) == (700, traffic.Wear(0, 0, 0, None))


# Clocks


def test_a_clock_that_goes_back_resets_nothing_however_often(start, hand):
    """A Pi without a battery for its clock, that starts again and again around midnight, or in 1970."""
    ledger = start(day_bytes_max=10_000, month_bytes_max=50_000)
    ledger.look()
    spend(ledger, 9_000)
    for wrong in (hand.wall - DAY, 0.0, hand.wall - 40 * DAY):
        ledger.save()
        true, hand.wall = hand.wall, wrong
        ledger = start(day_bytes_max=10_000, month_bytes_max=50_000)
        look = ledger.look()
        assert (look.day_left, look.month_left) == (1_000, 41_000)
        hand.pass_(60)
        ledger.look()
        hand.wall = true + 60
        look = ledger.look()
        assert (look.day_left, look.month_left) == (1_000, 41_000)


def test_a_clock_that_jumped_far_ahead_and_back_stops_nothing_for_ever(start, hand):
    ledger = start(day_bytes_max=10_000, month_bytes_max=20_000)
    ledger.look()
    hand.wall += 70 * 365 * DAY
    spend(ledger, 9_500)
    ledger.look()
    hand.wall -= 70 * 365 * DAY
    spend(ledger, 9_500)
    look = ledger.look()
    assert (look.day_left, look.month_left) == (500, 10_500)  # the jump began a day, the way back none
    for _hour in range(23):
        hand.pass_(3600)
        assert ledger.look().day_left == 500
    ledger.save()
    ledger = start(day_bytes_max=10_000, month_bytes_max=20_000)  # the hours are not forgotten
    hand.pass_(3600)
    assert ledger.look().day_left == 10_000
    hand.pass_(29 * DAY)
    assert ledger.look().month_left == 10_500
    hand.pass_(1.1 * DAY)
    assert ledger.look().month_left == 20_000


@pytest.mark.parametrize("wall", [-5.0, 1e18, float("inf")])
def test_no_clock_is_too_wrong(start, hand, wall):
    hand.wall = wall
    spend(ledger := start(), 5)
    assert ledger.look().total.model_down == 5


def test_what_is_left_is_told_when_a_decision_may_hang_on_it_and_once(start, hand):
    ledger = start(day_bytes_max=100_000)
    assert [ledger.has_moved(), ledger.has_moved()] == [True, False]
    spend(ledger, traffic.MOVED_BYTES - 1)
    assert not ledger.has_moved()
    spend(ledger, 1)
    assert [ledger.has_moved(), ledger.has_moved()] == [True, False]
    spend(ledger, 98_000 - traffic.MOVED_BYTES)
    assert ledger.has_moved()
    spend(ledger, 2_000 - UPDATE_BYTES_MIN)
    assert not ledger.has_moved()
    spend(ledger, 1)  # and now it is spent
    assert [ledger.has_moved(), ledger.has_moved()] == [True, False]
    hand.pass_(DAY)
    assert [ledger.has_moved(), ledger.has_moved()] == [True, False]
    free = start()
    spend(free, 10**9)
    assert not free.has_moved()


def test_the_difference_is_never_below_zero():
    """The transport of a connection that lives is an estimate: it may shrink again."""
    one = Traffic(update_up=5, transport_down=3)
    assert traffic.minus(one, Traffic(update_up=2, transport_down=9)) == Traffic(update_up=3)
    assert traffic.plus(one, one) == Traffic(update_up=10, transport_down=6)
    assert len(traffic.by_side(one)) == len(traffic.PURPOSES)
    assert sum(map(sum, traffic.by_side(Traffic(*range(1, len(NAMES) + 1))))) == sum(range(1, len(NAMES) + 1))


def test_the_account_reads_what_it_writes(tmp_path):
    kept = traffic.Account(
        Traffic(1, 2, 3), traffic.Period("2026-11-20", Traffic(1), behind_s=5.0), update_digest=b"\xff\0"
    )
    assert msgspec.json.decode(msgspec.json.encode(kept), type=traffic.Account) == kept
