"""Which model version predicts on this device: two slots on flash, the one in use and the one before it.

    a child has run version v ─▶ its dry run is right, and it is no worse here ─▶ v is in use, the last one is kept
                              └▶ else the one in use stays, and v is not tried again by itself

A version that has come into use is on probation (`edge_agent.probation`): `Note` tells that machine what happens, and
writes down what follows. The owner may go back one version without the coordinator, and without a link
(`edge-agent model rollback`). What was gone back from is not taken again. Training goes on with whatever version a
round names; what predicts is the device's own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import cbor2
import msgspec

from edge_agent import flash, probation
from edge_agent.disk import FULL
from edge_agent.probation import Event, Probation, Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.disk import Disk
    from edge_agent.flash import Model

NONE_YET: Final = "no model is in use here yet: it comes with the first round, or where a [source] is watched, before"
_NAME: Final = "in_use"


class Shown(msgspec.Struct, frozen=True):
    """What a person, or a script, is told."""

    in_use: int = 0  # the version; 0: none yet
    before: int | None = None
    refused: int | None = None
    tries_left: int | None = None  # of the version in use; None: it stays
    reason: str = ""  # why the refused one is refused; empty: the owner went back from it

    def as_tree(self) -> dict[str, int | str | None]:
        """For JSON."""
        return msgspec.structs.asdict(self)


class SlotError(Exception):
    """There is nothing to go back to. One line."""


def load(disk: Disk) -> Slots | None:
    """What is on flash; None when nothing is in use yet, or the note is damaged."""
    data = disk.read(_NAME)
    try:
        return None if data is None else msgspec.convert(cbor2.loads(data), Slots, builtin_types=(bytes,))
    except (cbor2.CBORError, msgspec.ValidationError):
        return None


def take(disk: Disk, model: Model) -> Slots | None:
    """Let `model`, which is whole on flash, predict from now on; None where it does, or may not: nothing is written."""
    slots = load(disk)
    after = probation.taken(slots, model)
    return None if after == slots or after is None else _save(disk, after)


def back(disk: Disk) -> Slots:
    """Let the version before predict again, as the owner wants it. Raises SlotError where there is none."""
    slots = load(disk)
    if slots is None:
        raise SlotError(NONE_YET)
    if slots.before is None:
        raise SlotError(f"version {slots.now.version} is in use, and none before it is kept here")
    return _save(disk, probation.went_back(slots, slots.before))


class Note:
    """The note of one running agent. `log` takes a word and fields."""

    def __init__(self, disk: Disk, now_ms: Callable[[], int], log: Callable[..., None], *, must_answer: bool) -> None:
        self._disk, self._now_ms, self._log = disk, now_ms, log
        self._probation = Probation(must_answer=must_answer)
        self._lost = ""  # why it could not be written
        self.shown = Shown()

    def tell(self, event: Event) -> None:
        """Let `event` be known, and have on flash what follows from it. A card that fails is an OSError."""
        before = load(self._disk)
        after = self._probation.handle(before, event, self._now_ms())
        if after is not None and before is not None and after != before:
            after = self._write(before, after, event)
        self.shown = Shown() if after is None else shown(after)

    def _write(self, before: Slots, after: Slots, event: Event) -> Slots:
        """What is on flash then."""
        log, version, refused = self._log, after.now.version, after.refused_version
        try:
            _save(self._disk, after)
        except OSError as error:
            if error.errno not in FULL:
                raise
            lost, self._lost = self._lost, f"no room to note what became of version {before.now.version}"
            if lost != self._lost:  # else it was said, and comes again every few seconds
                log("note-lost", reason=f"{self._lost}: {error.strerror}")
            return before
        if version != before.now.version:
            log("went-back", version=refused, in_use=version, reason=after.refused_because)
        elif after.tries_left is None:
            log("committed", version=version)
        else:
            reason = event.reason if isinstance(event, probation.Failed) else type(event).__name__.lower()
            log("probation", version=version, tries_left=after.tries_left, reason=reason)
        return after


def files(disk: Disk) -> set[bytes]:
    """The digests of the files that must stay on flash for either slot."""
    slots = load(disk)
    models = [] if slots is None else [slots.now, *([slots.before] if slots.before else [])]
    return {file.digest for model in models for file in model.files}


def shown(slots: Slots) -> Shown:
    """The numbers, and why."""
    before = None if slots.before is None else slots.before.version
    refused = slots.refused_version or None
    return Shown(slots.now.version, before, refused, slots.tries_left, slots.refused_because)


def as_lines(shown: Shown) -> list[str]:
    """What a person reads."""
    if not shown.in_use:
        return []
    left = shown.tries_left
    probation = "" if left is None else f", on probation: {left} more tries"
    lines = [f"version {shown.in_use} predicts here{probation}"]
    if shown.before is not None:
        lines.append(f"version {shown.before} did before: edge-agent model rollback goes back to it")
    if shown.refused:
        lines.append(f"version {shown.refused} is not taken again: {shown.reason or 'the owner went back from it'}")
    return lines


def _save(disk: Disk, slots: Slots) -> Slots:
    flash.replace_file(disk, _NAME, cbor2.dumps(msgspec.to_builtins(slots, builtin_types=(bytes,))))
    return slots
