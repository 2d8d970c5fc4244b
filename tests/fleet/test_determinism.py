"""A seed names a run: the same digest again, in another process, and whatever order its sets have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_sim import storm

ROOT = Path(__file__).parents[2]
SEEDS = (4, 7)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_gives_the_same_digest(seed):
    first, again = storm.run(seed), storm.run(seed)
    assert first.digest == again.digest
    assert first.faults == again.faults


def test_another_seed_gives_another_digest():
    assert storm.run(SEEDS[0], rounds=1).digest != storm.run(SEEDS[0] + 2, rounds=1).digest


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_another_process_with_another_hash_seed_gives_the_same_digest(hash_seed):
    code = f"from firmware_sim import storm; print(*(storm.run(seed).digest for seed in {SEEDS}))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [storm.run(seed).digest for seed in SEEDS]
