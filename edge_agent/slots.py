"""Which model version predicts on this device: two slots on flash, the one in use and the one before it.

    a child has run version v ─▶ its dry run is right, and it is no worse here ─▶ v is in use, the last one is kept
                              └▶ else the one in use stays, and v is not tried again by itself

The owner may go back one version without the coordinator, and without a link (`edge-agent model rollback`): what he
went back from is not taken again. Training goes on with whatever version a round names; what predicts is the device's
own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cbor2
import msgspec

from edge_agent import flash
from edge_agent.flash import Model  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from edge_agent.disk import Disk

_NAME: Final = "in_use"


class Slots(msgspec.Struct, frozen=True):
    """What predicts here, and what did before."""

    now: Model
    before: Model | None = None
    refused_version: int = 0  # that the owner went back from


class SlotError(Exception):
    """There is nothing to go back to. One line."""


def load(disk: Disk) -> Slots | None:
    """What is on flash; None when nothing is in use yet, or the note is damaged."""
    data = disk.read(_NAME)
    try:
        return None if data is None else msgspec.convert(cbor2.loads(data), Slots, builtin_types=(bytes,))
    except (cbor2.CBORError, msgspec.ValidationError):
        return None


def take(disk: Disk, model: Model) -> None:
    """Let `model`, which is whole on flash, predict from now on, unless the owner went back from it."""
    slots = load(disk)
    if slots is not None and model.version in (slots.now.version, slots.refused_version):
        return
    keep = Slots(model) if slots is None else Slots(model, slots.now, slots.refused_version)
    _save(disk, keep)


def back(disk: Disk) -> Slots:
    """Let the version before predict again. Raises SlotError where there is none."""
    slots = load(disk)
    if slots is None:
        raise SlotError("no model is in use here yet: it comes with the first round")
    if slots.before is None:
        raise SlotError(f"version {slots.now.version} is in use, and none before it is kept here")
    return _save(disk, Slots(slots.before, None, slots.now.version))


def files(disk: Disk) -> set[bytes]:
    """The digests of the files that must stay on flash for either slot."""
    slots = load(disk)
    models = [] if slots is None else [slots.now, *([slots.before] if slots.before else [])]
    return {file.digest for model in models for file in model.files}


def as_tree(slots: Slots) -> dict[str, int | None]:
    """The three numbers, for JSON."""
    before = None if slots.before is None else slots.before.version
    return {"in_use": slots.now.version, "before": before, "refused": slots.refused_version or None}


def as_lines(slots: Slots) -> list[str]:
    """What a person reads."""
    lines = [f"version {slots.now.version} predicts here"]
    if slots.before is not None:
        lines.append(f"version {slots.before.version} did before: edge-agent model rollback goes back to it")
    if slots.refused_version:
        lines.append(f"version {slots.refused_version} is not taken again: the owner went back from it")
    return lines


def _save(disk: Disk, slots: Slots) -> Slots:
    flash.replace_file(disk, _NAME, cbor2.dumps(msgspec.to_builtins(slots, builtin_types=(bytes,))))
    return slots
