"""Live through a few simulated storms and print their digests: `python -m tests.targets.worlds`.

A digest names everything that happened in a run: every message, byte of flash and fault. Two machines that print the
same ran the same storm.
"""

from __future__ import annotations

import json
import platform

from firmware_sim import storm

SEEDS = (0, 1, 3, 5)  # of the full storm, signed with Ed25519, and of three profiles drawn at random


def main() -> None:
    """Print one JSON object: where this runs, and the digest of each seed."""
    found = {"in use": f"Python {platform.python_version()} on {platform.machine()}"}
    print(json.dumps(found | {str(seed): storm.run(seed).digest for seed in SEEDS}))


if __name__ == "__main__":
    main()
