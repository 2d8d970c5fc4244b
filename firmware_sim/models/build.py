"""Builds the two shipped models, `digits.tflite` and `wrist.tflite`, and says what they can do.

    python3 firmware_sim/models/build.py           build both into this folder, with SHA256SUMS
    python3 firmware_sim/models/build.py --check   build both elsewhere; exit 1 unless operators and accuracy match

TensorFlow is needed here and nowhere else, so it gets an environment of its own, `.venv-model` beside the project
(one minute to install). Training on another processor gives other bytes; `--check` therefore compares the operators,
one by one, and the accuracies, within two points.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-model"
PACKAGES = ("tensorflow-cpu==2.21.*", "ai-edge-litert==2.3.*", "scikit-learn==1.9.*")
ACCURACY_SLACK = 0.02
Measured = tuple[list[str], dict[str, float]]


def main(arguments: list[str]) -> int:
    """Make the environment where it is missing, and go on inside it."""
    python = ENVIRONMENT / "bin" / "python"
    if Path(sys.prefix).resolve() == ENVIRONMENT:
        return check() if "--check" in arguments else build()
    if not (ENVIRONMENT / "installed").exists():
        _say(f"making {ENVIRONMENT} with {', '.join(PACKAGES)} (about a minute)")
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (ENVIRONMENT / "installed").write_text("\n".join(PACKAGES) + "\n")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), "-W", "ignore", "-m", "firmware_sim.models.build", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | quiet, check=False).returncode


def build() -> int:
    """Build both files into this folder, write SHA256SUMS, print operators and accuracies."""
    for name, make in _recipes().items():
        (HERE / name).write_bytes(make())
        _report(name, (HERE / name).read_bytes())
    sums = [f"{hashlib.sha256((HERE / name).read_bytes()).hexdigest()}  {name}\n" for name in _recipes()]
    (HERE / "SHA256SUMS").write_text("".join(sums))
    return 0


def check() -> int:
    """Build both files in memory and compare them with the shipped ones; 0 if they match."""
    matching = True
    for name, make in _recipes().items():
        shipped, rebuilt = _report(name, (HERE / name).read_bytes()), _report(f"{name}, rebuilt", make())
        worst = max(abs(shipped[1][key] - rebuilt[1][key]) for key in shipped[1])
        same = shipped[0] == rebuilt[0] and worst <= ACCURACY_SLACK
        _say(f"{name}: {'matches' if same else 'DIFFERS'} (accuracy within {worst:.4f})")
        matching &= same
    return 0 if matching else 1


def _recipes() -> dict[str, Callable[[], bytes]]:
    from firmware_sim.models.digits_net import digits_model
    from firmware_sim.models.wrist_net import wrist_model

    return {"digits.tflite": digits_model, "wrist.tflite": wrist_model}


def _report(name: str, data: bytes) -> Measured:
    operators, accuracy = measure(name.split(".", maxsplit=1)[0], data)
    _say(f"{name}: {len(data)} bytes, {' '.join(operators)}")
    for key, value in accuracy.items():
        _say(f"    {value:.4f}  {key}")
    return operators, accuracy


def measure(kind: str, data: bytes) -> Measured:
    """Return the operators in order, and the accuracies that can be had without any data from outside."""
    import numpy as np

    from engine.models.interpreter import open_model
    from engine.models.scheme import resolve
    from engine.models.tflite import cut_prefix, read
    from firmware_sim.models.digits_net import digits
    from firmware_sim.models.split import digits_split
    from firmware_sim.models.wrist_net import synthetic_motion

    graph = read(data)
    suffix = resolve(graph, "last-2")
    hidden = graph.tensors[suffix.layers[0].weights].shape[0]
    accuracy = {}
    if kind == "digits":
        (windows, labels), rows = digits(), digits_split()
        teach, test = rows["fleet"], rows["test"]
        answers = open_model(data)(windows[test]).argmax(axis=1)
        accuracy["int8 file as shipped, digits test rows"] = float((answers == labels[test]).mean())
    else:
        windows, labels = synthetic_motion(900, np.random.default_rng(1))
        teach, test = np.arange(600), np.arange(600, 900)
    entering = graph.tensors[suffix.entering]
    stored = open_model(cut_prefix(data, suffix.cut, suffix.entering))(windows).astype(np.float32)
    known = (stored - np.float32(entering.zero_point[0])) * entering.scale[0]
    accuracy["new head on the int8 features, logistic"] = _retrained(known, labels, teach, test, hidden=0)
    accuracy["new head on the int8 features, two layers"] = _retrained(known, labels, teach, test, hidden=hidden)
    return [operator.kind for operator in graph.operators], accuracy


def _retrained(
    known: NDArray[np.float32],
    labels: NDArray[np.int64],
    teach: NDArray[np.int64],
    test: NDArray[np.int64],
    *,
    hidden: int,
) -> float:
    """Teach a fresh head of `hidden` units (0: none) the rows `teach`; return its accuracy on the rows `test`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    scaled = known / known[teach].std()
    if hidden:
        head = MLPClassifier((hidden,), solver="sgd", learning_rate_init=0.02, max_iter=150, tol=0.0, random_state=0)
    else:
        head = LogisticRegression(max_iter=3000)
    return float(head.fit(scaled[teach], labels[teach]).score(scaled[test], labels[test]))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
