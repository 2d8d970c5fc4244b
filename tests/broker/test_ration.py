"""How much of one version a device may be sent, and that it hurts nobody who asks honestly."""

from __future__ import annotations

from broker.effects import Aggregated, Connected, Received, RoundsRead, SendChunk, Tick
from broker.ration import CHUNKS_MIN, TIMES, WINDOW_MS, Rations
from tests.broker import fleet
from tests.broker.fleet import coordinator, params, row, sealed
from wire import chunks
from wire.limits import WANT_CHUNKS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Range, Want

LARGE = chunks.split(MODEL_FILE, bytes(range(250)) * 4, chunk_bytes=10)  # 100 chunks
MANIFEST = Manifest("tiny", 1, 0, fleet.SIZE, (LARGE, chunks.split(PARAMS_FILE, params(0, 0, 0, 0))))
MOST = TIMES * 101
WANT = Want(LARGE.digest, (Range(0, WANT_CHUNKS_MAX),))


def asked(machine, want=WANT, *, device="cabin", now_ms=0, times=1):
    """How many chunks the device is sent for asking so often."""
    topic, payload = sealed(device, want)
    effects = [effect for _ in range(times) for effect in machine.handle(Received(topic, payload), now_ms)]
    assert all(isinstance(effect, SendChunk) for effect in effects)
    return len(effects)


def connected():
    machine = coordinator(manifest=MANIFEST)
    machine.handle(Connected(), 0)
    return machine


def test_who_asks_for_ever_is_sent_four_times_the_version_in_ten_minutes_and_no_more():
    machine = connected()
    assert asked(machine, times=200) == MOST // WANT_CHUNKS_MAX * WANT_CHUNKS_MAX
    assert machine.refused_count == {"want": 200 - MOST // WANT_CHUNKS_MAX}
    assert asked(machine, now_ms=WINDOW_MS - 1) == 0


def test_the_same_chunk_asked_for_eight_times_in_one_want_counts_eight_times():
    machine = connected()
    again = Want(LARGE.digest, (Range(7, 1),) * WANT_CHUNKS_MAX)
    assert asked(machine, again, times=200) <= MOST


def test_after_ten_minutes_it_is_served_again():
    machine = connected()
    asked(machine, times=200)
    assert asked(machine, now_ms=WINDOW_MS) == WANT_CHUNKS_MAX


def test_one_who_asks_for_ever_takes_nothing_from_the_others():
    machine = connected()
    asked(machine, times=200)
    assert asked(machine, device="dune", times=13) == 13 * WANT_CHUNKS_MAX


def test_a_small_version_may_be_asked_for_as_often_as_a_bad_link_needs():
    machine = coordinator()
    machine.handle(Connected(), 0)
    small = Want(fleet.first_manifest()[0].files[0].digest, (Range(0, 1),))
    assert asked(machine, small, times=200) == CHUNKS_MIN


def test_what_nobody_has_costs_nothing():
    machine = connected()
    assert asked(machine, Want(bytes(32), (Range(0, 8),)), times=200) == 0
    assert asked(machine) == WANT_CHUNKS_MAX


def test_a_new_version_begins_a_new_account():
    machine = coordinator()
    machine.handle(Connected(), 0)
    base = fleet.first_manifest()[0].files[0]
    small = Want(base.digest, (Range(0, 1),))
    asked(machine, small, times=200)
    machine.handle(Received(*sealed("cabin", fleet.birth())), 0)
    machine.handle(Tick(), 6_000)
    machine.handle(RoundsRead((row(1),)), 6_000)
    machine.handle(Received(*sealed("cabin", fleet.update())), 6_000)
    machine.handle(Aggregated(1, params(1, 0, 0, 0), None, None), 6_001)
    assert asked(machine, small, now_ms=6_002) == 1


def test_an_account_is_one_entry_a_device_however_often_it_asks():
    rations = Rations()
    for now_ms in range(0, 100 * WINDOW_MS, WINDOW_MS // 10):
        rations.grant("cabin", WANT, MANIFEST, now_ms)
    assert len(rations._taken) == 1
