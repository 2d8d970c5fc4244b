"""One simulated fleet in a process of its own: `python -m benchmarks.sim_ours DEVICES ROUNDS mac|ed25519 storm|calm`.

A round an hour, everyone invited; the auditor watches all of it. Prints one JSON object. What is counted: messages
delivered and effects performed; readings and ticks that lead to nothing take their time and do not count.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from typing import Any, Final

import msgspec

from firmware_sim import weather as profiles
from firmware_sim.world import World

HOUR_MS: Final = 3_600_000
TIMES: Final = 8  # a round of an hour meets as many faults as one of the storm's, which take some eight minutes
LASTS_MS: Final = HOUR_MS * 3 // 4
READING_MS: Final = HOUR_MS // 4


def measure(devices: int, rounds: int, *, real_keys: bool, calm: bool) -> dict[str, Any]:
    """One row."""
    weather = profiles.stretched(profiles.CALM if calm else profiles.STORM, devices, TIMES)
    weather = msgspec.structs.replace(weather, reading_every_ms=READING_MS)
    gc.freeze()
    began_s = time.process_time()
    world = World(1, weather, devices=devices, real_keys=real_keys)
    built_s = time.process_time()
    for number in range(rounds):
        world.request_round(devices // 2, lasts_ms=LASTS_MS)
        world.run((number + 1) * HOUR_MS)
    lived_s = time.process_time() - built_s
    world.auditor.check_lineage()
    counted = world.delivered_count + world.effect_count.total()
    closed = sum(row.status == "closed" for row in world.database.rounds.values())
    return {
        "simulator": "firmware-sim",
        "devices": devices,
        "rounds": rounds,
        "weather": "calm" if calm else "storm",
        "signatures": "Ed25519" if real_keys else "keyed hash",
        "rounds_closed": closed,
        "updates": len(world.database.updates),
        "deliveries": world.delivered_count,
        "effects": world.effect_count.total(),
        "faults": world.tally.total(),
        "build_cpu_s": round(built_s - began_s, 2),
        "cpu_s": round(lived_s, 2),
        "deliveries_and_effects_per_cpu_s": round(counted / lived_s),
        "client_rounds_per_cpu_s": round(len(world.database.updates) / lived_s, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), real_keys=sys.argv[3] == "ed25519",
                             calm=sys.argv[4] == "calm")))  # fmt: skip
