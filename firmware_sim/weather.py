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

    # a device's power and process
    power_cut_every_ms: int = 0  # per device
    cut_at_effect_rate: float = 0.0  # before or after any one effect, by coin
    exit_at_effect_rate: float = 0.0  # the same, but the process dies: failed, and persisted or not
    off_ms_max: int = 1_000
    gone_rate: float = 0.0  # of power cuts: the device never comes back (a fifth of the fleet at most)
    # its flash
    torn_rate: float = 0.0  # of cuts before a chunk: half of it is on flash
    write_fails_rate: float = 0.0  # of chunks: the disk is full, nothing is kept
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
    takeover_will_rate: float = 1.0  # does the MQTT server publish the will of a connection that was taken over?
    # an HTTP server beside the MQTT server
    http_rate: float = 0.0  # of worlds: there is one
    http_fails_rate: float = 0.0  # of answers
    http_hangs_rate: float = 0.0  # of answers: none ever comes
    # the MQTT server
    server_restart_every_ms: int = 0
    server_down_ms_max: int = 1_000
    retained_lost_rate: float = 0.0  # of restarts
    # the coordinator
    coordinator_cut_every_ms: int = 0
    coordinator_cut_at_effect_rate: float = 0.0
    coordinator_exit_at_effect_rate: float = 0.0
    coordinator_down_ms_max: int = 1_000
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
    bytes_spent_rate: float = 0.0  # of readings: the link may carry nothing more for now
    drift_rate_max: float = 0.0  # a device's clock runs faster or slower by as much
    examples_late_rate: float = 0.0  # devices that begin with no labelled example
    enrol_late_rate: float = 0.0  # devices that are enrolled only later
    cancel_every_ms: int = 0  # the operator gives up a round that waits or is open
    # an attacker who may publish anywhere, and has no key
    forge_every_ms: int = 0
    replay_every_ms: int = 0  # of true messages, on their own topic


def load(path: Path) -> Weather:
    """Read a profile. Raises ValueError with the file and the field when it is not one."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Weather)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a weather profile: {error}") from error


CALM: Final = load(SCENARIOS / "calm.toml")
BROWNOUT: Final = load(SCENARIOS / "brownout.toml")
STORM: Final = load(SCENARIOS / "storm.toml")

_DURATIONS: Final = frozenset(
    name for name in Weather.__struct_fields__ if name.endswith("_ms_max") or name == "takeover_will_rate"
)


def swarm(seed: int) -> Weather:
    """The profile of this seed: each fault of STORM absent (one in three), or 0.2 to 3 times as frequent."""
    chance = random.Random(f"weather/{seed}")
    drawn = {name: _draw(name, getattr(STORM, name), chance) for name in Weather.__struct_fields__}
    return msgspec.convert(drawn, type=Weather)


def _draw(name: str, value: float, chance: random.Random) -> float:
    if chance.random() < 1 / 3 and name not in _DURATIONS:
        return 0
    factor: float = 0.2 * 15.0 ** chance.random()
    if name.endswith("_every_ms"):
        return int(value / factor)
    if name.endswith("_ms_max"):
        return max(1, int(value * factor))
    return min(1.0, value * factor)
