"""SCAFFOLD on a device that sleeps (Karimireddy et al. 2020, arXiv:1910.06378): what sets it apart is taken out.

    correction = SHARE * (fleet's gradient - own gradient)           joins the gradient in every step (engine/drift.py)

    own gradient      the mean of all steps' uncorrected gradients when the device last took part (the paper's c_i)
    fleet's gradient  in place of c: how far the published numbers have moved since then, for one version, divided by
                      how far a gradient of 1 moves a device: learning rate * (sum over steps of the momentum's sum)

The paper's server keeps c and sends it along, as much as a second model; here the versions themselves say where the
fleet goes, for no bytes at all. It is an estimate: c is the mean of all c_i, so that corrections cancel over the fleet,
and this one's do not. Corrected in full a fleet would go on where it was going for ever; SHARE is the leak. Measured in
docs/decisions/0021.

Own gradient, numbers and version are kept on flash beside the residual (`edge_agent.residuals`), in 32 bytes (magic
"HCT1", n, the scale epoch, the version, how many bytes the numbers have, CRC-32 of all the rest; little-endian), n
binary16, and the numbers as scheme.dump_params writes them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from engine.codec.header import CodecError
from engine.models.scheme import load_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.frame import Frame
    from engine.models.graph import Content
    from engine.train import Recipe

SHARE: Final = 0.75
_MAGIC: Final = b"HCT1"
_HEADER: Final = struct.Struct("<4sIQQI")
_CHECKSUM: Final = struct.Struct("<I")
_GRADIENT_MAX: Final = 65504.0  # of binary16
_PLAIN: Final = "this training is not corrected"


class Version(NamedTuple):
    """A model version, and its numbers as scheme.dump_params writes them."""

    number: int
    published: Content


@dataclass(frozen=True, eq=False)
class Control:
    """What a device keeps of a training: its mean gradient float16 [P], and the version from which it started."""

    gradient: NDArray[np.float16]
    version: Version


def control_of(gradient: NDArray[np.float32], version: Version) -> Control:
    """Keep the mean gradient float32 [P] of a training that started from this version."""
    return Control(np.clip(gradient, -_GRADIENT_MAX, _GRADIENT_MAX).astype(np.float16), version)


def correction_of(
    control: Control | None, frame: Frame, version: Version, recipe: Recipe, count: int
) -> NDArray[np.float32]:
    """What to add to every gradient, real numbers float32 [P], when `version` is trained on `count` examples.

    Zeros where nothing is known: at the first time, in a new scale epoch, or while there is no newer version.
    """
    if control is None or version.number <= control.version.number:
        return np.zeros(frame.suffix.num_params, np.float32)
    now, then = (load_params(frame.suffix, each.published).astype(np.float64) for each in (version, control.version))
    whole = (version.number - control.version.number) * recipe.learning_rate * _reach(recipe, count)
    fleet = (then - now) * frame.scale.astype(np.float64) / whole
    correction: NDArray[np.float32] = (SHARE * (fleet - control.gradient.astype(np.float64))).astype(np.float32)
    return correction


def dump(control: Control, scale_epoch: int) -> bytes:
    """Give the bytes to keep on flash."""
    version, numbers = control.version, control.gradient.astype("<f2").tobytes()
    head = _HEADER.pack(_MAGIC, len(control.gradient), scale_epoch, version.number, len(version.published))
    rest = numbers + version.published
    return head + _CHECKSUM.pack(_checksum(head, rest)) + rest


def load(kept: bytes, frame: Frame, scale_epoch: int) -> Control:
    """Read what `dump` kept. Raises CodecError where it is damaged, or of another model or scale epoch."""
    start = _HEADER.size + _CHECKSUM.size
    if len(kept) < start or kept[: len(_MAGIC)] != _MAGIC:
        raise CodecError(f"The control on flash is damaged; {_PLAIN}.")
    _, size, epoch, version, length = _HEADER.unpack_from(kept)
    checksum = _CHECKSUM.pack(_checksum(kept[: _HEADER.size], kept[start:]))
    if checksum != kept[_HEADER.size : start] or len(kept) != start + 2 * size + length:
        raise CodecError(f"The control on flash is damaged; {_PLAIN}.")
    published = kept[start + 2 * size :]
    if (size, epoch, length) != (frame.suffix.num_params, scale_epoch, len(frame.own())):
        raise CodecError(f"The control on flash is of another model or scale epoch; {_PLAIN}.")
    return Control(np.frombuffer(kept, "<f2", size, start).astype(np.float16), Version(version, published))


def _reach(recipe: Recipe, count: int) -> float:
    """How far a gradient of 1 moves a device in one round, for a learning rate of 1."""
    speed = reach = 0.0
    for _ in range(recipe.epochs * -(-count // recipe.batch_size)):
        speed = recipe.momentum * speed + 1.0
        reach += speed
    return reach


def _checksum(head: bytes, rest: bytes) -> int:
    return zlib.crc32(rest, zlib.crc32(head))
