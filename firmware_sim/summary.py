"""The summary: what a run measured, as numbers for machines, as a short text for people, as a table for the report.

Every number comes from the auditor on the wire, from the recomputed lineage or from the operating system; none is a
program's claim about itself.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from broker.energy import BOARDS
from engine.codec.estimate import split
from engine.codec.payload import count_of
from firmware_sim import power

if TYPE_CHECKING:
    from firmware_sim.central import Central
    from firmware_sim.chaos import Blow
    from firmware_sim.fleet import Outcome
    from firmware_sim.site import Wish


def numbers(wish: Wish, outcome: Outcome, central: Central) -> dict[str, Any]:
    """Everything that `summary.json` holds. Bytes are bytes, mb are 10^6 bytes, rates are between 0 and 1."""
    verdict, sizes = outcome.verdict, outcome.sealed_bytes
    dense_bytes = 4 * outcome.site.first.manifest.num_params  # as most fleets send it: every parameter as float32
    final = next((row.accuracy for row in reversed(outcome.rows) if row.accuracy is not None), 0.0)
    mean = statistics.fmean(sizes) if sizes else 0.0
    return {
        "devices": len(outcome.site.devices),
        "rounds": len(outcome.rows),
        "seed": wish.seed,
        "accuracy_start": round(central.accuracy_start, 4),
        "accuracy_final": round(final, 4),
        "accuracy_central": round(central.accuracy, 4),
        "accuracy_gap_to_central": round(central.accuracy - final, 4),
        "update_bytes_mean": round(mean, 1),
        "update_bytes_max": max(sizes, default=0),
        "dense_bytes": dense_bytes,
        "dense_over_update_bytes": round(dense_bytes / mean, 1) if mean else 0.0,
        "payload_bits_per_nonzero": round(_bits_per_nonzero(outcome), 2),
        "overhead_bytes": _overhead_bytes(outcome),
        "bytes_up_total": outcome.heard.bytes_of("up"),
        "bytes_down_total": outcome.heard.bytes_of("dn"),
        "updates_finished": verdict.finished,
        "updates_counted": verdict.counted,
        "updates_refused": len(verdict.refused),
        "updates_lost": len(verdict.lost),
        "updates_double_counted": len(verdict.double_counted),
        "updates_unknown": len(verdict.unknown),
        "versions_proved": verdict.versions_proved,
        "versions_wrong": verdict.versions_wrong,
        "updates_proved_from_store": verdict.from_store,
        "agent_idle_rss_mb": round(statistics.median(outcome.idle_rss_bytes) / 1e6, 1),
        "trainer_peak_rss_mb": round(max(outcome.trainer_peak_bytes, default=0) / 1e6, 1),
        "energy": _energy(outcome, 100.0 * (final - central.accuracy_start)),
        "cpu_s": round(outcome.cpu_s, 1),
        "wall_s": round(outcome.wall_s, 1),
        "mqtt_server": {"name": outcome.server_name, "version": outcome.server_version},
        "killed": [_killed(blow) for blow in outcome.blows if blow.killed_s],
    }


def block(found: dict[str, Any], story: list[str]) -> str:
    """The summary for a terminal."""
    width = max(len(name) for name, _ in rows(found))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in rows(found)]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in story)])


def rows(found: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The summary as (what, how much)."""
    server = found["mqtt_server"]
    return (
        ("fleet", f"{found['devices']} devices, {found['rounds']} rounds, seed {found['seed']}"),
        (
            "accuracy",
            (
                f"{found['accuracy_start']:.3f} at the start, {found['accuracy_final']:.3f} at the end; "
                f"{found['accuracy_central']:.3f} with all data in one place"
            ),
        ),
        (
            "one update",
            (
                f"{found['update_bytes_mean']:.0f} bytes on the wire, largest {found['update_bytes_max']}: "
                f"{found['dense_over_update_bytes']:.0f} times less than the {found['dense_bytes']} of a dense one in "
                "float32; "
                f"{found['payload_bits_per_nonzero']:.1f} bits a value, {found['overhead_bytes']} bytes around them"
            ),
        ),
        ("all bytes", f"{found['bytes_up_total'] / 1e3:.0f} kB up, {found['bytes_down_total'] / 1e6:.1f} MB down"),
        (
            "updates",
            (
                f"{found['updates_finished']} finished, {found['updates_counted']} counted, "
                f"{found['updates_refused']} refused, {found['updates_lost']} lost, "
                f"{found['updates_double_counted']} counted twice"
            ),
        ),
        (
            "proof",
            (
                f"{found['versions_proved']} versions recomputed from the wire, bit for bit the same; "
                f"{found['versions_wrong']} not"
            ),
        ),
        (
            "memory",
            (
                f"{found['agent_idle_rss_mb']:.1f} MB an idle agent (median), "
                f"{found['trainer_peak_rss_mb']:.0f} MB the largest training child"
            ),
        ),
        *_energy_rows(found["energy"]),
        ("time", f"{found['wall_s']:.0f} s, {found['cpu_s']:.0f} s of processor in all processes"),
        ("MQTT server", f"{server['name']} {server['version']}"),
    )


def story(outcome: Outcome) -> list[str]:
    """One sentence for every kill, and one for whatever else is worth telling."""
    told = [_tell(blow, outcome) for blow in outcome.blows if blow.killed_s]
    told += [f"{note}." for note in outcome.notes]
    verdict = outcome.verdict
    if told and not (verdict.lost or verdict.double_counted or verdict.versions_wrong):
        told.append("After all of that no finished update was lost, and none was counted twice.")
    if verdict.from_store:
        gaps = f"lost its connection {outcome.heard.gaps} times" if outcome.heard.gaps else "missed them"
        told.append(f"{verdict.from_store} updates were taken from the store: the auditor {gaps}.")
    for name, keys in (
        ("lost", verdict.lost),
        ("counted twice", verdict.double_counted),
        ("counted, and in no device's log", verdict.unknown),
    ):
        if keys:
            told.append(f"Not well: {name}: " + ", ".join(f"{device} in round {round_id}" for device, round_id in keys))
    if outcome.trainer_failures:
        told.append(f"Trainings that failed: {'; '.join(outcome.trainer_failures[:5])}")
    return told


def _tell(blow: Blow, outcome: Outcome) -> str:
    down_s, away_s = blow.started_s - blow.killed_s, blow.back_s - blow.killed_s
    begin = f"Round {blow.round_id}: {blow.victim} got SIGKILL {blow.doing}, was started again {down_s:.1f} s later "
    closed = next((row for row in outcome.rows if row.round_id == blow.round_id), None)
    counted = f"the round counted {closed.present} updates" if closed is not None else "the round never closed"
    if blow.target == "agent":
        return begin + f"and was back in the fleet after {away_s:.1f} s; {_fate(blow, outcome)}."
    if blow.target == "coordinator":
        return begin + f"and had all devices back after {away_s:.1f} s; {counted}."
    return begin + f"with nothing retained, and all devices were back after {away_s:.1f} s; {counted}."


def _fate(blow: Blow, outcome: Outcome) -> str:
    """What became of the update that the killed agent was working on."""
    for update in outcome.stored:
        if (update.device_id, update.round_id) == (blow.victim, blow.round_id):
            closing = next((row for row in outcome.rows if row.round_id + 1 == update.counted_in), None)
            late = closing is not None and closing.round_id != blow.round_id
            when = f"by round {closing.round_id}, late" if closing is not None and late else "in the same round"
            return f"its update of that round was counted {when}"
    return "it had not finished an update of that round, and took part again from the next"


def _killed(blow: Blow) -> dict[str, Any]:
    return {
        "round": blow.round_id,
        "what": blow.target,
        "who": blow.victim,
        "doing": blow.doing,
        "down_s": round(blow.started_s - blow.killed_s, 2),
        "back_after_s": round(blow.back_s - blow.killed_s, 2),
    }


def _energy(outcome: Outcome, points: float) -> dict[str, Any]:
    """What the training children and the radio would have taken on each board, above idle, and idle beside it.

    The agents' own processor time is not in it; a message that all devices read is counted once, as the tap heard it.
    """
    heard = outcome.heard
    core_s, rounds = sum(outcome.trainer_cpu_s), outcome.verdict.finished
    spent = power.Spent(core_s, heard.bytes_of("up"), heard.bytes_of("dn"), rounds, points)
    costs = [(board, power.cost(board, spent)) for board in BOARDS]
    return {
        "trainer_cpu_s": round(core_s, 2),
        "device_rounds": rounds,
        "points": round(points, 2),
        "boards": [
            {
                "board": board.name,
                "idle_w": board.idle_w,
                "core_s_device_round": round(one.core_s_device_round, 2),
                "wh_device_round": round(one.wh_device_round, 6),
                "wh_fleet": round(one.wh_fleet, 5),
                "wh_per_point": round(one.wh_per_point, 6),
            }
            for board, one in costs
        ],
    }


def _energy_rows(energy: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    boards = energy["boards"]
    each = ", ".join(f"{1000 * row['wh_device_round']:.1f} on a {row['board']}" for row in boards)
    fleet, point = (" / ".join(f"{1000 * row[key]:.1f}" for row in boards) for key in ("wh_fleet", "wh_per_point"))
    floor = f"being on takes {boards[0]['idle_w']} to {boards[-1]['idle_w']} W"
    return (
        ("energy", f"estimated mWh that learning adds, a device and round: {each}; {floor}"),
        ("energy, all", f"{fleet} mWh on the same boards, {point} a point of accuracy"),
    )


def _bits_per_nonzero(outcome: Outcome) -> float:
    """Bits of the payload for each value that is in it, header and positions included, over all updates."""
    values = sum(count_of(split(update.payload)[1]) for update in outcome.updates.values())
    bits = 8 * sum(len(update.payload) for update in outcome.updates.values())
    return bits / values if values else 0.0


def _overhead_bytes(outcome: Outcome) -> int:
    """The most that a PUBLISH packet with an update held besides the update's payload: topic, envelope, header."""
    return max(
        (outcome.heard.packet_of[digest] - len(update.payload) for digest, update in outcome.updates.items()), default=0
    )
