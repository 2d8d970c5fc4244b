"""What a swarm found out, as one object for scripts and as lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections import Counter

    from firmware_sim.swarm.device import Tally
    from firmware_sim.swarm.watch import Closed


class Three(NamedTuple):
    """Bytes of memory, or seconds of CPU, of the three processes; `server` is 0 where it is on another machine."""

    here: float
    coordinator: float
    server: float

    def since(self, before: Three) -> Three:
        """What came since then."""
        return Three(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True)
class Outcome:
    """What was counted and measured.

    `held`: devices that were connected all the time, from the first round on until the end. `counted_in`: digest of
    each update in the coordinator's store → the version that counts it, or None. `memory`: what all connections took;
    `cpu_s`: while rounds were open, `wall_s` seconds.
    """

    devices: int
    held: int
    tally: Tally
    closed: list[Closed]
    coordinator_counts: Counter[str]  # lines of its log, by event
    counted_in: dict[bytes, int | None]
    memory: Three
    cpu_s: Three
    wall_s: float
    dropped: int  # messages that the devices' links had no room for, or no connection


def numbers(outcome: Outcome) -> dict[str, Any]:
    """The object of --json. What nobody could measure is None."""
    tally, finished = outcome.tally, outcome.tally.finished
    accepted = [digest for digest, verdict in tally.verdicts.items() if verdict in ("accepted", "duplicate")]
    receipted = len(tally.verdicts)
    kb = [bytes_ / 1024 / outcome.devices for bytes_ in outcome.memory]
    cpu_us = [seconds * 1e6 / max(1, receipted) for seconds in outcome.cpu_s]
    has_server = outcome.memory.server > 0 or outcome.cpu_s.server > 0
    return {
        "devices": outcome.devices,
        "connections_held": outcome.held,
        "reconnects": tally.reconnects,
        "rounds": len(outcome.closed),
        "seconds_per_round": [round(closed.seconds, 3) for closed in outcome.closed],
        "updates_finished": len(finished),
        "updates_receipted": receipted,
        "updates_lost": sum(digest not in outcome.counted_in for digest in accepted),
        "updates_refused": receipted - len(accepted),
        "updates_counted": sum(outcome.counted_in.get(digest) is not None for digest in finished),
        "updates_sent_again": tally.resent_updates,
        "resends": tally.resent,
        "messages_up": tally.sent,
        "messages_down": tally.received,
        "messages_dropped_here": outcome.dropped,
        "births_heard": outcome.coordinator_counts["birth"],
        "kb_per_connection": round(kb[0], 2),
        "kb_per_connection_coordinator": round(kb[1], 2),
        "kb_per_connection_server": round(kb[2], 2) if has_server else None,
        "cpu_us_per_update": round(cpu_us[0]),
        "cpu_us_per_update_coordinator": round(cpu_us[1]),
        "cpu_us_per_update_server": round(cpu_us[2]) if has_server else None,
        "updates_per_s": round(receipted / max(outcome.wall_s, 1e-9), 1),
        "wall_s": round(outcome.wall_s, 1),
    }


def block(found: dict[str, Any]) -> str:
    """The object as lines for people."""

    def three(key: str, unit: str) -> str:
        server = found[f"{key}_server"]
        at_server = f"{server:,} {unit} in the MQTT server" if server is not None else "MQTT server elsewhere"
        return f"{found[key]:,} {unit} here, {found[f'{key}_coordinator']:,} {unit} in the coordinator, {at_server}"

    seconds = ", ".join(f"{value:.1f}" for value in found["seconds_per_round"])
    fates = ("finished", "receipted", "counted", "lost", "refused")
    rows = [
        ("connections", f"{found['connections_held']:,} of {found['devices']:,} held all the time"),
        ("rounds", f"{found['rounds']} closed, in {seconds} s"),
        ("updates", ", ".join(f"{found[f'updates_{fate}']:,} {fate}" for fate in fates)),
        ("sent again", f"{found['updates_sent_again']:,} updates, {found['resends']:,} times"),
        ("throughput", f"{found['updates_per_s']:,} updates a second, trainings included"),
        ("memory", f"per connection {three('kb_per_connection', 'kB')}"),
        ("CPU", f"per update {three('cpu_us_per_update', 'µs')}"),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)
