"""Model versions: where the first one comes from, and how one leaves.

A version is a manifest and the files it names. `model.tflite` is the base, the same for all versions of a scale epoch,
so a device fetches it once; `params.bin` holds the trainable numbers as the base stores them, all that a round changes.
The base holds the numbers of the version that opened its epoch: who has it fetches no params.bin whole. What leaves is
one file again, the base with the version's numbers in their places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine import master
from engine.dry_run import golden
from engine.frame import frame_of
from engine.models import tflite
from engine.models.scheme import constants_of, params_of, reset_params
from engine.rescale import grown
from wire import chunks
from wire.limits import OPERATORS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Operator, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.frame import Frame
    from engine.models.graph import Content


class First(NamedTuple):
    """Version 1: its manifest, its files by digest, and what the coordinator keeps of it beside (engine.master)."""

    manifest: Manifest
    blobs: dict[bytes, bytes]
    remainder: bytes


def first_version(model: bytes, name: str, train: str, reset_seed: int | None) -> First:
    """Make version 1 of a `.tflite` file.

    `train` says what is trainable ('last-2'). With `reset_seed` that part forgets what it had learned and starts at
    random numbers of this seed. Raises ModelError for a file that is unsound or cannot be trained so.
    """
    frame = frame_of(model, train)
    _check_can_be_written(frame)
    if reset_seed is None:
        params = params_of(frame.graph, frame.suffix)
    else:
        params = reset_params(frame.graph, frame.suffix, reset_seed)
    numbers = master.first(frame, params)
    while reset_seed is not None and (larger := grown(frame, numbers)) is not None:
        frame, numbers = (
            larger  # fresh numbers crowd small scales: better now than after a round, when all have the file
        )
    holding = frame.holding(numbers.published)  # None: fresh numbers, and of their channels others would train
    base = bytes((frame if holding is None else holding).model)
    files = (chunks.split(MODEL_FILE, base), chunks.split(PARAMS_FILE, numbers.published))
    manifest = Manifest(
        name,
        1,
        0,
        frame.suffix.num_params,
        files,
        base_version=0 if holding is None else 1,
        golden=golden(frame, numbers.published),
        operators=operators_of(base),
    )
    encode(manifest)  # a name or a size that no message may carry is refused here
    return First(manifest, {files[0].digest: base, files[1].digest: numbers.published}, numbers.remainder)


def operators_of(base: Content) -> tuple[Operator, ...]:
    """What a runtime must have to run a base file; nothing, where that is more than a manifest may carry."""
    found = tuple(Operator(kind, version) for kind, version in tflite.operators(base))
    return found if len(found) <= OPERATORS_MAX else ()


def model_of(manifest: Manifest, blob: Callable[[bytes], bytes]) -> bytes:
    """The base `.tflite` file under a version."""
    return _file(manifest, MODEL_FILE, blob)


def params_bytes_of(manifest: Manifest, blob: Callable[[bytes], bytes]) -> bytes:
    """The trainable parameters of a version, as scheme.dump_params writes them."""
    return _file(manifest, PARAMS_FILE, blob)


def export(manifest: Manifest, train: str, blob: Callable[[bytes], bytes]) -> bytes:
    """A version as one `.tflite` file, which any runtime loads. Raises ModelError."""
    return frame_of(model_of(manifest, blob), train).file_with(params_bytes_of(manifest, blob))


def _check_can_be_written(frame: Frame) -> None:
    """Refuse a file in which two layers share their constants, before a fleet trains what cannot be put together."""
    params = params_of(frame.graph, frame.suffix)
    params = ((np.arange(len(params)) + 1) % 127).astype(params.dtype)  # no two layers' alike
    tflite.patch(frame.model, frame.graph, constants_of(frame.graph, frame.suffix, params))


def _file(manifest: Manifest, name: str, blob: Callable[[bytes], bytes]) -> bytes:
    return blob(next(file.digest for file in manifest.files if file.name == name))
