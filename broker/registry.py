"""Model versions: where the first one comes from, and how one leaves.

A version is a manifest and the files it names. `model.tflite` is the frozen base, the same for every version, so a
device fetches it once; `params.f32` are the trainable numbers, little-endian float32, all that a round changes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from engine.models import tflite
from engine.models.plan import head_of, params_of, reset_params
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, encode

if TYPE_CHECKING:
    from collections.abc import Callable


def first_version(model: bytes, name: str, train: str, reset_seed: int | None) -> tuple[Manifest, dict[bytes, bytes]]:
    """Make version 1 of a `.tflite` file: its manifest, and its files by digest.

    `train` says what is trainable ('last-2'). With `reset_seed` that part forgets what it had learned and starts at
    random numbers of this seed. Raises ModelError for a file that is unsound or cannot be trained so.
    """
    graph = tflite.read(model)
    head = head_of(graph, train)
    values = params_of(graph, head) if reset_seed is None else reset_params(head, reset_seed)
    params = values.astype("<f4").tobytes()
    files = (chunks.split(MODEL_FILE, model), chunks.split(PARAMS_FILE, params))
    manifest = Manifest(name, 1, 0, head.num_params, files)
    encode(manifest)  # a name or a size that no message may carry is refused here
    return manifest, {files[0].digest: model, files[1].digest: params}


def model_of(manifest: Manifest, blob: Callable[[bytes], bytes]) -> bytes:
    """The `.tflite` file under a version."""
    return _file(manifest, MODEL_FILE, blob)


def params_bytes_of(manifest: Manifest, blob: Callable[[bytes], bytes]) -> bytes:
    """The trainable parameters of a version, little-endian float32 [P]."""
    return _file(manifest, PARAMS_FILE, blob)


def export(manifest: Manifest, train: str, blob: Callable[[bytes], bytes]) -> bytes:
    """A version as the bytes of an .npz: `params` float32 [P]; per layer `weights_i` [outputs, inputs] and `bias_i`."""
    params = np.frombuffer(params_bytes_of(manifest, blob), dtype="<f4")
    arrays, start = {"params": params, "model_version": np.array(manifest.model_version)}, 0
    for number, layer in enumerate(head_of(tflite.read(model_of(manifest, blob)), train).layers):
        middle = start + layer.outputs * layer.inputs
        arrays[f"weights_{number}"] = params[start:middle].reshape(layer.outputs, layer.inputs)
        arrays[f"bias_{number}"] = params[middle : middle + layer.outputs]
        start = middle + layer.outputs
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _file(manifest: Manifest, name: str, blob: Callable[[bytes], bytes]) -> bytes:
    return blob(next(file.digest for file in manifest.files if file.name == name))
