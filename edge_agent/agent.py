"""The agent as a pure state machine: events in, effects out. No clock, no socket, no disk, no chance of its own.

Two machines side by side; neither knows the other's state:

    link:  DOWN ──Connected──▶ UP ──Disconnected──▶ DOWN

    work:  IDLE ──offer, plan, manifest──▶ FETCHING ──files ready──▶ TRAINING ──Trained──▶ SENDING ──receipt──▶ IDLE
                                              ▲  └─budget says no─▶ WAITING   │
                                              └──────── PatchFailed ──────────┘

Work goes on while the link is down; only sending waits for it. SENDING is not a memory of ours but a fact on
flash: the outbox is not empty. Rules that keep finished work:

1. The update is on flash before it is published, in the same write that says its round is done.
2. It is resent, byte for byte the same, until a receipt names its digest. Nothing else empties the outbox.
3. While the outbox is full no other round is trained: one device, one update at a time, in the order of rounds.
4. The residual that an update leaves becomes the true one only when that update is accepted; none is true any more
   where the coordinator does not hold what the update builds on.
5. A patch is a guess until the child has applied it. One that fails costs one download of the whole file, and does
   not count among the failures of the round.
6. The owner's limits hold while training, too: what grows too hot is stopped, and tried again later.
7. A Tick at `wake_at_ms` always moves `wake_at_ms` on, or clears it: no state of ours can keep a shell busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_agent import budget, runtime
from edge_agent.checkpoint import Checkpoint
from edge_agent.download import Arrival, Download
from edge_agent.effects import (
    Booted,
    Connected,
    Disconnected,
    DropPatch,
    Durable,
    Effect,
    Event,
    Fetched,
    FetchFailed,
    FetchRanges,
    FileFailed,
    FileState,
    Forget,
    Job,
    PatchFailed,
    Persist,
    Reading,
    Received,
    SetLabel,
    StartTraining,
    StopTraining,
    Tick,
    Trained,
    TrainingFailed,
    Work,
)
from edge_agent.outbox import Outbox, residual_after
from edge_agent.presence import Presence
from edge_agent.tries import Tries
from edge_agent.voice import Identity, NotBelieved
from wire import coin, topics
from wire.messages import (
    PARAMS_FILE,
    Chunk,
    Label,
    Manifest,
    Offer,
    Patch,
    Plan,
    Receipt,
    State,
    digest_of,
    fit_reason,
)

if TYPE_CHECKING:
    from random import Random

__all__ = ["Agent", "Identity", "Work"]

BUDGET_CHECK_MS = 60_000


class Agent:
    """One device's decisions. `handle` is the only door; `wake_at_ms` the only timer."""

    def __init__(
        self,
        identity: Identity,
        start: Durable | Checkpoint,
        limits: budget.Limits,
        jitter: Random,
        *,
        telemetry_ms: int = 300_000,
    ) -> None:
        kept = start if isinstance(start, Checkpoint) else Checkpoint(start)
        self.durable = kept.durable
        self.reason = kept.reason  # why it does not do more, for status and telemetry
        self.receipt = kept.receipt  # the last one that emptied the outbox
        self.refused_count = dict(kept.refused_count)  # what arrived and was not believed, by reason
        self._id = identity
        self._limits = limits
        self._outbox = Outbox(jitter, kept.outbox)
        self._presence = Presence(identity, telemetry_ms, kept.presence)
        self._reading = kept.reading
        self._plans = dict(kept.plans)  # at most the newest retained one
        self._manifest = kept.manifest
        self._offer, self._offer_ends_ms = kept.offer, kept.offer_ends_ms
        self._download = Download(kept.manifest, kept.download) if kept.manifest and kept.download else None
        self._training, self._training_ends_ms = kept.training, kept.training_ends_ms
        self._tries = Tries(kept.tries)

    @property
    def work(self) -> Work:
        """What the device is doing about learning, for status and telemetry."""
        if self._training is not None:
            return Work.TRAINING
        if self.durable.outbox:
            return Work.SENDING
        if self._offer is None:
            return Work.IDLE
        if self._download is not None and not self._download.complete:
            return Work.FETCHING
        return Work.WAITING

    @property
    def wake_at_ms(self) -> int | None:
        """The earliest time at which a Tick would change something."""
        times = [self._tries.due_ms]
        if self._training is not None:
            times.append(self._training_ends_ms)
        elif self._offer is not None and not self.durable.outbox:
            times.append(self._offer_ends_ms)
        if self._presence.connection is not None:
            times += [self._outbox.due_ms, self._presence.due_ms]
            times.append(self._download.wake_at_ms if self._download else None)
        return min((time for time in times if time is not None), default=None)

    def last_will(self, connection: int) -> tuple[str, bytes]:
        """Topic and payload of the death that the MQTT server publishes if this connection breaks."""
        death = self._presence.last_will(self.durable.boot, connection)
        return death.topic, death.payload

    def checkpoint(self) -> Checkpoint:
        """All that `handle` goes by, but for what the constructor is given besides. It changes nothing."""
        download = self._download.checkpoint() if self._download is not None else None
        return Checkpoint(
            self.durable, self.reason, self.receipt, dict(self.refused_count), self._reading, dict(self._plans),
            self._manifest, self._offer, self._offer_ends_ms, self._training, self._training_ends_ms,
            self._outbox.checkpoint(), self._presence.checkpoint(), self._tries.checkpoint(), download,
        )  # fmt: skip

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Decide what follows from `event`. Effects are to be performed in order."""
        match event:
            case Booted():
                self._presence.start(now_ms)
                return [*self._keep(boot=self.durable.boot + 1), self._forget()]
            case Connected(connection=connection):
                self._presence.connection = connection
                self._outbox.hurry()
                return [self._presence.birth(self.durable, self._reading), *self._send(now_ms), *self._fetch(now_ms)]
            case Disconnected():
                self._presence.connection = None
                self._outbox.rest()
                if self._download is not None:
                    self._download.ask_afresh()
                return []
            case Received(topic=topic, payload=payload):
                return self._on_received(topic, payload, now_ms)
            case FileState() | Fetched() | FetchFailed():
                return self._on_download(event, now_ms)
            case FileFailed():
                return self._on_file_failed(event, now_ms)
            case Trained():
                return self._on_trained(event, now_ms)
            case TrainingFailed():
                return self._on_training_failed(event.round_id, event.reason, now_ms)
            case PatchFailed():
                return self._on_patch_failed(event, now_ms)
            case Reading():
                self._reading = event
                return [*self._stop_if_over_limits(), *self._advance(now_ms)]
            case Tick():
                return self._on_tick(now_ms)

    # What arrives

    def _on_received(self, topic: str, payload: bytes, now_ms: int) -> list[Effect]:
        try:
            message, encoded = self._id.hear(topic, payload)
        except NotBelieved as error:
            self._count(error.reason)
            return []
        fetching = self._download is not None and not self._download.complete
        if not topics.is_shared(topic):  # what everyone hears does not show that anybody heard us
            self._presence.heard(message, self._outbox_digest, fetching=fetching)
        match message:
            case State():
                return self._on_state(message, now_ms)
            case Plan():
                self._plans = {digest_of(encoded): message}
                return self._advance(now_ms)
            case Manifest():
                return self._on_manifest(message, now_ms)
            case Offer():
                return self._on_offer(message, now_ms)
            case Receipt():
                return self._on_receipt(message, now_ms)
            case Chunk() | Patch():
                return self._on_download(message, now_ms)
            case Label():
                return [SetLabel(message.window, message.label)]
            case _:
                return []

    def _on_state(self, state: State, now_ms: int) -> list[Effect]:
        if state.epoch == self._presence.epoch or not state.online or self._presence.connection is None:
            return []
        # Another run of the coordinator, or the same one behind a new session: it may have missed us.
        self._presence.epoch = state.epoch
        self._outbox.hurry()
        if self._download is not None:
            self._download.ask_afresh()
        return [self._presence.birth(self.durable, self._reading), *self._send(now_ms), *self._fetch(now_ms)]

    def _on_manifest(self, manifest: Manifest, now_ms: int) -> list[Effect]:
        known = self._manifest.model_version if self._manifest else self.durable.model_version
        if manifest.model_version < known:  # a replay: versions only grow
            self._count("old")
            if self._manifest is None:
                self.reason = f"model version {manifest.model_version} is older than {known}, which trained here"
            return []
        if self._download is not None and self._download.manifest != manifest:
            self._download = None  # nobody serves the old version for long; what was fetched stays on flash
        self._manifest = manifest
        return self._advance(now_ms)

    def _on_offer(self, offer: Offer, now_ms: int) -> list[Effect]:
        if offer.round_id <= self.durable.last_round_id:
            return self._send(now_ms)  # finished before; what it left is in the outbox, or was receipted
        if self._offer is not None and offer.round_id < self._offer.round_id:
            return []
        wait_ms = coin.wait_ms(offer, self._id.fleet, self._id.device_id)
        if wait_ms is None:  # an offer of the same round that had drawn us, by a larger share, still holds
            self.reason = f"not drawn for round {offer.round_id}" if self.work is Work.IDLE else self.reason
            return []
        is_new = offer.round_id != self._tries.round_id  # else it has waited for this round, or pauses after a failure
        if is_new and wait_ms and self._training is None and not self.durable.outbox:
            self._wait(offer.round_id, now_ms + wait_ms, f"begins round {offer.round_id} in {wait_ms / 1000:.1f} s")
        self._offer, self._offer_ends_ms = offer, now_ms + offer.lasts_ms
        return self._advance(now_ms)

    def _on_receipt(self, receipt: Receipt, now_ms: int) -> list[Effect]:
        if receipt.verdict == "unknown" and receipt.digest in (self._outbox_digest, self._presence.birth_digest):
            self.reason = fit_reason(f"the coordinator does not know this device: {receipt.reason}")
            self._outbox.wait(now_ms, full=bool(self.durable.outbox))
            return []
        if receipt.verdict == "accepted" and receipt.digest == self._presence.birth_digest:
            self.reason = ""  # we were unknown, and now we are enrolled
            self._outbox.hurry()
            return [*self._send(now_ms), *self._advance(now_ms)]
        if not self.durable.outbox or receipt.digest != self._outbox_digest:
            return []
        counted = receipt.verdict in ("accepted", "duplicate")
        self.receipt = receipt
        self.reason = "" if counted else fit_reason(f"round {receipt.round_id} {receipt.verdict}: {receipt.reason}")
        self._outbox.rest()
        self._outbox.hurry()
        residual = residual_after(receipt.verdict, self.durable)
        effects = self._keep(outbox=b"", outbox_round_id=0, residual_round_id=residual)
        return [*effects, self._forget(), *self._advance(now_ms)]

    # Work

    def _advance(self, now_ms: int) -> list[Effect]:
        """Take the next step towards the offered round, if there is one to take."""
        if self._training is not None or self.durable.outbox or self._offer is None:
            return []
        manifest = self._manifest
        is_over = manifest is not None and manifest.model_version > self._offer.base_version  # its round has closed
        if is_over or now_ms >= self._offer_ends_ms or self._offer.round_id <= self.durable.last_round_id:
            self._offer = None  # the pause after a failure stays: it may be offered again, and an old child may answer
            if self._download is not None:
                self._download.pause()  # what is fetched waits on flash for the next offer
            return []
        plan = self._plans.get(self._offer.plan_digest)
        if plan is None or manifest is None or manifest.model_version != self._offer.base_version:
            self.reason = "waiting for the plan and the manifest of the offered round"
            return []
        reason = budget.refusal(self._limits, plan, self._reading) or runtime.refusal(manifest, self._id.runtime)
        if reason is not None:
            self.reason, self._tries.due_ms = reason, now_ms + BUDGET_CHECK_MS
            return []
        if self._tries.holds_back(self._offer.round_id, now_ms):
            return []
        if self._download is None:
            self._tries.due_ms = None
            self.reason = f"fetching model version {manifest.model_version}"
            self._download = Download(manifest)
            return [self._forget(), *self._download.start()]
        if not self._download.complete:
            return self._fetch(now_ms)
        return self._train(self._offer, plan, manifest, now_ms)

    def _train(self, offer: Offer, plan: Plan, manifest: Manifest, now_ms: int) -> list[Effect]:
        self._tries.due_ms, self.reason = None, ""
        self._training_ends_ms = now_ms + plan.trainer_ms_max
        most = budget.update_bytes_max(self._limits, self._reading)
        told = offer.round_id, offer.base_version, plan, manifest.files
        self._training = Job(self._id.device_id, *told, self.durable.residual_round_id, most, manifest.golden)
        return [StartTraining(self._training)]

    def _on_download(self, event: Arrival, now_ms: int) -> list[Effect]:
        download = self._download
        if download is None:
            return []
        effects = download.handle(event, now_ms)
        if download.impossible:
            self._download, self._manifest = None, None  # only another manifest helps
            self.reason = fit_reason(f"file {download.impossible} of the manifest does not match its own digest")
            return [*effects, *self._telemetry(now_ms)]
        if isinstance(event, FetchFailed):
            self.reason = fit_reason(f"fetching over MQTT, since HTTP failed: {event.reason}")
        is_news = isinstance(event, FileState) and download.complete
        return [*effects, *self._fetch(now_ms), *(self._advance(now_ms) if is_news else [])]

    def _on_file_failed(self, failed: FileFailed, now_ms: int) -> list[Effect]:
        if self._offer is None or self._download is None:
            return []
        self._download = None
        self._wait(self._offer.round_id, now_ms + BUDGET_CHECK_MS, fit_reason(failed.reason))
        return self._telemetry(now_ms)

    def _stop_if_over_limits(self) -> list[Effect]:
        job = self._training
        reason = budget.refusal(self._limits, job.plan, self._reading) if job is not None else None
        if job is None or reason is None:
            return []
        self._training = None
        self._wait(job.round_id, None, reason)
        return [StopTraining(reason)]

    def _wait(self, round_id: int, until_ms: int | None, reason: str) -> None:
        """Leave the round alone until then, without counting it as a failure of its training."""
        self._tries.wait(round_id, until_ms)
        self.reason = reason

    def _on_trained(self, trained: Trained, now_ms: int) -> list[Effect]:
        job = self._training
        if job is None or job.round_id != trained.round_id:
            return []  # a child that was told to stop, and finished all the same
        try:
            sealed = self._id.update(job, trained)
        except ValueError as error:  # MessageError among them: what a child reports is checked like a peer's word
            return self._on_training_failed(job.round_id, str(error), now_ms)
        self._training, self.reason = None, ""
        version = max(self.durable.model_version, job.base_version)
        round_id = max(self.durable.last_round_id, job.round_id)
        # Persist before sending: after a power cut we resend, we never train the round twice.
        kept = self._keep(last_round_id=round_id, outbox=sealed, outbox_round_id=job.round_id, model_version=version)
        return [*kept, *self._send(now_ms)]

    def _on_training_failed(self, round_id: int, reason: str, now_ms: int) -> list[Effect]:
        if self._training is None or self._training.round_id != round_id:
            return []
        self._training, self._download = None, None  # the next try asks flash again whether the files are whole
        self.reason = fit_reason(f"training failed: {reason}")
        if self._tries.fail(round_id, now_ms):  # leave the round to the others
            kept = self._keep(last_round_id=max(self.durable.last_round_id, round_id))
            return [*kept, *self._telemetry(now_ms), *self._advance(now_ms)]
        return self._telemetry(now_ms)

    def _on_patch_failed(self, failed: PatchFailed, now_ms: int) -> list[Effect]:
        """No failure of the round: the whole file is fetched, for which no patch will do any more."""
        job = self._training
        if job is None or job.round_id != failed.round_id:
            return []
        self._training, self._download = None, None
        drops = [DropPatch(file) for file in job.files if file.name == PARAMS_FILE]
        return [*drops, *self._advance(now_ms)]

    # Time

    def _on_tick(self, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        if self._training is not None and now_ms >= self._training_ends_ms:
            job = self._training
            effects.append(StopTraining("deadline"))
            effects += self._on_training_failed(job.round_id, "it took longer than the plan allows", now_ms)
        if self._outbox.due_ms is not None and now_ms >= self._outbox.due_ms:
            effects += self._send(now_ms)
        if self._presence.connection is not None and now_ms >= self._presence.due_ms:
            effects += self._telemetry(now_ms)
        if self._tries.due_ms is not None and now_ms >= self._tries.due_ms:
            self._tries.due_ms = None
            effects += self._advance(now_ms)
        elif self._offer is not None and now_ms >= self._offer_ends_ms:
            effects += self._advance(now_ms)
        return [*effects, *self._fetch(now_ms)]

    # What is said

    def _send(self, now_ms: int) -> list[Effect]:
        """Publish the outbox now and set the time of the next try; nothing while the link is down."""
        if not self.durable.outbox or self._presence.connection is None:
            self._outbox.rest()
            return []
        topic = topics.up(self._id.fleet, self._id.device_id, "update")
        return [self._outbox.send(self.durable.outbox, topic, now_ms)]

    def _fetch(self, now_ms: int) -> list[Effect]:
        if self._presence.connection is None or self._offer is None:
            return []
        if self._download is None or self._download.complete:
            return []
        if budget.link_refusal(self._limits, self._reading) is not None:
            self._download.pause()
            return []
        asks = self._download.asks(now_ms, budget.bytes_left(self._reading))
        return [ask if isinstance(ask, FetchRanges) else self._id.say(ask, "want") for ask in asks]

    def _telemetry(self, now_ms: int) -> list[Effect]:
        if budget.link_refusal(self._limits, self._reading) is not None:
            self._presence.start(now_ms)
            return []
        return list(self._presence.telemetry(self.durable, (self.work.value, self.reason), self._reading, now_ms))

    # What is kept

    @property
    def _outbox_digest(self) -> bytes:
        return digest_of(self.durable.outbox) if self.durable.outbox else b""

    def _count(self, reason: str) -> None:
        self.refused_count[reason] = self.refused_count.get(reason, 0) + 1

    def _keep(self, **changes: object) -> list[Effect]:
        self.durable = msgspec.structs.replace(self.durable, **changes)
        return [Persist(self.durable)]

    def _forget(self) -> Effect:
        files = frozenset(file.digest for file in self._manifest.files) if self._manifest else None
        residuals = {self.durable.residual_round_id, self.durable.outbox_round_id} - {0}
        return Forget(files, frozenset(residuals))
