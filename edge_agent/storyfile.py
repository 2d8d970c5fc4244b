"""A story as a file: who it is about, its events, and what each of them needs to be lived again.

It is MessagePack rather than CBOR, since msgspec makes bounded types straight of its bytes: an engineer opens a
stranger's file, and nothing untyped may come of it. An event and a checkpoint lie in it as bytes of their own, which
are read only when somebody wants to live them again: another release's story can at least be told.
"""

import hashlib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from edge_agent import effects
from edge_agent.budget import Limits
from edge_agent.checkpoint import Checkpoint
from edge_agent.effects import Effect, Event, TakeModel
from wire import topics
from wire.envelope import SIGNATURE_BYTES
from wire.messages import Count, DeviceId, FleetId, Name, Reason, fit_reason

VERSION: Final = 1
LENGTH_MAX: Final = 1000  # entries
FILE_BYTES_MAX: Final = 4 << 20
DIGEST_BYTES: Final = 8

T = TypeVar("T")
Signed: TypeAlias = Annotated[
    bytes, Meta(min_length=DIGEST_BYTES + SIGNATURE_BYTES, max_length=DIGEST_BYTES + SIGNATURE_BYTES)
]

_ENCODER: Final = msgspec.msgpack.Encoder()
_ORDERED: Final = msgspec.msgpack.Encoder(order="deterministic")  # a set has one form, whatever its hashes
_EVENTS: Final[dict[str, Any]] = {kind.__name__.lower(): kind for kind in get_args(Event)}


class StoryError(Exception):
    """There is no story, or the bytes are none; one sentence."""


class Life(Struct, frozen=True, array_like=True):
    """Whose story it is: what its machine was built with, but for the checkpoint and the private key."""

    fleet: FleetId
    device_id: DeviceId
    software: Name
    coordinator_key: Annotated[str, Meta(max_length=200, pattern=r"^[\x21-\x7e]*\Z")]  # the text of the public key
    limits: Limits
    telemetry_ms: Count
    runtime: Annotated[str, Meta(max_length=100)] = ""  # the model runtime that was installed


class Entry(Struct, frozen=True, array_like=True):
    """One event and what followed. Without `content` it can only be read."""

    at_ms: Count  # since the program started
    event: Name  # as the log names it
    effects: Annotated[tuple[Name, ...], Meta(max_length=10_000)] | None  # None: it raised
    digests: bytes = b""  # of the effects, one after the other
    content: bytes = b""  # the event
    signed: tuple[Signed, ...] = ()  # what was signed meanwhile: its digest, and the signature
    checkpoint: bytes = b""  # of the machine before the first event of a part


class Record(Struct, frozen=True, array_like=True, tag="hedgerow-story"):
    """A story as it lies on flash. A field is never removed or retyped within a version; a new one has a default."""

    version: Literal[1]
    life: Life
    ending: Reason
    forgotten_count: Count  # events before the first entry
    entries: Annotated[tuple[Entry, ...], Meta(max_length=LENGTH_MAX)]

    @property
    def replayable(self) -> tuple[Entry, ...]:
        """The entries that can be lived again: all after the last one that has lost its content."""
        without = [number for number, entry in enumerate(self.entries, 1) if not entry.content]
        return self.entries[without[-1] if without else 0 :]


def encode(value: Record | Event | Checkpoint) -> bytes:
    """What `load`, `event_of` and `checkpoint_of` read."""
    return _ENCODER.encode(value)


def load(path: Path) -> Record:
    """The story in the file at `path`, whoever wrote it. Raises StoryError unless it is one."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise StoryError(f"{path} is no story: it has more than {FILE_BYTES_MAX >> 20} MB")
    return _decode(data, Record, f"{path} is no story that this release can read")


def event_of(entry: Entry) -> Event:
    """The event that an entry keeps. Raises StoryError when it is none that is known here."""
    kind = _EVENTS.get(entry.event.partition("-")[0])
    if kind is None:
        raise StoryError(f"this release knows no event {entry.event}")
    event: Event = _decode(entry.content, kind, f"the story is damaged at its event {entry.event}")
    return event


def checkpoint_of(entry: Entry) -> Checkpoint:
    """The machine's memory before the event of an entry. Raises StoryError when there is none."""
    return _decode(entry.checkpoint, Checkpoint, "the story is damaged at a checkpoint")


def name_of(event: Event) -> str:
    """`received-offer`, `trained` and so on. A topic is hostile text: only the names we know are repeated."""
    name = type(event).__name__.lower()
    if isinstance(event, effects.Received):
        kind = event.topic.rpartition("/")[2]
        name += f"-{kind}" if kind in (*topics.DN_KINDS, *topics.SHARED_KINDS) else "-other"
    return name


def names_of(followed: Iterable[Effect | TakeModel]) -> tuple[str, ...]:
    """What the effects are."""
    return tuple(type(effect).__name__ for effect in followed)


def digests_of(followed: Iterable[Effect]) -> bytes:
    """A short digest of what is in each effect: it tells mistakes, not malice."""
    return b"".join(digest_of(_ORDERED.encode(effect)) for effect in followed)


def digest_of(data: bytes) -> bytes:
    """The short digest of an effect, and of what was signed."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def ending_of(error: BaseException) -> str:
    """What was raised, in which file and line, as a Reason."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
    return fit_reason(f"{type(error).__name__} at {where}: {error}")


def _decode(data: bytes, kind: type[T], wrong: str) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoryError(f"{wrong}: {fit_reason(str(error))}") from error
