"""Two thousand mutated model files in a process of limited memory; `make nightly` takes a hundred thousand."""

import re
import subprocess
import sys


def test_mutated_files_are_read_or_refused_within_the_memory_declared():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_models", "2000"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = {(kind, fate): int(n) for kind, fate, n in re.findall(r"\.(\w+) (taken|refused) (\d+)", done.stdout)}
    assert sum(counts.values()) == 2000
    assert min(counts[kind, fate] for kind in ("onnx", "tflite") for fate in ("taken", "refused")) > 50
