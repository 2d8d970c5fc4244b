"""A story from the field, lived again: the product's own machine, fed the same events, must do the same to the bit.

    checkpoint ─▶ Agent ─event─▶ effects = recorded? ─▶ … ─▶ next checkpoint = recorded? ─▶ … ─▶ the end, as recorded

No effect is performed. Messages are believed by the public key in the story; a signature is looked up by what was
signed, so a machine that says something else gets none, and its effect is another. The machine stops at the first
difference, or where it raises: that is where to look.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edge_agent import story, storyfile
from edge_agent.agent import Agent
from edge_agent.storyfile import DIGEST_BYTES, StoryError
from edge_agent.voice import Identity
from firmware_sim import keyring
from wire.envelope import SIGNATURE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.checkpoint import Checkpoint
    from edge_agent.effects import Effect
    from edge_agent.storyfile import Entry, Record

EFFECT_CHARS_MAX: Final = 300
_RAISED: Final = (  # whatever a machine at fault may raise; only the services may catch everything
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Verdict(NamedTuple):
    """What became of a story."""

    same_count: int  # events whose every effect was as recorded
    difference: str  # the first one, as a sentence; "" when there is none
    raised: str  # what the machine raised, and where

    @property
    def same(self) -> bool:
        """Did everything go as recorded, to the end?"""
        return not (self.difference or self.raised)


class _Echo:
    """A signer without a key: it knows the signatures that were made while one event was handled."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def expect(self, entry: Entry) -> None:
        """Know the signatures of this entry."""
        self._known = {signed[:DIGEST_BYTES]: signed[DIGEST_BYTES:] for signed in entry.signed}

    def sign(self, data: bytes) -> bytes:
        """The recorded signature of `data`; zeros when something else was signed."""
        return self._known.get(storyfile.digest_of(data), bytes(SIGNATURE_BYTES))


def replay(record: Record, tell: Callable[[Entry], None] = lambda _entry: None) -> Verdict:
    """Live the story again, and `tell` each entry as it comes. Raises StoryError when it cannot be."""
    entries = record.replayable
    if not entries or not entries[0].checkpoint:
        raise StoryError("nothing of this story can be lived again: it can only be read, by edge-agent story")
    events = [storyfile.event_of(entry) for entry in entries]
    checkpoints = [storyfile.checkpoint_of(entry) if entry.checkpoint else None for entry in entries]
    assert checkpoints[0] is not None, "the first entry was seen to have one"
    echo = _Echo()
    agent = _build(record, checkpoints[0], echo)
    for number, (entry, event, checkpoint) in enumerate(zip(entries, events, checkpoints, strict=True)):
        tell(entry)
        echo.expect(entry)
        if checkpoint is not None and (wrong := _other_memory(checkpoint, agent.checkpoint())):
            return Verdict(number, f"before {_name(entry)} the machine remembers something else: {wrong}", "")
        try:
            effects = agent.handle(event, entry.at_ms)
        except _RAISED as error:
            return Verdict(number, "", storyfile.ending_of(error))
        if wrong := _other_effects(entry, effects):
            return Verdict(number, f"{_name(entry)}: {wrong}", "")
    return Verdict(len(entries), "", "")


def as_lines(record: Record, verdict: Verdict) -> list[str]:
    """What a person reads after the entries."""
    count = len(record.replayable)
    recorded = story.head(record)
    if verdict.raised:
        return [f"event {verdict.same_count + 1} of {count} raises: {verdict.raised}", recorded]
    if verdict.difference:
        return [f"event {verdict.same_count + 1} of {count} differs. {verdict.difference}", recorded]
    return [f"{count} events replayed, every effect as recorded", recorded]


def as_tree(record: Record, verdict: Verdict) -> dict[str, Any]:
    """The same for scripts, with the events."""
    return {"same": verdict.same, **verdict._asdict(), "story": story.as_tree(record)}


def _build(record: Record, checkpoint: Checkpoint, echo: _Echo) -> Agent:
    life = record.life
    try:
        verify = keyring.verifier(life.coordinator_key)
    except ValueError as error:  # KeyTextError among them
        raise StoryError(f"the coordinator's public key in the story is none: {error}") from error
    identity = Identity(life.fleet, life.device_id, echo.sign, verify, life.software, life.runtime)
    jitter = random.Random(0)  # the checkpoint holds the state that it had
    return Agent(identity, checkpoint, life.limits, jitter, telemetry_ms=life.telemetry_ms)


def _other_memory(recorded: Checkpoint, now: Checkpoint) -> str:
    names = recorded.__struct_fields__
    return ", ".join(name for name in names if getattr(recorded, name) != getattr(now, name))


def _other_effects(entry: Entry, effects: list[Effect]) -> str:
    """What is not as recorded, as a sentence; "" when nothing is."""
    names = storyfile.names_of(effects)
    if entry.effects is None:
        return f"recorded: it raised; now: {_listed(names)}"
    if entry.effects != names:
        return f"recorded: {_listed(entry.effects)}; now: {_listed(names)}"
    digests = storyfile.digests_of(effects)
    if entry.digests == digests:
        return ""
    for index, effect in enumerate(effects):
        at = index * DIGEST_BYTES
        if entry.digests[at : at + DIGEST_BYTES] != digests[at : at + DIGEST_BYTES]:
            return f"effect {index + 1}, {names[index]}, is another; now: {repr(effect)[:EFFECT_CHARS_MAX]}"
    return "more digests are recorded than there are effects"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"


def _name(entry: Entry) -> str:
    return f"{entry.event} at {entry.at_ms / 1000:.3f} s"
