"""The models that tests read: the two shipped ones, and the MLPerf Tiny ones where FLEET_MODELS names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from engine.models import interpreter

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
ELSEWHERE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny"
needs_elsewhere = pytest.mark.skipif(
    not ELSEWHERE.is_dir(), reason="FLEET_MODELS names no folder with the MLPerf Tiny models in mlperf_tiny"
)
MLPERF = [
    "ad01_int8.tflite",
    "ad01_fp32.tflite",
    "kws_ref_model.tflite",
    "pretrainedResnet_quant.tflite",
    "pretrainedResnet.tflite",
    "str_ww_ref_model.tflite",
    "vww_96_int8.tflite",
]
MODELS = [
    SHIPPED / "digits.tflite",
    SHIPPED / "wrist.tflite",
    *(pytest.param(ELSEWHERE / name, marks=needs_elsewhere) for name in MLPERF),
]
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def loaded(data, **options):
    """A `.tflite` file in the runtime, with its reference kernels."""
    _, module = interpreter._runtime()
    opened = module.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_REF,
        **options,
    )
    opened.allocate_tensors()
    return opened


def random_input(graph, seed=0):
    """Numbers for the graph's input as it stores them."""
    entry = graph.tensors[graph.inputs[0]]
    rng = np.random.default_rng(seed)
    if entry.dtype == "float32":
        return rng.normal(0, 1, entry.shape).astype(np.float32)
    return rng.integers(-128, 128, entry.shape).astype(np.int8)
