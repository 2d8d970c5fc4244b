"""Who takes part in the fine-tuning benchmark: environments, what must be built beforehand, and the commands to run.

Environments are made with pip once and kept under .cache/bench, as are the graphs that two of the peers need built
before they train. Their names hold a digest of what they were built from. On a machine with a processor only, PyTorch
is smaller from its own index: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import environments
from benchmarks.environments import CACHE, ONE_THREAD, PEERS, ROOT, NotToBeHadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.finetune_models import Model

CHILD_SECONDS_MAX = 600
PACKAGES = {
    "torch": ("torch==2.13.0", "numpy"),
    "ort": ("onnxruntime-training-cpu==1.19.2", "torch==2.13.0", "numpy<2", "onnx==1.16.*"),
    "tensorflow": ("tensorflow-cpu==2.21.*", "ai-edge-litert==2.3.*"),
    "litert": ("ai-edge-litert==2.3.*", "numpy", "numba>=0.60"),
}


@dataclass(frozen=True)
class Engine:
    """One row of the table. `prepare(models_directory, model, mode)` builds what is missing and gives the command."""

    name: str
    ours: bool
    prepare: Callable[[Path, Model, str], list[str]]
    only_partial: bool = False

    def has(self, mode: str) -> bool:
        """Tell whether the row exists: how the frozen part runs makes no difference where there is none."""
        return mode != "full" or not self.only_partial


def run(command: list[str]) -> dict[str, Any]:
    """Run one process with one thread; return the JSON object it prints. Raises NotToBeHadError with its last line."""
    # what pip installed has its bytecode beside it; so shall this checkout
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ | ONE_THREAD,
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotToBeHadError(f"It took longer than {CHILD_SECONDS_MAX} s.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotToBeHadError(f"It ended with status {done.returncode}: {last[:300]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def network_of(model: Model) -> Path:
    """Where the peers' form of a model lies."""
    return CACHE / f"{model.name}.npz"


def environment(name: str) -> str:
    """Return the Python of a peer's environment, which is made if it is not there."""
    shipped = ROOT / ".venv-model"
    if name == "tensorflow" and (shipped / "installed").exists():
        return str(shipped / "bin" / "python")
    return environments.environment(name, PACKAGES[name])


def _peer(packages: str, script: str, variant: str) -> Callable[[Path, Model, str], list[str]]:
    """A peer that needs nothing but the network."""

    def prepare(_: Path, model: Model, mode: str) -> list[str]:
        file = str(PEERS / script)
        return [environment(packages), file, str(network_of(model)), str(model.trains[mode][0]), variant]

    return prepare


def _built(build: tuple[str, str, str], packages: str, script: str) -> Callable[[Path, Model, str], list[str]]:
    """A peer whose graph is built beforehand: `build` is (environment, script, word before the directory)."""

    def prepare(_: Path, model: Model, mode: str) -> list[str]:
        builder, builder_script, word = build
        network, first = network_of(model), str(model.trains[mode][0])
        source = (PEERS / builder_script).read_bytes() + network.read_bytes()
        digest = hashlib.sha256(source).hexdigest()[:12]
        folder = CACHE / "graphs" / f"{builder}-{model.name}-{mode}-{digest}"
        if not (folder / "done").exists():
            run([environment(builder), str(PEERS / builder_script), str(network), first, f"{word}:{folder}"])
            (folder / "done").touch()
        if (folder / "why.txt").exists():
            raise NotToBeHadError((folder / "why.txt").read_text())
        return [environment(packages), str(PEERS / script), str(network), first, str(folder)]

    return prepare


def _ours(packages: str, frozen: str) -> Callable[[Path, Model, str], list[str]]:
    def prepare(directory: Path, model: Model, mode: str) -> list[str]:
        python = environment(packages) if packages else sys.executable
        where = [str(directory), model.name, str(network_of(model))]
        return [python, "-m", "benchmarks.finetune_ours", *where, mode, frozen]

    return prepare


ENGINES = (
    Engine("PyTorch NCHW", ours=False, prepare=_peer("torch", "pytorch.py", "nchw")),
    Engine("PyTorch NHWC", ours=False, prepare=_peer("torch", "pytorch.py", "nhwc")),
    Engine(
        "ONNX Runtime training",
        ours=False,
        prepare=_built(("ort", "ort_training.py", "prepare"), "ort", "ort_training.py"),
    ),
    Engine("TensorFlow", ours=False, prepare=_peer("tensorflow", "tensor_flow.py", "function")),
    Engine(
        "LiteRT signature",
        ours=False,
        prepare=_built(("tensorflow", "tensor_flow.py", "export"), "litert", "litert_signature.py"),
    ),
    Engine("hedgerow, LiteRT each step", ours=True, prepare=_ours("litert", "runtime"), only_partial=True),
    Engine("hedgerow, tflite-runtime each step", ours=True, prepare=_ours("", "runtime"), only_partial=True),
    Engine("hedgerow, own int8 each step", ours=True, prepare=_ours("", "own"), only_partial=True),
    Engine("hedgerow", ours=True, prepare=_ours("", "cached")),
)
