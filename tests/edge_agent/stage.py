"""A stage for one agent machine: a coordinator that signs, a flash that answers, a clock moved by hand."""

from __future__ import annotations

import hashlib
import random

import msgspec

from edge_agent import effects
from edge_agent.agent import Agent, Identity
from edge_agent.budget import Limits
from wire import chunks, envelope, topics
from wire.messages import File, Manifest, Offer, Patch, Plan, Receipt, State, digest_of, encode

FLEET, DEVICE = "fleet-1", "dev-1"
LASTS_MS = 600_000
MODEL, PARAMS = b"m" * 2500, b"p" * 1000
CHUNK_BYTES = 1000

PLAN = Plan("digits", "last-1", "economy", 100, 1, 8, 0.1, 0.0, 1.0, 10, 4, 7, 5, 4096, 64 << 20, 60_000)
FINE = effects.Reading(temperature_c=40.0, battery_rate=0.9, on_mains=True, num_examples=50)


def sign(data: bytes) -> bytes:
    return hashlib.blake2b(data, key=b"device").digest()


def coordinator_sign(data: bytes) -> bytes:
    return hashlib.blake2b(data, key=b"coordinator").digest()


def manifest(version: int = 1, params: bytes = PARAMS, url: str = "") -> Manifest:
    files = (chunks.split("model.tflite", MODEL, CHUNK_BYTES), chunks.split("params.bin", params, CHUNK_BYTES))
    return Manifest("digits", version, max(0, version - 1), 100, files, url=url)


def patch_to(file: File, base: effects.Base) -> Patch:
    return Patch(file.digest, base.version, base.params, b"what to add")


class Stage:
    """Feeds one Agent and performs its file effects on a dict. `said` is everything that it published, opened."""

    def __init__(self, durable: effects.Durable | None = None, limits: Limits | None = None, **settings) -> None:
        identity = Identity(FLEET, DEVICE, sign, lambda data, mac: coordinator_sign(data) == mac)
        self.agent = Agent(identity, durable or effects.Durable(), limits or Limits(), random.Random(1), **settings)
        self.now_ms = 1_000
        self.flash: dict[bytes, dict[int, bytes]] = {}
        self.patches: dict[bytes, Patch | None] = {}  # None: dropped
        self.base: effects.Base | None = None  # the older version on flash
        self.effects: list[effects.Effect] = []  # all of them
        self.data = {"model.tflite": MODEL, "params.bin": PARAMS}

    def handle(self, event: effects.Event) -> list[effects.Effect]:
        """What follows from the event, with everything that flash's answers bring."""
        queue, followed = [event], []
        while queue:
            for effect in self.agent.handle(queue.pop(0), self.now_ms):
                followed.append(effect)
                match effect:
                    case effects.OpenFile(file=file) | effects.SealFile(file=file):
                        queue.append(self.file_state(file))
                    case effects.WritePatch(file=file, patch=patch):
                        self.patches[file.digest] = patch
                        queue.append(self.file_state(file))
                    case effects.DropPatch(file=file):
                        self.patches[file.digest] = None
                    case effects.WriteChunk(file=file, index=index, data=data):
                        self.flash.setdefault(file.digest, {})[index] = data
        self.effects += followed
        return followed

    def file_state(self, file) -> effects.FileState:
        have = self.flash.get(file.digest, {})
        whole = b"".join(have[index] for index in sorted(have))
        ready = hashlib.sha256(whole).digest() == file.digest
        patched = self.patches.get(file.digest) is not None
        base = self.base if file.name == "params.bin" and file.digest not in self.patches else None
        return effects.FileState(file.digest, ready, frozenset(have), patched=patched and not ready, base=base)

    def boot(self) -> list[effects.Effect]:
        return self.handle(effects.Booted())

    def connect(self, connection: int = 1) -> list[effects.Effect]:
        return self.handle(effects.Connected(connection))

    def read(self, reading: effects.Reading = FINE) -> list[effects.Effect]:
        return self.handle(reading)

    def hear(self, kind: str, message, *, to_all: bool = False) -> list[effects.Effect]:
        shared = to_all or (kind in topics.SHARED_KINDS and kind != "offer")
        topic = topics.shared(FLEET, kind) if shared else topics.dn(FLEET, DEVICE, kind)
        return self.handle(effects.Received(topic, envelope.seal(message, topic, coordinator_sign)))

    def tick(self, later_ms: int = 0) -> list[effects.Effect]:
        self.now_ms += later_ms
        return self.handle(effects.Tick())

    def offer(self, round_id: int = 1, version: int = 1, plan: Plan = PLAN, lasts_ms: int = LASTS_MS):
        return self.hear("offer", Offer(round_id, digest_of(encode(plan)), version, lasts_ms))

    def receipt(self, sealed: bytes, verdict: str, round_id: int = 1, reason: str = ""):
        return self.hear("receipt", Receipt(digest_of(sealed), round_id, verdict, reason))

    def serve(self, followed: list[effects.Effect]) -> list[effects.Effect]:
        """Answer every want in `followed`, and in what follows from that."""
        answered: list[effects.Effect] = []
        wants = said(followed, "want")
        while wants:
            want = wants.pop(0)
            for file in manifest().files:
                for span in want.ranges if file.digest == want.digest else ():
                    for index in range(span.first, span.first + span.count):
                        more = self.hear("chunk", chunks.chunk_at(self.data[file.name], file, index))
                        answered += more
                        wants += said(more, "want")
        return answered

    def ready(self) -> Stage:
        """Booted, connected, with a plan, a manifest and a good reading."""
        self.boot()
        self.read()
        self.connect()
        self.hear("state", State(1, True, 0, 1))
        self.hear("plan", PLAN)
        self.hear("manifest", manifest())
        return self

    def training(self, round_id: int = 1) -> Stage:
        """… and the training child of this round at work."""
        if not self.effects:
            self.ready()
        self.serve(self.offer(round_id))
        assert self.agent.work.value == "training", self.agent.reason
        return self

    def trained(self, round_id: int = 1, **changes) -> list[effects.Effect]:
        result = effects.Trained(round_id, b"payload", 40, 3, 10)
        return self.handle(msgspec.structs.replace(result, **changes))

    def sending(self, round_id: int = 1) -> bytes:
        """… and done; returns the outbox."""
        self.training(round_id)
        self.trained(round_id)
        return self.agent.durable.outbox


def said(followed: list[effects.Effect], kind: str) -> list:
    """The messages of this kind among the effects."""
    topic = topics.up(FLEET, DEVICE, kind)
    return [
        envelope.unseal(effect.payload, topic, lambda data, mac: sign(data) == mac)
        for effect in followed
        if isinstance(effect, effects.Publish) and effect.topic == topic
    ]


def names(followed: list[effects.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in followed]
