"""The auditor: watches the wire, flash, the database and the lineage, and knows what must hold whatever happens.

It never looks into an agent or a coordinator. It sees the bytes that they hand to the network and the bytes that
are delivered to them, every write of a device's durable state, what the coordinator's database holds, and the
parameters of each model version, in which every update can be counted (see `witness`).

`INVARIANTS` is the list of promises. A broken one raises `Violation`.
"""

from __future__ import annotations

import collections
import functools
import math
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import msgspec

from firmware_sim import flash, keyring, witness
from wire import envelope, topics
from wire.messages import MODEL_FILE, Manifest, Offer, Receipt, State, Update, Want, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.effects import Job
    from firmware_sim.world import World
    from wire.messages import Message

INVARIANTS: Final = {
    "one update": "one device, one round, one update: never two different update bytes under one key",
    "persist, then speak": "an update on the wire is in the outbox on flash, byte for byte",
    "store, then receipt": "who is told accepted or duplicate has that very update in the database already",
    "store, then say": "epochs, rounds and versions are in the database before anyone hears of them",
    "counted once": "a stored update is counted exactly once by the end, and nothing else is counted",
    "enough": "no round closes with fewer updates than it asked for",
    "cancelled by wish": "a round ends without a version only when the operator cancelled it, else with one",
    "one scale": "a version counts only updates that count in the scales of the version before",
    "late, then lighter": "an update weighs its examples, at most the plan's limit, less by the root of its staleness",
    "finished, then counted": "a finished update is counted once, but for faulty ones and those of older scales",
    "outbox kept": "an outbox is emptied only after a receipt that names its digest was delivered",
    "true model": "a training reads exactly the files of the version that its update names",
    "true base": "a base file holds the parameters of the version that its manifest says, the first of its epoch",
    "true residual": "a training begins with the residual that the last counted update left",
    "patch, then whole": "after a patch has failed, its device asks for the whole file and for no other patch of it",
    "one child": "a device never runs two training children",
    "only growing": "epochs, rounds and model versions only grow",
    "timers move on": "after a tick the next one is later",
    "progress": "after healing, every round closes and every outbox empties",
    "everyone": "after healing, a round counts every device",
    "quiet": "a fleet with nothing to do says nothing but telemetry and births",
}


class Violation(AssertionError):  # noqa: N818 - the word of the trade
    """A promise is broken. `name` is a key of INVARIANTS."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{INVARIANTS[name]}; but {what}")
        self.name = name


class Sent(NamedTuple):
    """One update, as first seen on the wire or on flash."""

    sealed: bytes
    update: Update


class Auditor:
    """One a world. Its methods are called by the physical things, at the moment something happens."""

    def __init__(self, world: World, fleet: dict[str, str]) -> None:
        self._world = world
        self._verify = {name: keyring.verifier(text) for name, text in fleet.items()}
        self._verify_coordinator = keyring.verifier(world.coordinator_key.text)
        self._updates: dict[tuple[str, int], Sent] = {}  # (device, round) → its one update
        self._verdicts: dict[str, dict[bytes, Receipt]] = collections.defaultdict(dict)  # device → digest → delivered
        self._residual: dict[str, int] = dict.fromkeys(fleet, 0)  # device → nonce of the true residual
        self._newest: collections.Counter[str] = collections.Counter()  # what only grows
        self._open = functools.lru_cache(maxsize=4096)(self._unseal)
        self._failed_patches: set[tuple[str, int, bytes]] = set()  # device, its life, digest of the file
        self.sent_count: collections.Counter[str] = collections.Counter()  # by kind
        self.patched_count = 0  # files that were made of a patch
        self.own_count = 0  # of them those that were made of what the base file holds
        self.fetched_count = 0  # chunks that came by HTTP

    # What happens

    def on_sent(self, client_id: str, topic: str, payload: bytes) -> None:
        """A program hands bytes to its line."""
        kind = topic.rpartition("/")[2]
        self.sent_count[kind] += 1
        if client_id == keyring.COORDINATOR:
            if kind in ("receipt", "state", "manifest", "offer"):
                self._on_said(topic, self._open(topic, payload))
        elif kind == "update":
            self._on_update(client_id, topic, payload)
        elif kind == "want":
            self._on_want(client_id, self._open(topic, payload))

    def on_delivered(self, client_id: str, topic: str, payload: bytes) -> None:
        """Bytes reach a program."""
        if not topic.endswith("/dn/receipt"):
            return
        receipt = self._open(topic, payload)
        if isinstance(receipt, Receipt):
            # The first one counts: a replay of what was refused may be called stale later.
            known = self._verdicts[client_id].get(receipt.digest)
            if known is None or known.verdict == "unknown":
                self._verdicts[client_id][receipt.digest] = receipt

    def on_flash(self, device: str, before: bytes, after: bytes) -> None:
        """A device's durable state was written."""
        old, new = flash.decode(before), flash.decode(after)
        for field in ("boot", "last_round_id", "model_version"):
            if getattr(new, field) < getattr(old, field):
                _fail("only growing", f"{field} of {device} went from {getattr(old, field)} to {getattr(new, field)}")
        if old.outbox and new.outbox != old.outbox:
            receipt = self._verdicts[device].get(digest_of(old.outbox))
            if receipt is None or receipt.verdict == "unknown":
                _fail("outbox kept", f"{device} emptied round {old.outbox_round_id} without a receipt for it")
            if receipt.verdict in ("accepted", "duplicate"):
                counted = witness.decode(self._updates[device, old.outbox_round_id].update.payload)
                self._residual[device] = counted.nonce if counted is not None else 0
        if new.outbox and new.outbox != old.outbox:
            self._on_finished(device, new.outbox, new.last_round_id)

    def on_training(self, device: str, job: Job, *, busy: bool) -> None:
        """A training child is started."""
        if busy:
            _fail("one child", f"{device} starts another for round {job.round_id}")

    def on_patch_failed(self, device: str, life: int, digest: bytes) -> None:
        """A training child found that the patch does not make the file with this digest."""
        self._on_whole(device, life, digest)
        self._failed_patches.add((device, life, digest))

    def on_tick(self, who: str, now_ms: int, wake_at_ms: int | None) -> None:
        """A tick was handled."""
        if wake_at_ms is not None and wake_at_ms <= now_ms:
            _fail("timers move on", f"{who} at {now_ms} ms asks for {wake_at_ms} ms")

    # At the end

    def is_settled(self) -> bool:
        """Is every requested round closed, and every outbox on flash empty?"""
        closed = all(row.status == "closed" for row in self._world.database.rounds.values())
        return closed and not self.full_outboxes()

    def full_outboxes(self) -> list[str]:
        """The devices whose flash holds an update without a receipt; who is gone for good does not matter."""
        return [d.name for d in self._world.devices if not d.gone and flash.decode(d.flash.durable).outbox]

    def uncounted(self) -> list[tuple[str, int]]:
        """Stored, and in no version yet."""
        database = self._world.database
        return sorted(database.updates.keys() - database.counted.keys())

    def verdict_of(self, device: str, digest: bytes) -> Receipt | None:
        """The receipt that was delivered to `device` for these sealed bytes."""
        return self._verdicts[device].get(digest)

    def check_lineage(self) -> None:
        """Each version has one parent, and its parameters count what the database says, once."""
        database = self._world.database
        versions = [version.manifest.model_version for version in database.lineage]
        if versions != list(range(1, len(versions) + 1)):
            _fail("only growing", f"the lineage is {versions}")
        params = database.lineage[-1].params
        for device in self._world.devices:
            for round_id in range(1, len(database.rounds) + 1):
                times = witness.count(params, device.index, round_id)
                stored = (device.name, round_id) in database.counted
                if times != stored:
                    _fail("counted once", f"round {round_id} of {device.name} is in the parameters {times} times")
        self._check_weights()

    def _check_weights(self) -> None:
        database = self._world.database
        members = collections.Counter(counted.model_version for counted in database.counted.values())
        cancelled = {row.round_id for row in database.rounds.values() if row.is_cancelled}
        made = [
            row.model_version for row in database.rounds.values() if row.status == "closed" and not row.is_cancelled
        ]
        if not cancelled <= database.unwanted or sorted(made) != list(range(2, len(database.lineage) + 1)):
            _fail("cancelled by wish", f"rounds {sorted(cancelled)} made no version, the others {sorted(made)}")
        for row in database.rounds.values():
            if row.status == "closed" and not row.is_cancelled and members[row.model_version] < row.updates_min:
                _fail("enough", f"round {row.round_id} closed with {members[row.model_version]} of {row.updates_min}")
        for key, counted in database.counted.items():
            update, epoch = self._updates[key].update, database.rounds[key[1]].plan.scale_epoch
            if epoch != database.lineage[counted.model_version - 2].manifest.scale_epoch:
                _fail("one scale", f"version {counted.model_version} counts round {key[1]}, which is of epoch {epoch}")
            staleness = counted.model_version - 1 - update.base_version
            most = min(update.num_examples, database.rounds[key[1]].plan.num_examples_max)
            expected = max(1, most * round(16 / math.sqrt(1 + staleness)) // 16)
            if counted.weight != expected:
                _fail("late, then lighter", f"round {key[1]} of {key[0]} weighs {counted.weight}, not {expected}")

    def check_end(self) -> None:
        """Everything that was finished is counted; to be called when a healed world has settled."""
        self.check_lineage()
        if self.uncounted():
            _fail("counted once", f"these are stored and never counted: {self.uncounted()}")
        gone = {device.name for device in self._world.devices if device.gone}
        for (device, round_id), sent in sorted(self._updates.items()):
            if device in gone or (device, round_id) in self._world.database.counted:
                continue
            receipt = self._verdicts[device].get(digest_of(sent.sealed))
            is_faulty = witness.decode(sent.update.payload) is None
            if receipt is not None and receipt.verdict == "stale" and self._is_of_older_scales(round_id):
                continue
            if not is_faulty or receipt is None or receipt.verdict != "refused":
                _fail("finished, then counted", f"round {round_id} of {device} is not, its receipt is {receipt}")

    def _is_of_older_scales(self, round_id: int) -> bool:
        database = self._world.database
        return database.rounds[round_id].plan.scale_epoch < database.lineage[-1].manifest.scale_epoch

    def check_everyone(self, missing: list[str]) -> None:
        """Nobody who is there was left out after healing."""
        if missing:
            _fail("everyone", f"{', '.join(missing)} took part in none")

    def check_progress(self, *, settled: bool) -> None:
        """The healed world has settled in time."""
        if not settled:
            waiting = [row.round_id for row in self._world.database.rounds.values() if row.status != "closed"]
            _fail("progress", f"rounds {waiting} are not closed, the outboxes of {self.full_outboxes()} are full")

    def check_quiet(self, before: collections.Counter[str]) -> None:
        """Since `before` (a copy of `sent_count`) nothing but telemetry and births was sent."""
        said = {kind: count for kind, count in (self.sent_count - before).items() if kind not in ("telemetry", "birth")}
        if said:
            _fail("quiet", f"it said {said}")

    # Judgement

    def _on_said(self, topic: str, message: Message | None) -> None:
        database = self._world.database
        match message:
            case Receipt(verdict="accepted" | "duplicate", digest=digest, round_id=round_id):
                device = topics.parse(topic).device_id
                row = database.updates.get((device, round_id))
                if row is None or row.digest != digest:
                    _fail("store, then receipt", f"round {round_id} of {device} is not in the database")
            case State(online=True, epoch=epoch, model_version=version):
                self._grow("epoch", epoch)
                if epoch > database.epoch or version > database.lineage[-1].manifest.model_version:
                    _fail("store, then say", f"epoch {epoch}, version {version} are not in the database")
            case Manifest(model_version=version):
                self._grow("model version", version)
                newest = msgspec.structs.replace(database.lineage[-1].manifest, url=self._world.url)
                if message != newest:
                    _fail("store, then say", f"version {version} is not the newest in the database")
                self._check_base(newest)
            case Offer(round_id=round_id, base_version=base_version):
                self._grow("round", round_id)
                row_open = database.rounds.get(round_id)
                if row_open is None or (row_open.status, row_open.base_version) != ("open", base_version):
                    _fail("store, then say", f"round {round_id} on version {base_version} is not open in the database")
            case _:
                pass

    def _check_base(self, manifest: Manifest) -> None:
        """Does the base file hold what the manifest says, the parameters of the version that opened the epoch?"""
        database, version = self._world.database, manifest.base_version
        model = next(database.file(file.digest) for file in manifest.files if file.name == MODEL_FILE)
        opened = next(v for v in database.lineage if v.manifest.scale_epoch == manifest.scale_epoch)
        if version != opened.manifest.model_version or witness.own(model) != opened.params:
            _fail("true base", f"the base of version {manifest.model_version} does not hold that of {version}")

    def _on_want(self, device: str, want: Message | None) -> None:
        if not isinstance(want, Want):
            _fail("patch, then whole", f"{device} sent a want that nobody can read")
        if want.base_version:
            asking = next(d for d in self._world.devices if d.name == device)
            self._on_whole(device, asking.life, want.digest)
            if asking.flash.has_dropped_patch(want.digest):
                _fail("patch, then whole", f"{device} forgot in an earlier life that a patch has failed")

    def _on_whole(self, device: str, life: int, digest: bytes) -> None:
        if (device, life, digest) in self._failed_patches:
            _fail("patch, then whole", f"{device} tries another one of {digest.hex()[:8]}")

    def _on_update(self, device: str, topic: str, sealed: bytes) -> None:
        on_flash = next(d.flash.durable for d in self._world.devices if d.name == device)
        if flash.decode(on_flash).outbox != sealed:
            _fail("persist, then speak", f"{device} published an update that is not its outbox on flash")
        if self._open(topic, sealed) is None:
            _fail("persist, then speak", f"{device} published an update that nobody can read")

    def _on_finished(self, device: str, sealed: bytes, last_round_id: int) -> None:
        topic = topics.up(keyring.FLEET, device, "update")
        update = self._open(topic, sealed)
        if not isinstance(update, Update):
            _fail("persist, then speak", f"the outbox of {device} holds no update")
        if update.round_id != last_round_id:
            _fail("persist, then speak", f"{device} keeps round {update.round_id} and calls {last_round_id} its last")
        known = self._updates.setdefault((device, update.round_id), Sent(sealed, update))
        if known.sealed != sealed:
            _fail("one update", f"{device} made two of round {update.round_id}")
        self._grow(f"update of {device}", update.round_id)
        said = witness.decode(update.payload)
        if said is not None:
            self._check_training(device, update, said)

    def _check_training(self, device: str, update: Update, said: witness.Witness) -> None:
        version = self._world.database.lineage[update.base_version - 1]
        files = [self._world.database.file(file.digest) for file in version.manifest.files]
        if said.model != witness.model_mark(files) or said.round_id != update.round_id:
            _fail("true model", f"{device} trained round {update.round_id} on something else")
        if said.residual != self._residual[device]:
            _fail("true residual", f"{device} began round {update.round_id} with another one")

    def _grow(self, what: str, value: int) -> None:
        if value < self._newest[what]:
            _fail("only growing", f"the {what} went from {self._newest[what]} to {value}")
        self._newest[what] = value

    def _unseal(self, topic: str, payload: bytes) -> Message | None:
        """The message, if it is signed by whom its topic names."""
        address = topics.parse(topic)
        verify: Callable[[bytes, bytes], bool] = self._verify_coordinator
        if address.direction == "up":
            verify = self._verify[address.device_id]
        try:
            return envelope.unseal(payload, topic, verify)
        except envelope.EnvelopeError:
            return None


def _fail(name: str, what: str) -> NoReturn:
    raise Violation(name, what)
