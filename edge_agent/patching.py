"""The training child's side of a patch: the parameters of the job's version, made of an older version's if need be.

    files/{digest} is there        ─▶ read it
    files/{digest}.patch is there  ─▶ base + patch ─▶ SHA-256 as in the manifest? ─▶ files/{digest}, and the patch goes

The base is a file on flash, or else what model.tflite itself holds; in either case the patch names its SHA-256. Until
the SHA-256 is right nothing has the file's name, so that neither training nor prediction ever reads a guess.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from edge_agent import flash
from wire.messages import PARAMS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from edge_agent.disk import Disk
    from edge_agent.effects import Job
    from engine.models.graph import Content
    from wire.messages import File

    Read: TypeAlias = Callable[[bytes], memoryview | None]


class PatchError(Exception):
    """The patch makes no parameters of this version; the sentence says why. The whole file must be fetched."""


def make_params(disk: Disk, job: Job, model: Content, read: Read | None = None) -> Content | None:
    """Make params.bin of the job's version of its patch, and show it; None where there is no patch to apply.

    `model` is its base file, `read` finds a whole file by its digest. Raises PatchError, and engine's ModelError and
    ValueError for a model that does not fit the plan.
    """
    file = next((file for file in job.files if file.name == PARAMS_FILE), None)
    if file is None or not flash.has_patch(disk, file) or flash.is_whole(disk, file.digest):
        return None
    return flash.complete_file(disk, file, _apply(disk, job, model, file, read or partial(flash.map_whole, disk)))


def _apply(disk: Disk, job: Job, model: Content, file: File, read: Read) -> bytes:
    from engine.codec import patch as patches
    from engine.codec.header import CodecError
    from engine.frame import frame_of

    patch = flash.read_patch(disk, file.digest)
    if patch is None:
        raise PatchError(f"the patch of version {job.base_version} is damaged on flash")
    frame = frame_of(model, job.plan.train)
    base: Content | None = read(patch.base_digest)
    if base is None:
        base = frame.own()
        if hashlib.sha256(base).digest() != patch.base_digest:
            raise PatchError(
                f"version {patch.base_version}, from which the patch starts, is damaged or gone from flash"
            )
    try:
        params = patches.apply(frame, base, patch.payload)
    except CodecError as error:
        raise PatchError(f"the patch from version {patch.base_version} does not fit: {error}") from error
    if hashlib.sha256(params).digest() != file.digest:
        raise PatchError(f"the patch from version {patch.base_version} makes something else than its manifest says")
    return params
