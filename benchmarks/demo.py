"""The demo as a benchmark: the main job with every kill in it, at five seeds; the median of each figure.

    make bench-demo                  one table
    make bench-demo ARGS=--json      one JSON object: {machine, date, rows, targets}

Each seed is a whole `firmware-sim demo` in processes of its own. A run takes as long as its seeds together.
"""

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = (
    "accuracy_central",
    "accuracy_final",
    "accuracy_gap_to_central",
    "dense_over_update_bytes",
    "updates_lost",
    "updates_double_counted",
    "agent_idle_rss_mb",
    "overhead_bytes",
)
NEVER = ("updates_lost", "updates_double_counted")  # a median would hide a single one


def run_demo(seed: int) -> dict[str, object]:
    """The summary of one demo, as `summary.json` has it."""
    with tempfile.TemporaryDirectory() as out:
        command = [str(Path(sys.executable).with_name("firmware-sim")), "demo", "--json"]
        done = subprocess.run(
            [*command, "--seed", str(seed), "--out", out], stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(done.stdout)


def machine() -> str:
    """What ran it, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processors = [line.split(":")[1].strip() for line in lines if line.startswith("model name")] or ["unnamed"]
    return f"{platform.machine()}, {processors[0]}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Run the seeds, print the table or the object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        print(f"seed {seed} ...", file=sys.stderr, flush=True)
        rows.append(run_demo(seed))
    targets = {
        name: max(row[name] for row in rows) if name in NEVER else statistics.median(row[name] for row in rows)
        for name in TARGETS
    }
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    if arguments.json:
        print(json.dumps({"machine": machine(), "date": today, "rows": rows, "targets": targets}))
        return
    print(f"{machine()}, {today}")
    for name in TARGETS:
        print(f"{name:28} {targets[name]:10.4g}   of {', '.join(f'{row[name]:.4g}' for row in rows)}")


if __name__ == "__main__":
    main()
