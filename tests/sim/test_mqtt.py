"""The simulated MQTT server and gateway behave as the real ones do, traps included."""

import pytest

from firmware_sim.mqtt import Filters, matches
from firmware_sim.weather import CALM, Weather
from firmware_sim.world import World

MINUTE_MS = 60_000


class Program:
    """Somebody with a line, and what it heard."""

    def __init__(self, world, client_id, filters=("a/+",), *, keeps_session=False):
        from firmware_sim.link import Line

        self.heard = []
        self.ups = 0
        self.line = Line(
            world,
            client_id,
            filters,
            lambda: (f"will/{client_id}", b"gone", False),
            on_up=self._up,
            on_down=lambda: None,
            on_message=lambda topic, payload: self.heard.append((topic, payload)),
            keeps_session=keeps_session,
        )

    def _up(self):
        self.ups += 1


def empty_world(weather=CALM):
    world = World(1, weather, devices=1)
    world.auditor.on_sent = lambda *_: None
    return world


def test_filters_are_a_tree_of_levels_and_one_plus_is_one_level():
    filters = Filters()
    filters.add("x", ("a/+/c", "a/b"))
    filters.add("y", ("+/b/c",))
    assert filters.readers("a/b/c") == ["x", "y"]
    assert filters.readers("a/b") == ["x"]
    assert filters.readers("a/b/c/d") == filters.readers("b") == []
    filters.add("z", ("a/b",))
    assert filters.readers("a/b") == ["x", "z"]


@pytest.mark.parametrize(("pattern", "covers"), [("a/+/c", True), ("a/b/+", True), ("a/+", False), ("a/b/d", False)])
def test_a_filter_covers_a_topic(pattern, covers):
    assert matches(pattern, "a/b/c") is covers


def test_what_is_retained_comes_to_who_subscribes_later_and_the_newest_replaces_it():
    world = empty_world()
    world.server.spread("a/b", b"old", retain=True)
    world.server.spread("a/b", b"new", retain=True)
    world.server.spread("a/c", b"not kept")
    late = Program(world, "late")
    world.run(MINUTE_MS)
    assert late.heard == [("a/b", b"new")]


def test_a_burst_beyond_the_queue_is_dropped_and_its_publisher_never_knows():
    """The trap of max_queued_messages: every publish is acknowledged."""
    world = empty_world(Weather(queue_max=5))
    reader, writer = Program(world, "reader"), Program(world, "writer", ("b/+",))
    world.run(MINUTE_MS)
    for number in range(CALM.in_flight_max + 14):
        world.server.spread("a/b", b"%d" % number)
    acknowledged = []
    world.weather = Weather(queue_max=5, delay_ms_max=1)
    world.server.carry_up(
        writer.line.connection, "a/b", b"last", retain=False, acknowledged=lambda: acknowledged.append(1)
    )
    world.run(2 * MINUTE_MS)
    assert [int(payload) for _, payload in reader.heard[:-1]] == list(range(CALM.in_flight_max + 4))
    assert acknowledged == [1]
    assert world.tally["queue_full"] == 10


def test_a_slow_line_takes_its_time():
    world = empty_world(Weather(slow_bytes_per_s=100))
    world._slow.add("slow")
    slow = Program(world, "slow")
    world.run(MINUTE_MS)
    world.server.spread("a/b", bytes(1_000))
    world.run(world.now_ms + 9_900)
    assert not slow.heard
    world.run(world.now_ms + 200)
    assert slow.heard


def test_a_session_that_is_kept_gets_what_came_meanwhile_and_maybe_again_what_was_under_way():
    world = empty_world()
    keeper, other = Program(world, "keeper", keeps_session=True), Program(world, "other")
    world.run(MINUTE_MS)
    world.server.lose(keeper.line.connection, silent=False)
    world.server.lose(other.line.connection, silent=False)
    world.run(world.now_ms + 1_100)
    for program in (keeper, other):
        assert program.line.connection is None or program.ups == 2
    world.server.spread("a/b", b"meanwhile")
    world.run(world.now_ms + MINUTE_MS)
    assert set(keeper.heard) == {("a/b", b"meanwhile")}


def test_a_will_is_published_when_a_line_breaks_and_not_twice():
    world = empty_world()
    reader, mortal = Program(world, "reader", ("will/+",)), Program(world, "mortal")
    world.run(MINUTE_MS)
    mortal.line.stop(silent=True)
    world.run(world.now_ms + 5 * MINUTE_MS)
    assert reader.heard == [("will/mortal", b"gone")]


def test_half_of_a_fleet_learns_behind_a_gateway_that_loses_its_bridge():
    world = World(3, Weather(gateway_rate=1.0), devices=4)
    assert world.server_of("device-00") is world.gateway.server
    assert world.server_of("device-03") is world.server
    world.request_round(updates_min=4)
    world.run(8_000)
    world.server.lose(world.gateway.line.connection, silent=False)
    assert world.run(10 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)
    assert len(world.database.counted) == 4
    world.auditor.check_end()


def test_what_a_gateway_retains_grows_old_while_its_bridge_is_down():
    """Devices behind it hear a state of yesterday, and mind it no more than a replay."""
    world = World(3, Weather(gateway_rate=1.0), devices=4)
    world.request_round(updates_min=4)
    assert world.run(5 * MINUTE_MS, until=lambda: len(world.database.lineage) == 2)
    world.cut_off.add("bridge")
    world.server.lose(world.gateway.line.connection, silent=False)
    world.run(world.now_ms + MINUTE_MS)
    world.request_round(updates_min=2)
    assert world.run(world.now_ms + 10 * MINUTE_MS, until=lambda: len(world.database.lineage) == 3)
    world.devices[0].power_off()  # it comes back to what the gateway retains: version 1 or 2, never 3
    world.run(world.now_ms + 5 * MINUTE_MS)
    world.cut_off.clear()
    world.request_round(updates_min=4)
    assert world.run(world.now_ms + 30 * MINUTE_MS, until=lambda: len(world.database.lineage) == 4)
    world.auditor.check_end()
