"""What a device keeps from one update to the next, in one file under the number of the round that left it.

In lane economy that is what it still owes, in lane hardened the estimate that the coordinator holds of it; where the
plan corrects gradients, the control; and the layers of its own, where the plan has such. All of it becomes true when
its update is accepted, and only then (`edge_agent.agent`). A trial keeps what there was.

The file is what engine/codec/residual.py or estimate.py writes. With a control there stand in front of that the magic
"HKP1" and its length, 4 bytes, little-endian, and behind it what engine/control.py writes. With layers of its own there
stand in front of all that the magic "HKL1", a length like that, and so many bytes that engine/own.py writes.

Imports the engine: for the training child, never for the agent.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_agent.effects import Job
    from engine.codec.estimate import Estimate
    from engine.codec.residual import Owed
    from engine.control import Control
    from engine.frame import Frame
    from engine.models.graph import Content
    from engine.own import Own
    from wire.messages import Plan

_MAGIC: Final = b"HKP1"
_OWN: Final = b"HKL1"
_HEADER: Final = struct.Struct("<4sI")


class Left(NamedTuple):
    """What earlier updates left."""

    owed: Owed | Estimate
    control: Control | None = None
    own: Own | None = None


class Coded(NamedTuple):
    """An update's payload, what is kept once it is accepted, and what bytes left out, for the owner."""

    payload: bytes
    owed: Owed | Estimate
    note: str


def read(kept: Content | None, plan: Plan, frame: Frame) -> tuple[Left, str]:
    """What earlier rounds left, and what to tell the owner if something of that is lost."""
    from engine import control, own
    from engine.codec.header import CodecError

    mine, kept = _parted(kept, _OWN)
    first, rest = _parted(kept, _MAGIC)
    main = first or kept
    owed, note = _owed(main, plan, frame)
    left, notes = Left(owed), [note]
    try:
        if first and rest and (plan.scaffold or plan.lane == "trial"):
            left = left._replace(control=control.load(bytes(rest), frame, plan.scale_epoch))
    except CodecError as error:
        notes.append(str(error))
    try:
        left = left._replace(own=own.load(bytes(mine), frame) if mine else None)
    except CodecError as error:
        notes.append(str(error))
    return left, "; ".join(filter(None, notes))


def own_of(kept: bytes, frame: Frame) -> Own | None:
    """The layers of its own that a kept file holds; None where it holds none that fit."""
    from engine import own
    from engine.codec.error import CodecError

    mine, _ = _parted(kept, _OWN)
    try:
        return own.load(bytes(mine), frame) if mine else None
    except CodecError:
        return None


def code(delta: NDArray[Any], owed: Owed | Estimate, frame: Frame, job: Job, bytes_max: int) -> Coded:
    """Make the update of a delta [P]: its payload has `bytes_max` bytes at most. Raises CodecError."""
    from engine.codec import estimate
    from engine.codec.residual import Sending, step

    plan = job.plan
    sending = Sending(
        k=min(plan.keep_count, frame.suffix.num_params),
        value_bits=plan.value_bits,
        coding=plan.coding,
        clip_norm=plan.clip_norm,
        bytes_max=bytes_max,
        momentum=plan.momentum_correction,
        decay=plan.residual_decay,
    )
    if isinstance(owed, estimate.Estimate):
        said = estimate.say(delta, owed, frame, sending, job.round_id)
        return Coded(said.payload, said.estimate, said.note)
    sent = step(delta, owed, frame, sending, job.base_version)
    return Coded(sent.payload, sent.owed, sent.note)


def dump(left: Left, scale_epoch: int) -> bytes:
    """Give the bytes to keep."""
    from engine import control, own
    from engine.codec import estimate
    from engine.codec.residual import dump_owed

    if isinstance(left.owed, estimate.Estimate):
        main = estimate.dump(left.owed, scale_epoch)
    else:
        main = dump_owed(left.owed, scale_epoch)
    if left.control is not None:
        main = _HEADER.pack(_MAGIC, len(main)) + main + control.dump(left.control, scale_epoch)
    if left.own is None:
        return main
    mine = own.dump(left.own)
    return _HEADER.pack(_OWN, len(mine)) + mine + main


def _parted(kept: Content | None, magic: bytes) -> tuple[Content, Content | None]:
    """The part behind this magic, and what follows it, as they lie in the file; (nothing, all) without it."""
    if kept is None or len(kept) < _HEADER.size or kept[: len(magic)] != magic:
        return b"", kept
    end = _HEADER.size + _HEADER.unpack_from(kept)[1]
    return kept[_HEADER.size : end], kept[end:]


def _owed(kept: Content | None, plan: Plan, frame: Frame) -> tuple[Owed | Estimate, str]:
    from engine.codec import estimate
    from engine.codec.header import CodecError
    from engine.codec.residual import load_owed, nothing_owed

    size, note = frame.suffix.num_params, ""
    hardened = plan.lane == "hardened" or (
        plan.lane == "trial" and kept is not None and kept[: len(estimate.MAGIC)] == estimate.MAGIC
    )
    if kept is not None:
        try:
            if hardened:
                return estimate.load(kept, size, plan.scale_epoch), note
            return load_owed(kept, size, frame.lane, plan.scale_epoch), note
        except CodecError as error:
            note = str(error)
    return (estimate.nothing(size) if hardened else nothing_owed(frame)), note
