"""The auditor: watches the wire, flash, the database and the lineage, and knows what must hold whatever happens.

It never looks into an agent or a coordinator. It sees the bytes that they hand to the network and the bytes that
are delivered to them, every write of a device's durable state, what the coordinator's database holds, and the
parameters of each model version, in which every update can be counted (see `witness`).

`INVARIANTS` is the list of promises. A broken one raises `Violation`.
"""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge_agent import flash, slots
from edge_agent.budget import UPDATE_BYTES_MIN
from edge_agent.effects import Durable
from firmware_sim import books, keyring
from firmware_sim.promises import INVARIANTS, Violation
from firmware_sim.promises import fail as _fail
from firmware_sim.talk import Talk
from wire import envelope, topics
from wire.messages import MODEL_FILE, Manifest, Offer, Receipt, State, Update, Want, digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agent.budget import Limits
    from edge_agent.effects import FileState, Job, Reading
    from firmware_sim.card import Card
    from firmware_sim.lesson import Said
    from firmware_sim.world import World
    from wire.messages import Message

__all__ = ["INVARIANTS", "Auditor", "Violation"]


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
        # those that were made before the device got another card
        self._former: dict[tuple[str, int], list[Sent]] = collections.defaultdict(list)
        self._verdicts: dict[str, dict[bytes, Receipt]] = collections.defaultdict(dict)  # device → digest → delivered
        self._residual: dict[str, int] = dict.fromkeys(fleet, 0)  # device → nonce of the true residual
        self._newest: collections.Counter[str] = collections.Counter()  # what only grows
        self._honest = (fleet.keys() - world.dishonest.keys()) | {topics.ALL}
        self._talk = Talk()
        self._open = functools.lru_cache(maxsize=4096)(self._unseal)
        self._failed_patches: set[tuple[str, int, bytes]] = set()  # device, its life, digest of the file
        self._dropped_patches: set[tuple[str, bytes]] = set()  # of them those that are noted on flash
        self._lost: set[tuple[str, bytes]] = set()  # files that the weather took away
        self._durable: dict[str, Durable] = dict.fromkeys(fleet, Durable())  # what would survive a power cut
        self._readings: dict[str, tuple[Limits, Reading]] = {}  # device → what its owner allows, how its host is
        self._full: set[str] = set()  # devices whose outbox is full
        self.sent_count: collections.Counter[str] = collections.Counter()  # by kind
        self.patched_count = 0  # files that were made of a patch
        self.own_count = 0  # of them those that were made of what the base file holds
        self.fetched_count = 0  # chunks that came by HTTP

    # What happens

    def on_sent(self, client_id: str, topic: str, payload: bytes) -> None:
        """A program hands bytes to its line."""
        kind = topic.rpartition("/")[2]
        if client_id == keyring.COORDINATOR:
            device = topic.split("/")[4]
            self.sent_count[kind] += device in self._honest
            self._on_told(device, kind)
            if kind in ("receipt", "state", "manifest", "offer"):
                self._on_said(topic, self._open(topic, payload))
        elif client_id in self._honest:
            self.sent_count[kind] += 1
            self._on_heard(client_id, kind, topic, payload)

    def _on_heard(self, client_id: str, kind: str, topic: str, payload: bytes) -> None:
        """An honest device speaks; what the others say is their affair."""
        if kind == "update":
            self._on_update(client_id, topic, payload)
        elif kind in ("want", "telemetry") and client_id in self._readings:
            if _is_spent(self._readings[client_id][1]):
                _fail("budget kept", f"{client_id} sends a {kind} while its bytes are spent")
            if kind == "want":
                self._on_want(client_id, self._open(topic, payload))

    def on_delivered(self, client_id: str, topic: str, payload: bytes) -> None:
        """Bytes reach a program."""
        if client_id == keyring.COORDINATOR:
            device = topic.split("/")[4]
            self._talk.heard(device, topic.rpartition("/")[2], enrolled=device in self._world.database.fleet)
        if client_id not in self._honest or not topic.endswith("/dn/receipt"):
            return
        receipt = self._open(topic, payload)
        if isinstance(receipt, Receipt):
            # The first one counts: a replay of what was refused may be called stale later.
            known = self._verdicts[client_id].get(receipt.digest)
            if known is None or known.verdict == "unknown":
                self._verdicts[client_id][receipt.digest] = receipt

    def on_flash(self, device: str, card: Card) -> None:
        """Something happened to a device's flash; `card` is what would survive a power cut now, at the worst."""
        if device not in self._honest:
            return
        try:
            _, durable = flash.load_durable(card)
        except flash.FlashError as error:
            _fail("starts again", f"{device} says: {error}")
        self._check_model(device, card)
        old, self._durable[device] = self._durable[device], durable
        if durable != old:
            self._on_durable(device, old, durable)

    def on_new_card(self, device: str) -> None:
        """All that was on a device's flash is gone, with work that had no receipt yet: nobody can promise that."""
        for key, sent in self._updates.items():
            if key[0] == device:
                self._former[key].append(sent)
        self._durable[device], self._residual[device] = Durable(), 0
        self._full.discard(device)
        self._newest.pop(f"update of {device}", None)
        self._dropped_patches = {each for each in self._dropped_patches if each[0] != device}
        self._lost = {each for each in self._lost if each[0] != device}

    def on_start(self, device: str, believed: Durable, card: Card) -> None:
        """A device has read its flash, and goes on from there."""
        self.on_flash(device, card)
        known = self._durable[device]
        if known == Durable():
            known = Durable(boot=believed.boot)  # an empty card's is drawn
        if device in self._honest and believed != known:
            _fail("starts again", f"{device} believes what a power cut would take away")

    def _check_model(self, device: str, card: Card) -> None:
        kept = slots.load(card)
        noted = [flash.load_model(card), *([kept.now, kept.before] if kept is not None else [])]
        for model in filter(None, noted):
            for file in model.files:
                if (device, file.digest) not in self._lost and not flash.is_whole(card, file.digest):
                    _fail("noted, then whole", f"{file.name} of version {model.version} is not, on {device}")

    def _on_durable(self, device: str, old: Durable, new: Durable) -> None:
        for field in ("boot", "last_round_id", "model_version"):
            if getattr(new, field) < getattr(old, field):
                _fail("only growing", f"{field} of {device} went from {getattr(old, field)} to {getattr(new, field)}")
        if old.outbox and new.outbox != old.outbox:
            receipt = self._verdicts[device].get(digest_of(old.outbox))
            if receipt is None or receipt.verdict == "unknown":
                _fail("outbox kept", f"{device} emptied round {old.outbox_round_id} without a receipt for it")
            update = self._updates[device, old.outbox_round_id].update
            if receipt.verdict in ("accepted", "duplicate") and update.trial is None:  # that leaves it as it was
                counted = self._world.lesson.read(update.payload)
                self._residual[device] = counted.nonce if counted is not None else 0
        (self._full.add if new.outbox else self._full.discard)(device)
        if new.outbox and new.outbox != old.outbox:
            self._on_finished(device, new.outbox, new.last_round_id)

    def on_reading(self, device: str, limits: Limits, reading: Reading) -> None:
        """A device is told how its host is."""
        self._readings[device] = limits, reading

    def on_training(self, device: str, job: Job, *, busy: bool) -> None:
        """A training child is started."""
        if busy:
            _fail("one child", f"{device} starts another for round {job.round_id}")
        limits, reading = self._readings[device]
        hot = limits.temperature_c_max is not None and (reading.temperature_c or 0.0) > limits.temperature_c_max
        low = limits.battery_rate_min is not None and (reading.battery_rate or 0.0) < limits.battery_rate_min
        if hot or (low and not reading.on_mains) or _is_spent(reading):
            _fail("budget kept", f"{device} trains round {job.round_id} at {reading}")

    def on_patch_failed(self, device: str, life: int, digest: bytes) -> None:
        """A training child found that the patch does not make the file with this digest."""
        self._on_whole(device, life, digest)
        self._failed_patches.add((device, life, digest))

    def on_patch_dropped(self, device: str, digest: bytes) -> None:
        """A device has noted on flash that no patch of this file will do."""
        self._dropped_patches.add((device, digest))

    def on_file_state(self, device: str, state: FileState) -> None:
        """Flash told what it holds."""
        if state.ready:
            self._failed_patches = {
                each for each in self._failed_patches if (each[0], each[2]) != (device, state.digest)
            }
            self._dropped_patches.discard((device, state.digest))
            self._lost.discard((device, state.digest))

    def on_forgotten(self, device: str, keep_files: frozenset[bytes] | None) -> None:
        """A device has deleted what it knew of every model file but these; None: of none."""
        mine = {digest for name, digest in self._dropped_patches if name == device}
        gone = mine - (mine if keep_files is None else keep_files)
        self._dropped_patches -= {(device, digest) for digest in gone}
        # a version that is restored brings a file back, and that is another download
        self._failed_patches = {each for each in self._failed_patches if each[0] != device or each[2] not in gone}

    def on_lost(self, device: str, digest: bytes) -> None:
        """The weather took a file away."""
        self._lost.add((device, digest))

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
        return sorted(name for name in self._full if not self._world.device[name].gone)

    def durable_of(self, device: str) -> Durable:
        """What this device would know after a power cut now."""
        return self._durable[device]

    def uncounted(self) -> list[tuple[str, int]]:
        """Stored, and in no version yet. Who is dishonest may send one at any time, for a round that is long closed."""
        database = self._world.database
        return sorted(key for key in database.updates.keys() - database.counted.keys() if key[0] in self._honest)

    def verdict_of(self, device: str, digest: bytes) -> Receipt | None:
        """The receipt that was delivered to `device` for these sealed bytes."""
        return self._verdicts[device].get(digest)

    def check_lineage(self) -> None:
        """Each version has one parent, and its parameters count what the database says, once."""
        books.check(self._world, self._claimed)

    def _claimed(self, key: tuple[str, int]) -> int | None:
        """How many examples the stored update of an honest device claims; None for any other's."""
        return self._stored(key).update.num_examples if key[0] in self._honest else None

    def check_end(self) -> None:
        """Everything that was finished is counted; to be called when a healed world has settled."""
        self.check_lineage()
        if self.uncounted():
            _fail("counted once", f"these are stored and never counted: {self.uncounted()}")
        gone = {device.name for device in self._world.devices if device.gone}
        for (device, round_id), sent in sorted(self._updates.items()):
            database = self._world.database
            if device in gone or (device, round_id) in database.counted.keys() | database.trials | self._former.keys():
                continue
            receipt = self._verdicts[device].get(digest_of(sent.sealed))
            plan = self._world.database.rounds[round_id].plan
            is_faulty = self._world.lesson.admit(sent.update.payload, plan) is not None
            if (
                receipt is not None
                and receipt.verdict == "stale"
                and (self._is_of_older_scales(round_id) or self._did_later(device, round_id))
            ):
                continue
            if not is_faulty or receipt is None or receipt.verdict != "refused":
                _fail("finished, then counted", f"round {round_id} of {device} is not, its receipt is {receipt}")

    def _stored(self, key: tuple[str, int]) -> Sent:
        """The update that the database has under this key."""
        made: list[Sent] = [*self._former.get(key, ()), self._updates[key]]
        return next(sent for sent in made if digest_of(sent.sealed) == self._world.database.updates[key].digest)

    def _is_of_older_scales(self, round_id: int) -> bool:
        database = self._world.database
        return database.rounds[round_id].plan.scale_epoch < database.lineage[-1].manifest.scale_epoch

    def _did_later(self, device: str, round_id: int) -> bool:
        """Had the device finished a later round on a former card? Then nobody waits for this one; it could not know."""
        return any(name == device and later > round_id for name, later in self._former)

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
        """Since `before` (a copy of `sent_count`) nothing but telemetry and births was sent; and answers to forgers."""
        allowed = {"telemetry", "birth"} | ({"receipt"} if self._world.dishonest else set())
        said = {kind: count for kind, count in (self.sent_count - before).items() if kind not in allowed}
        if said:
            _fail("quiet", f"it said {said}")

    # Judgement

    def _on_told(self, device: str, kind: str) -> None:
        """The coordinator speaks: is it asked to, and is it not too much?"""
        broken = ""
        if kind == "receipt":
            broken = self._talk.receipt(device)
        if broken:
            _fail("one answer", broken)
        if kind in ("chunk", "patch"):
            world = self._world
            shares = 2 if world.staged else 1  # of the fleet's version, and of the one that is tried
            newest = world.database.lineage[-1].manifest
            broken = self._talk.served(device, world.station.life, newest, world.now_ms, shares)
        if broken:
            _fail("no flood", broken)

    def _on_said(self, topic: str, message: Message | None) -> None:
        database = self._world.database
        match message:
            case Receipt(verdict="accepted", round_id=0):  # of a birth
                if topics.parse(topic).device_id not in database.fleet:
                    _fail("store, then receipt", f"{topic} is let in and not enrolled")
            case Receipt(verdict="accepted" | "duplicate", digest=digest, round_id=round_id):
                device = topics.parse(topic).device_id
                row = database.updates.get((device, round_id)) or database.trials.get((device, round_id))
                if row is None or row.digest != digest:
                    _fail("store, then receipt", f"round {round_id} of {device} is not in the database")
            case State(online=True, epoch=epoch, model_version=version):
                self._grow("epoch", epoch)
                if epoch > database.epoch or version > database.lineage[-1].manifest.model_version:
                    _fail("store, then say", f"epoch {epoch}, version {version} are not in the database")
            case Manifest(model_version=version) if topics.is_shared(topic):
                self._grow("model version", version)
                if message != msgspec.structs.replace(database.fleets.manifest, url=self._world.url):
                    _fail("store, then say", f"version {version} is not the fleet's newest in the database")
                if version in self._world.bad and not self._world.dishonest:
                    _fail("tried, then shared", f"version {version} is a bad one, and everyone hears of it")
                self._check_base(message)
            case Manifest(model_version=version):
                candidate = database.candidate
                if candidate is None or message != msgspec.structs.replace(candidate.manifest, url=self._world.url):
                    _fail("store, then say", f"version {version} is no candidate in the database")
                self._check_base(message)
            case Offer(round_id=round_id, base_version=base_version, nonce=nonce, draw=draw):
                self._grow("round", round_id)
                opened = database.rounds.get(round_id)
                said = "open", base_version, nonce, draw
                if opened is None or (opened.status, opened.base_version, opened.nonce, opened.draw) != said:
                    _fail("store, then say", f"round {round_id} on version {base_version} is not open in the database")
                if topics.is_shared(topic) and not nonce:
                    _fail("drawn", f"round {round_id} was offered to all")
            case _:
                pass

    def _check_base(self, manifest: Manifest) -> None:
        """Does the base file hold what the manifest says, the parameters of the version that opened the epoch?"""
        database, version = self._world.database, manifest.base_version
        model = next(database.blob(file.digest) for file in manifest.files if file.name == MODEL_FILE)
        opened = database.lineage[version - 1]
        before = {file.name: file.digest for file in opened.manifest.files}
        is_same = version and before[MODEL_FILE] == digest_of(model)
        if not is_same or self._world.lesson.own(model) != opened.params:
            _fail("true base", f"the base of version {manifest.model_version} does not hold that of {version}")

    def _on_want(self, device: str, want: Message | None) -> None:
        if not isinstance(want, Want):
            _fail("patch, then whole", f"{device} sent a want that nobody can read")
        if want.base_version:
            asking = self._world.device[device]
            self._on_whole(device, asking.life, want.digest)
            if (device, want.digest) in self._dropped_patches:
                _fail("patch, then whole", f"{device} forgot in an earlier life that a patch has failed")

    def _on_whole(self, device: str, life: int, digest: bytes) -> None:
        if (device, life, digest) in self._failed_patches:
            _fail("patch, then whole", f"{device} tries another one of {digest.hex()[:8]}")

    def _on_update(self, device: str, topic: str, sealed: bytes) -> None:
        if self._durable[device].outbox != sealed:
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
        key = device, update.round_id
        books.check_drawn(self._world, *key)
        if key not in self._updates or self._updates[key] in self._former.get(key, ()):
            self._updates[key] = Sent(sealed, update)
        if self._updates[key].sealed != sealed:
            _fail("one update", f"{device} made two of round {update.round_id}")
        self._grow(f"update of {device}", update.round_id)
        said = self._world.lesson.read(update.payload)
        if said is not None:
            self._check_training(device, update, said)

    def _check_training(self, device: str, update: Update, said: Said) -> None:
        version = self._world.database.lineage[update.base_version - 1]
        files = {file.name: self._world.database.blob(file.digest) for file in version.manifest.files}
        if said.model != self._world.lesson.mark(files) or said.round_id != update.round_id:
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


def _is_spent(reading: Reading) -> bool:
    """May the link carry nothing more for now but finished work?"""
    return reading.day_bytes_left is not None and reading.day_bytes_left < UPDATE_BYTES_MIN
