"""Gusts: the faults that come at their own time, to whomever they strike.

A weather says how often each comes; which one is next, when and to whom is drawn. What strikes somebody at something
that it does (an effect, a message, an operation of the card) is drawn there, by `world.chance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from firmware_sim.world import World

EXPELLED_MS_MAX: Final = 600_000
CUT_OFF_SHARE: Final = 0.3  # of the lines, in a partition


class Gusts:
    """Those of one world, from now on until it heals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = self._by_frequency()
        self._plan()

    def end(self) -> None:
        """Nothing comes by itself any more."""
        self._faults = []

    def _plan(self) -> None:
        world = self._world
        total = sum(rate for rate, _ in self._faults)
        if total > 0:  # uniform, since the logarithm of an exponential differs from processor to processor
            world.at(1 + world.draw(int(2 / total)), self._blow)

    def _blow(self) -> None:
        """One fault of those that come at their own time, drawn by its frequency."""
        world = self._world
        drawn = world.random.random() * sum(rate for rate, _ in self._faults)
        for rate, blow in self._faults:
            drawn -= rate
            if rate and drawn < 0:
                blow()
                break
        self._plan()

    def _cut_any(self) -> None:
        world = self._world
        device = world.random.choice(world.devices)
        if device.agent is not None and world.happens("power_cut"):
            device.power_off()

    def _cut_coordinator(self) -> None:
        world = self._world
        if world.station.coordinator is not None and world.happens("coordinator_cut"):
            world.station.cut()

    def _jump_clock(self) -> None:
        world = self._world
        device = world.random.choice(world.devices)
        if world.happens("clock_jump"):
            device.host.jump()

    def _replace_card(self) -> None:
        world = self._world
        device = world.random.choice(world.devices)
        if not device.gone and world.happens("new_card"):
            device.replace_card()

    def _expel(self) -> None:
        """The operator takes a device out of the fleet by mistake, and sees it after a while."""
        world = self._world
        name, lasts_ms = world.random.choice(world.devices).name, 1 + world.draw(EXPELLED_MS_MAX)
        if name in world.database.fleet and world.happens("expel"):
            world.note("operator", f"takes {name} out of the fleet")
            world.late.add(name)
            world.tell_fleet()
            world.at(lasts_ms, world.enrol, name)

    def _upgrade(self) -> None:
        """One program is ended, and started again in another version."""
        world = self._world
        drawn, skew = world.draw(len(world.devices) + 1), world.draw(3) - 1
        one = world.devices[drawn] if drawn < len(world.devices) else world.station
        if world.happens("upgrade"):
            one.upgrade(skew)

    def _break_link(self) -> None:
        world = self._world
        drawn = world.draw(len(world.devices) + 1 + (world.gateway is not None))
        line = world.devices[drawn].line if drawn < len(world.devices) else world.station.line
        if drawn > len(world.devices) and world.gateway is not None:
            line = world.gateway.line
        silent = world.random.random() < world.weather.silent_rate
        if line is not None and line.connection is not None and line.connection.flows and world.happens("link_break"):
            world.note("weather", f"breaks the line of {line.client_id}")
            line.server.lose(line.connection, silent=silent)

    def _part(self) -> None:
        """Some can no longer reach anyone; what they know of it is silence."""
        world = self._world
        bridge = [world.gateway.line] if world.gateway is not None else []
        lines = [world.station.line, *bridge, *(device.line for device in world.devices)]
        away = [line for line in lines if line is not None and world.random.random() < CUT_OFF_SHARE]
        lasts_ms = 1 + world.draw(world.weather.partition_ms_max)
        if not away or world.cut_off or not world.happens("partition"):
            return
        world.cut_off = {line.client_id for line in away}
        world.note("weather", f"parts {', '.join(sorted(world.cut_off))} from the others for {lasts_ms} ms")
        for line in away:
            if line.connection is not None and line.connection.flows:
                line.server.lose(line.connection, silent=True)
        world.at(lasts_ms, world.cut_off.clear)

    def _restart_server(self) -> None:
        world = self._world
        server = world.server if world.gateway is None or world.draw(3) else world.gateway.server
        down_ms = 1 + world.draw(world.weather.server_down_ms_max)
        if server.up and world.happens("server_restart"):
            retained = not world.chance(world.weather.retained_lost_rate, "retained_lost")
            sessions = not world.chance(world.weather.sessions_lost_rate, "sessions_lost")
            world.note("weather", f"restarts the MQTT {server.name}" + ("" if retained else ", which retains nothing"))
            server.restart(down_ms, keep_retained=retained, keep_sessions=sessions)

    def _cancel_any(self) -> None:
        world = self._world
        living = [row.round_id for row in world.database.rounds.values() if row.status != "closed"]
        if living:
            unwanted = world.random.choice(living)
            if world.happens("cancel"):
                world.cancel_round(unwanted)

    def _by_frequency(self) -> list[tuple[float, Callable[[], None]]]:
        """Each fault and how often it comes, in 1/ms."""
        world = self._world
        weather, devices = world.weather, len(world.devices)
        return [
            (_per_ms(weather.power_cut_every_ms) * devices, self._cut_any),
            (_per_ms(weather.link_break_every_ms) * (devices + 1), self._break_link),
            (_per_ms(weather.partition_every_ms), self._part),
            (_per_ms(weather.server_restart_every_ms), self._restart_server),
            (_per_ms(weather.coordinator_cut_every_ms), self._cut_coordinator),
            (_per_ms(weather.upgrade_every_ms) * (devices + 1), self._upgrade),
            (_per_ms(weather.clock_jump_every_ms) * devices, self._jump_clock),
            (_per_ms(weather.new_card_every_ms) * devices, self._replace_card),
            (_per_ms(weather.expel_every_ms) * devices, self._expel),
            (_per_ms(weather.cancel_every_ms), self._cancel_any),
            (_per_ms(weather.forge_every_ms), world.attacker.forge),
            (_per_ms(weather.replay_every_ms), world.attacker.replay),
        ]


def _per_ms(every_ms: int) -> float:
    return 1 / every_ms if every_ms else 0.0
