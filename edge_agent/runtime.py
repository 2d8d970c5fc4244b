"""Which model runtime this device has, and whether it can run a version: asked before a byte of it is fetched.

A model file names its operators, each with a version, and a manifest repeats them. A runtime that lacks one of these
refuses the whole file: what today's converters write is often too new for yesterday's devices. Nothing is loaded here.
What a runtime has was asked of that runtime itself, of the reference kernels that the engine takes, and is asked again
by the tests. Of a runtime that was not asked, and of operators that are not in the table, nothing is known and nothing
refused: what runs there, the first tries on the device show (`edge_agent.probation`).
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from wire.messages import Manifest

# Per runtime: the newest version that it has of each operator; it has all the older ones.
NEWEST: Final[dict[str, dict[str, int]]] = {
    "tflite-runtime 2.14.0": {
        "ADD": 5, "AVERAGE_POOL_2D": 3, "BATCH_TO_SPACE_ND": 4, "CAST": 4, "CONCATENATION": 3, "CONV_2D": 6,
        "DEPTHWISE_CONV_2D": 6, "DEPTH_TO_SPACE": 1, "DEQUANTIZE": 4, "DIV": 2, "EXPAND_DIMS": 1, "FULLY_CONNECTED": 9,
        "GATHER": 6, "GELU": 2, "HARD_SWISH": 1, "L2_NORMALIZATION": 2, "L2_POOL_2D": 1, "LEAKY_RELU": 2, "LOGISTIC": 3,
        "LOG_SOFTMAX": 2, "LSTM": 4, "MAXIMUM": 4, "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 4, "MUL": 7, "PACK": 3,
        "PAD": 4, "PADV2": 4, "PRELU": 1, "QUANTIZE": 2, "REDUCE_MAX": 3, "RELU": 3, "RELU6": 3, "RELU_N1_TO_1": 1,
        "RESHAPE": 1, "RESIZE_BILINEAR": 4, "RNN": 3, "RSQRT": 2, "SHAPE": 1, "SOFTMAX": 3, "SPACE_TO_BATCH_ND": 4,
        "SPACE_TO_DEPTH": 2, "SPLIT": 4, "SQRT": 1, "SQUARED_DIFFERENCE": 2, "SQUEEZE": 1, "STRIDED_SLICE": 4, "SUB": 5,
        "SUM": 2, "SVDF": 4, "TANH": 3, "TRANSPOSE": 5, "TRANSPOSE_CONV": 3,
    },
}  # fmt: skip


def installed_runtime() -> str:
    """The runtime that the engine takes, as `tflite-runtime 2.14.0`; empty where there is none."""
    for name in ("ai-edge-litert", "tflite-runtime"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def refusal(manifest: Manifest, runtime: str) -> str | None:
    """Why `runtime`, which is as `installed_runtime` gives it, cannot run this version; None: no reason is known."""
    newest = NEWEST.get(runtime, {})
    lacks = (needed for needed in manifest.operators if needed.version > newest.get(needed.kind, needed.version))
    if (needed := next(lacks, None)) is None:
        return None
    what = f"model version {manifest.model_version} needs {needed.kind} version {needed.version}"
    return f"{what}, {runtime} has {newest[needed.kind]}: export the model for an older runtime, or install a newer one"
