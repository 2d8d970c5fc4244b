"""What a simulated device costs: whole fleets in one process, beside Flower's simulator, and real connections held.

    make bench-sim                    tables
    make bench-sim ARGS=--json        one JSON object: {machine, date, rows, targets}
    ARGS="--only 1000"                the fleets of so many devices alone; what then is not measured is null

Each fleet lives in a process of its own, one after the other, on one processor: the product's own machines, codes,
signatures and flash, the storm's faults (as many a round as in `make sim`), the auditor watching. A round an hour,
everyone invited, so a client-round is a device's hour: births, telemetry, offers, fetches, resends and all. Flower's
simulator (`sim_flower.py`) has no network, no faults and no device state; its client-round is a function call.

    deliveries_and_effects_per_cpu_s   messages delivered and effects performed, a second of one processor
    client_rounds_per_cpu_s            updates stored, a second of one processor
    peak_rss_mb                        of the process

The swarm is `firmware-sim swarm`: 10,000 agents over real connections to a real MQTT server, three rounds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import sim_flower
from benchmarks.demo import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

CASES: Final = (  # devices, rounds, keys, weather
    (100, 12, "mac", "storm"),
    (1_000, 2, "mac", "storm"),
    (1_000, 1, "ed25519", "storm"),
    (1_000, 2, "mac", "calm"),
    (10_000, 1, "mac", "storm"),
    (10_000, 1, "ed25519", "storm"),
    (10_000, 1, "mac", "calm"),
    (100_000, 1, "mac", "calm"),
)
TARGETS: Final = {
    "deliveries_and_effects_per_cpu_s_1000_mac": (1_000, "mac", "deliveries_and_effects_per_cpu_s"),
    "deliveries_and_effects_per_cpu_s_1000_ed25519": (1_000, "ed25519", "deliveries_and_effects_per_cpu_s"),
    "client_rounds_per_cpu_s_10000_mac": (10_000, "mac", "client_rounds_per_cpu_s"),
    "client_rounds_per_cpu_s_10000_ed25519": (10_000, "ed25519", "client_rounds_per_cpu_s"),
    "peak_rss_mb_10000": (10_000, "mac", "peak_rss_mb"),
}
SIGNATURES: Final = {"mac": "keyed hash", "ed25519": "Ed25519"}
SWARM: Final = 10_000
SWARM_TIMEOUT_S: Final = 1_800


def main() -> None:
    """Measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", type=int, help="fleets of so many devices alone, and no peer and no swarm")
    arguments = parser.parse_args()
    rows = [ours(*case) for case in CASES if arguments.only in (None, case[0])]
    swarm = None
    if arguments.only is None:
        rows += [_told(sim_flower.measure(devices, rounds)) for devices, rounds in sim_flower.CASES]
        swarm = hold(SWARM)
    found = {
        "machine": machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "rows": [*rows, *([swarm] if swarm else [])],
        "targets": targets(rows, swarm),
    }
    print(json.dumps(found) if arguments.json else "\n".join(table(found)))


def ours(devices: int, rounds: int, keys: str, weather: str) -> dict[str, Any]:
    """One fleet of ours."""
    command = [sys.executable, "-m", "benchmarks.sim_ours", str(devices), str(rounds), keys, weather]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return _told(json.loads(done.stdout))


def hold(devices: int) -> dict[str, Any]:
    """What the swarm said of itself."""
    command = [str(Path(sys.executable).with_name("firmware-sim")), "swarm", "--devices", str(devices), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=SWARM_TIMEOUT_S)
    if done.returncode:
        return {"swarm": devices, "reason": f"firmware-sim swarm ended with status {done.returncode}"}
    return _told({"swarm": devices, **json.loads(done.stdout)})


def targets(rows: Sequence[dict[str, Any]], swarm: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of the target row; None for what was not measured."""
    found: dict[str, Any] = {}
    for target, (devices, keys, figure) in TARGETS.items():
        mine = [
            row[figure]
            for row in rows
            if (row["devices"], row.get("signatures"), row.get("weather")) == (devices, SIGNATURES[keys], "storm")
        ]
        found[target] = mine[0] if mine else None
    found["swarm_connections_held"] = swarm.get("connections_held") if swarm else None
    return found


def table(found: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [f"{found['machine']}, {found['date']}", ""]
    lines.append("simulator       devices rounds  weather  signatures   deliv.+effects/s  client-rounds/s  peak MB")
    for row in found["rows"]:
        if "swarm" in row:
            lines.append("")
            lines.append(f"swarm of {row['swarm']}: " + ", ".join(f"{key} {value}" for key, value in row.items()))
            continue
        if "reason" in row:
            lines.append(f"{row['simulator']}: {row['devices']} devices: {row['reason']}")
            continue
        rate = row.get("deliveries_and_effects_per_cpu_s", "")
        client_rounds, peak_mb = row["client_rounds_per_cpu_s"], row["peak_rss_mb"]
        lines.append(
            f"{row['simulator']:15} {row['devices']:7} {row['rounds']:6}  {row.get('weather', ''):7}  "
            f"{row.get('signatures', ''):11} {rate!s:>17} {client_rounds:16.1f} {peak_mb:8.0f}"
        )
    lines.append("")
    lines += [f"{name:46} {value}" for name, value in found["targets"].items()]
    return lines


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
