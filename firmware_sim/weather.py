"""Weather: every fault of a simulated fleet, as a probability or a duration.

A profile is one frozen struct, kept as a file in `scenarios/` that anyone can read and change. `CALM` has no fault
at all, `BROWNOUT` is a bad power supply, `STORM` is everything at once. `swarm(seed)` draws a profile of its own for
a seed: some faults absent, some rare, some frequent, because faults that always come together hide each other.

To add a fault: one field here, one branch in the physical thing that suffers it, one line in a scenario.
Names: `_rate` is a probability per occasion, `_every_ms` the mean time between two (0: never), `_ms_max` the upper
end of a uniform duration.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

SCENARIOS: Final = Path(__file__).parent / "scenarios"


class Weather(Struct, frozen=True, forbid_unknown_fields=True):
    """One fault profile; every default is calm."""

    # how long it is watched before it heals
    lasts_ms: int = 2_400_000  # and less when all rounds are closed
    rounds: int = 5  # how many are requested
    reading_every_ms: int = 60_000  # how often a device reads its sensors
    round_every_ms: int = 0  # 0: all rounds are requested at once
    # a device's power and process
    power_cut_every_ms: int = 0  # per device
    cut_at_effect_rate: float = 0.0  # before or after any one effect, by coin
    exit_at_effect_rate: float = 0.0  # the same, but the process dies: failed, and persisted or not
    off_ms_max: int = 1_000
    gone_rate: float = 0.0  # of power cuts: the device never comes back (a fifth of the fleet at most)
    new_card_every_ms: int = 0  # per device: an empty card takes the place of a dead one
    upgrade_every_ms: int = 0  # per program: it ends, and another version of it starts
    # its flash
    cut_at_operation_rate: float = 0.0  # the power fails before any one disk operation
    exit_at_operation_rate: float = 0.0  # the process dies before it, or the training child whose operation it is
    torn_rate: float = 0.0  # of power cuts while something is unsynced: one sector is half on the card
    disk_full_rate: float = 0.0  # of what needs room: there is none, for a while
    disk_full_ms_max: int = 1_000
    write_fails_rate: float = 0.0  # of writes: an I/O error, after half of it
    sync_fails_rate: float = 0.0  # of syncs: an I/O error; what was written can be read until the next power cut
    rot_rate: float = 0.0  # of seals: one chunk changed since it was written
    patch_rot_rate: float = 0.0  # of patches that are written: one byte changes
    base_lost_rate: float = 0.0  # of patches that are applied: what they start from is gone
    # its link
    link_break_every_ms: int = 0  # per connection
    silent_rate: float = 0.0  # of breaks: nobody is told, both ends wait for their keepalive
    delay_ms_max: int = 20
    duplicate_rate: float = 0.0
    reorder_rate: float = 0.0  # a message that overtakes its topic's earlier ones
    drop_rate: float = 0.0  # on a link that stands: a full queue, at either end or in the MQTT server
    connect_fails_rate: float = 0.0
    slow_rate: float = 0.0  # of devices: their line carries few bytes
    slow_bytes_per_s: int = 400
    partition_every_ms: int = 0  # a third of all programs reach nobody, and nobody is told
    partition_ms_max: int = 1_000
    takeover_will_rate: float = 1.0  # does the MQTT server publish the will of a connection that was taken over?
    # an HTTP server beside the MQTT server
    http_rate: float = 0.0  # of worlds: there is one
    http_fails_rate: float = 0.0  # of answers
    http_hangs_rate: float = 0.0  # of answers: none ever comes
    # the MQTT server
    server_restart_every_ms: int = 0
    server_down_ms_max: int = 1_000
    retained_lost_rate: float = 0.0  # of restarts
    sessions_lost_rate: float = 0.0  # of restarts
    in_flight_max: int = 20  # of messages to one client, as mosquitto's max_inflight_messages
    queue_max: int = 1_000  # of messages that wait for one client; more are dropped, and their publisher never knows
    gateway_rate: float = 0.0  # of worlds: half of the devices are behind an MQTT server that is bridged to the fleet's
    # the coordinator
    coordinator_cut_every_ms: int = 0
    coordinator_cut_at_effect_rate: float = 0.0
    coordinator_exit_at_effect_rate: float = 0.0
    coordinator_down_ms_max: int = 1_000
    buffered_rate: float = 0.0  # of worlds: rounds are buffered, and offered to all at once
    staged_rate: float = 0.0  # of worlds: a ring of devices tries each version before the others hear of it
    bad_version_rate: float = 0.0  # of versions there: they are worse than the ones before
    turns_rate: float = 0.0  # of worlds: the coordinator takes events in turns, and a sum holds it up
    stall_rate: float = 0.0  # of turns: its disk holds it up before
    stall_ms_max: int = 10_000
    aggregate_ms_max: int = 200
    aggregate_fails_rate: float = 0.0
    rescale_rate: float = 0.0  # of sums: the model's scales change, and with them what a step is
    # the training child
    train_ms_max: int = 5_000
    train_fails_rate: float = 0.0
    train_memory_rate: float = 0.0  # killed for memory
    train_hangs_rate: float = 0.0  # until its deadline
    late_result_rate: float = 0.0  # of hangs: it finishes just after it was told to stop
    bad_payload_rate: float = 0.0  # a faulty device, whose update must be refused
    # the host and the operator
    hot_rate: float = 0.0  # of readings
    battery_rate: float = 0.0  # of devices: a battery and a panel, and off when it is empty
    battery_mwh: int = 20_000
    panel_w: float = 5.0
    hot_day_rate: float = 0.0  # of days, for who has a battery: in the sun
    hot_day_c: float = 40.0
    metered_rate: float = 0.0  # of devices: the link costs money, and the day has a limit
    metered_day_bytes: int = 40_000
    clock_1970_rate: float = 0.0  # of boots: until somebody sets it
    clock_jump_every_ms: int = 0  # per device: wrong by days, until somebody sets it
    bytes_spent_rate: float = 0.0  # of readings: the link may carry nothing more for now
    drift_rate_max: float = 0.0  # a device's clock runs faster or slower by as much
    examples_late_rate: float = 0.0  # devices that begin with no labelled example
    enrol_late_rate: float = 0.0  # devices that are enrolled only later
    expel_every_ms: int = 0  # per device: the operator takes it out of the fleet, and back in a few minutes later
    cancel_every_ms: int = 0  # the operator gives up a round that waits or is open
    # an attacker who may publish anywhere, and has no key
    forge_every_ms: int = 0
    replay_every_ms: int = 0  # of true messages, on their own topic
    # dishonest devices, with keys of their own
    attacker_rate: float = 0.0  # of devices, two fifths of a fleet at most
    attack: str = ""  # what they do, one of attacks.NAMES; "": each something else


def names() -> list[str]:
    """The profiles that have a file."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def named(name: str) -> Weather:
    """The profile of this name."""
    return load(SCENARIOS / f"{name}.toml")


def load(path: Path) -> Weather:
    """Read a profile. Raises ValueError with the file and the field when it is not one."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Weather)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a weather profile: {error}") from error


CALM: Final = named("calm")
BROWNOUT: Final = named("brownout")
STORM: Final = named("storm")

# What is part of a fault and no fault itself: always there.
FEW: Final = 10  # devices, for whom the profiles are written
_LIFE: Final = ("round_every_ms", "lasts_ms", "rounds", "reading_every_ms", "battery_mwh", "panel_w", "hot_day_c")
_SETTINGS: Final = ("_ms_max", "_per_s", "_day_bytes", "in_flight_max", "queue_max", "takeover_will_rate")
_FACTORS: Final = (0.2, 0.35, 0.6, 1.0, 1.7, 3.0)


def swarm(seed: int) -> Weather:
    """The profile of this seed: each fault of STORM absent (one in three), or 0.2 to 3 times as frequent."""
    chance = random.Random(f"weather/{seed}")
    drawn = {name: _draw(name, getattr(STORM, name), chance) for name in Weather.__struct_fields__}
    return msgspec.convert(drawn, type=Weather)


def stretched(weather: Weather, devices: int, times: int) -> Weather:
    """The same faults a round for a fleet of `devices` whose rounds last `times` as long as those of ten devices.

    What strikes one device or line at its own time does so as much more rarely; what strikes the coordinator at one of
    its effects, of which it has as many more, too, and its window and its queue are as much larger.
    """
    share = devices / FEW
    changed: dict[str, float] = {
        name: getattr(weather, name) * times
        for name in Weather.__struct_fields__
        if name.endswith("_every_ms") and name not in _LIFE
    }
    for name in ("coordinator_cut_at_effect_rate", "coordinator_exit_at_effect_rate", "stall_rate"):
        changed[name] = getattr(weather, name) / share
    for name in ("in_flight_max", "queue_max"):
        changed[name] = max(1, int(getattr(weather, name) * share))
    return msgspec.structs.replace(weather, **changed)


def _draw(name: str, value: float, chance: random.Random) -> float:
    if not value or name in _LIFE:
        return value
    if chance.random() < 1 / 3 and not name.endswith(_SETTINGS):
        return 0
    factor = chance.choice(_FACTORS)
    if name.endswith("_rate") or name == "drift_rate_max":
        return min(1.0, value * factor)
    return max(1, int(value / factor if name.endswith("_every_ms") else value * factor))
