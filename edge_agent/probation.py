"""Whether a version that has come into use here stays, or the one before comes back. Pure: events in, slots out.

    taken ─▶ on probation, its first try ──has answered, and was connected long enough──▶ stays
                  │  ▲
                  └──┘ failed, or the agent started anew: the next try      no try left ─▶ the one before predicts again

A try is on flash before the version is loaded for it, so that a version which takes the whole board down uses up its
tries, too. What fails is the program that predicts: it died, or could not load the version. Where no source is
configured nothing predicts by itself, and starts of the agent alone are counted. An orderly end of the agent gives the
try back.

Healthy is who has answered one window, and was connected to the MQTT server for `CONNECTED_MS` since it last failed: in
this life of the agent, and in those before it that ended in order. Only connected time counts: a link that is lost says
nothing about a version, and what is found out about it should be heard by somebody who can mend it. The one before is
one that has stayed, if there ever was one: a version that comes while another is on probation takes the place of that
one alone.
"""

from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.flash import Model
from wire.messages import fit_reason

TRIES: Final = 3
CONNECTED_MS: Final = 180_000


class Slots(Struct, frozen=True):
    """What predicts here, and what did before."""

    now: Model
    before: Model | None = None  # the last one that has stayed, or else the first of all
    refused_version: int = 0  # that is not taken again
    tries_left: int | None = None  # of the version in use, after the one that it is having; None: it stays
    connected_ms: int = 0  # of the version in use on probation, since it last failed
    refused_because: str = ""  # why the refused version failed here; empty: the owner went back from it


class Started(Struct, frozen=True):
    """The agent starts. After an orderly end that costs nothing."""


class Failed(Struct, frozen=True):
    """The program that predicts died, or could not load the version in use."""

    reason: str


class Answered(Struct, frozen=True):
    """This version has answered a window, as the first one after another version, or after a death."""

    version: int


class Looked(Struct, frozen=True):
    """Comes every few seconds: whether the link is up."""

    connected: bool


class Ended(Struct, frozen=True):
    """The agent ends because it was told to."""


Event: TypeAlias = Started | Failed | Answered | Looked | Ended


def taken(slots: Slots | None, model: Model) -> Slots | None:
    """The slots once `model` has come into use, on probation; unchanged where it is in use or refused."""
    if slots is None:
        return Slots(model, tries_left=TRIES - 1)
    if model.version in (slots.now.version, slots.refused_version):
        return slots
    stays = slots.tries_left is None
    before = slots.now if stays or slots.before is None else slots.before
    return Slots(model, before, slots.refused_version, TRIES - 1, 0, slots.refused_because)


def went_back(slots: Slots, before: Model, reason: str = "") -> Slots:
    """The slots once the version before predicts again; the present one is not taken any more."""
    return Slots(before, None, slots.now.version, refused_because=reason)


class Probation:
    """What one life of the agent knows about the version in use. `must_answer`: something predicts here."""

    def __init__(self, *, must_answer: bool) -> None:
        self._must_answer = must_answer
        self._answered = 0  # the version that answered last
        self._version = 0  # of which the following is known
        self._connected_ms = 0
        self._up_ms: int | None = None  # when the link was last seen up

    def handle(self, slots: Slots | None, event: Event, now_ms: int) -> Slots | None:
        """The slots that must be on flash before anything else happens."""
        if isinstance(event, Answered):
            self._answered = event.version
        if slots is None or slots.tries_left is None:
            return slots
        if slots.now.version != self._version:
            self._version, self._connected_ms, self._up_ms = slots.now.version, slots.connected_ms, None
        match event:
            case Started():  # the time of a life that did not end in order was never written down
                return _try_again(slots, slots.tries_left, "the agent did not end in order")
            case Failed(reason=reason):
                self._answered, self._connected_ms, self._up_ms = 0, 0, None
                return _try_again(replace(slots, connected_ms=0), slots.tries_left, reason)
            case Ended():
                return replace(slots, tries_left=slots.tries_left + 1, connected_ms=self._connected_ms)
            case Looked(connected=connected):
                self._count(now_ms, connected=connected)
        has_shown = self._answered == self._version or not self._must_answer
        stays = has_shown and self._connected_ms >= CONNECTED_MS
        return replace(slots, tries_left=None, connected_ms=0) if stays else slots

    def _count(self, now_ms: int, *, connected: bool) -> None:
        if connected and self._up_ms is not None:
            self._connected_ms += now_ms - self._up_ms
        self._up_ms = now_ms if connected else None


def _try_again(slots: Slots, tries_left: int, reason: str) -> Slots:
    if tries_left:
        return replace(slots, tries_left=tries_left - 1)
    if slots.before is None:
        return slots  # there is nothing to go back to
    return went_back(slots, slots.before, fit_reason(f"it failed {TRIES} times here, at last: {reason}"))
