"""The promises that the auditor holds every world to: a name and a sentence each."""

from __future__ import annotations

from typing import Final, NoReturn

INVARIANTS: Final = {
    "one update": "one device, one round, one update: never two different update bytes under one key",
    "persist, then speak": "an update on the wire is in the outbox on flash, byte for byte",
    "store, then receipt": "who is told accepted or duplicate has that very update in the database already",
    "store, then say": "epochs, rounds and versions are in the database before anyone hears of them",
    "counted once": "a stored update is counted exactly once by the end, and nothing else is counted",
    "enough": "no round closes with fewer updates than it asked for",
    "drawn": "a buffered round counts only devices whose coin is below its share",
    "cancelled by wish": "a round ends without a version only when the operator cancelled it, else with one",
    "one scale": "a version counts only updates that count in the scales of the version before",
    "tried, then shared": "where a ring tries versions first, nobody else ever hears of one that is worse",
    "late, then lighter": "an update weighs its examples, at most the plan's limit, less by the root of its staleness",
    "finished, then counted": (
        "a finished update is counted once, but for faulty ones, those of older scales, "
        "and those of rounds before the last that a replaced card had done"
    ),
    "outbox kept": "an outbox is emptied only after a receipt that names its digest was delivered",
    "true model": "a training reads exactly the files of the version that its update names",
    "true base": "a base file holds the parameters of the version that its manifest says, the first of its epoch",
    "true residual": "a training begins with the residual that the last counted update left",
    "patch, then whole": "after a patch has failed, its device asks for the whole file and for no other patch of it",
    "noted, then whole": "the model version that is noted on flash is whole there, whenever the power fails",
    "starts again": "whatever was cut, a device finds its durable state when it starts, and as it is on the card",
    "budget kept": "nothing trains, is fetched or told beyond what the owner allows, by the newest reading of the host",
    "one child": "a device never runs two training children",
    "only growing": "epochs, rounds and model versions only grow",
    "timers move on": "after a tick the next one is later",
    "progress": "after healing, every round closes and every outbox empties",
    "everyone": "after healing, a round counts every device",
    "quiet": "a fleet with nothing to do says nothing but telemetry and births",
    "one answer": "nobody is sent more receipts than updates came in its name, and births before it was enrolled",
    "no flood": "of one version, no device is sent more in ten minutes than four times its chunks, or 64",
}


class Violation(AssertionError):  # noqa: N818 - the word of the trade
    """A promise is broken. `name` is a key of INVARIANTS."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{INVARIANTS[name]}; but {what}")
        self.name = name


def fail(name: str, what: str) -> NoReturn:
    """Raise the Violation of this promise."""
    raise Violation(name, what)
