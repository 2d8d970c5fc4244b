"""The model that a device predicts with before it has taken part in any round. Pure.

    manifest ─▶ room? ─▶ want ─▶ chunk … chunk ─▶ model.tflite is whole ─▶ TakeModel

A device that watches a source shall be useful from its first minute, also where it has no label yet and no plan would
train there. Until the first version is in use, this fetches the base file under the version that is out, which holds a
version's own numbers (`base_version` of the manifest), and lets that predict, on probation as any other. It stands
beside the agent's machine and hears what that hears: it says nothing while that fetches or trains, and is done for good
once any version is in use here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from edge_agent import budget, runtime
from edge_agent.download import Download
from edge_agent.effects import (
    Connected,
    Disconnected,
    Fetched,
    FetchFailed,
    FetchRanges,
    FileFailed,
    FileState,
    Reading,
    Received,
    TakeModel,
    Trained,
    Work,
)
from edge_agent.voice import NotBelieved
from wire.messages import MODEL_FILE, Chunk, Manifest

if TYPE_CHECKING:
    from edge_agent.effects import Effect, Event
    from edge_agent.voice import Identity

AGAIN_MS: Final = 600_000  # after a card that had no room


class FirstModel:
    """Of one life of the agent. `wanted`: something predicts here, and no version is in use yet."""

    def __init__(self, identity: Identity, limits: budget.Limits, *, wanted: bool) -> None:
        self._id, self._limits, self._wanted = identity, limits, wanted
        self._is_up = False
        self._reading = Reading()
        self._manifest: Manifest | None = None
        self._download: Download | None = None
        self._not_before_ms = 0

    def handle(self, event: Event, now_ms: int, work: Work) -> list[Effect | TakeModel]:
        """What follows from what the agent's machine heard just now; `work` is what that does about learning."""
        if not self._wanted:
            return []
        effects: list[Effect | TakeModel] = []
        match event:
            case Connected() | Disconnected():
                self._is_up = isinstance(event, Connected)
                if self._download is not None:
                    self._download.ask_afresh()
            case Reading():
                self._reading = event
            case Received(topic=topic, payload=payload):
                effects = self._on_received(topic, payload, now_ms)
            case FileState() | Fetched() | FetchFailed() if self._download is not None:
                effects = [*self._download.handle(event, now_ms)]
            case FileFailed() if self._download is not None:
                self._download, self._not_before_ms = None, now_ms + AGAIN_MS
            case Trained():
                self._wanted = False  # a version has run here, and is in use if it is any good
            case _:
                return []
        return [*effects, *self._advance(now_ms, work)]

    def _on_received(self, topic: str, payload: bytes, now_ms: int) -> list[Effect | TakeModel]:
        try:
            message = self._id.hear(topic, payload).message
        except NotBelieved:
            return []  # the agent's machine counts it
        if isinstance(message, Chunk) and self._download is not None:
            return [*self._download.handle(message, now_ms)]
        if isinstance(message, Manifest) and (self._manifest is None or message.files != self._manifest.files):
            self._manifest, self._download = message, None
        return []

    def _advance(self, now_ms: int, work: Work) -> list[Effect | TakeModel]:
        base = None if self._manifest is None else _base_of(self._manifest)
        if base is None or not self._is_up or work in {Work.FETCHING, Work.TRAINING} or now_ms < self._not_before_ms:
            return []
        if runtime.refusal(base, self._id.runtime) is not None:
            return []
        if self._download is None:
            self._download = Download(base)
            return [*self._download.start()]
        if self._download.complete:
            self._wanted = False
            return [TakeModel(base.model_version, base.files[0])]
        if budget.link_refusal(self._limits, self._reading) is not None:
            self._download.pause()
            return []
        asks = self._download.asks(now_ms, budget.bytes_left(self._reading))
        return [ask if isinstance(ask, FetchRanges) else self._id.say(ask, "want") for ask in asks]


def _base_of(manifest: Manifest) -> Manifest | None:
    """The version whose numbers the base file holds, as if that file were all of it; None where none is known."""
    files = tuple(file for file in manifest.files if file.name == MODEL_FILE)
    if not files or not manifest.base_version:
        return None
    return msgspec.structs.replace(manifest, model_version=manifest.base_version, files=files)
