"""The coordinator as a pure state machine: events in, effects out. No clock, no socket, no database.

    link:   DOWN ──Connected──▶ UP (a new epoch: everyone is asked for a birth) ──Disconnected──▶ DOWN
    round:  none ──a round waits──▶ OPEN ──▶ CLOSING ──▶ none            (see broker.rounds)

Rules that keep finished work:

1. An update is stored before its receipt is published. Whoever has a receipt is counted.
2. (device_id, round_id) is stored once. The same bytes again are a duplicate, other bytes are refused.
3. The new version, the updates that it counts and the round's end are one transaction: a crash before it leaves
   all of them to be counted, a crash after it none.
4. An update whose round has closed, or was cancelled, is counted by the next one that closes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from broker import cohort, rounds, serving
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    CommitRound,
    Connected,
    Disconnected,
    Effect,
    Event,
    FleetRead,
    Last,
    Pending,
    Received,
    RoundRow,
    RoundsRead,
    Snapshot,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreUpdate,
    Tick,
    UpdateRow,
)
from broker.ration import Rations
from broker.rounds import Round
from broker.sessions import Sessions
from wire import envelope, topics
from wire.messages import (
    Birth,
    Death,
    Message,
    Offer,
    State,
    Telemetry,
    Update,
    Verdict,
    Want,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from broker.voice import Identity
    from wire.messages import Manifest, Plan

SETTLE_MS: Final = 5_000  # after a new epoch, how long births may take before absence means absence
RETRY_MS: Final = 10_000
ROUNDS_REMEMBERED: Final = 64  # an update of an older round is stale
STRANGERS_MAX: Final = 1_000  # unknown device ids that are answered, once each, in one run


class Coordinator:
    """The fleet's side of every round. `handle` is the only door; `wake_at_ms` the only timer."""

    def __init__(self, identity: Identity, snapshot: Snapshot, chance: Random) -> None:
        self.refused_count: dict[str, int] = {}  # what arrived and was not believed, by reason
        self._id = identity
        self._chance = chance
        self._epoch = snapshot.epoch
        self._round: Round | None = None
        self._fleet: dict[str, str] = {}
        self._verifiers: dict[str, envelope.Verify] = {}
        self._sessions = Sessions()
        self._rations = Rations()
        self._strangers: set[str] = set()
        self._read_fleet(snapshot.fleet)
        self._last = dict(snapshot.last)
        self._pending = {(p.device_id, p.round_id): p for p in snapshot.pending}
        self._manifest = snapshot.manifest
        self._told_plan: Plan | None = None  # what everyone is known to have been told, and is retained; None: unknown
        self._rounds = {row.round_id: row for row in snapshot.rounds if row.status != "waiting"}
        self._waiting = rounds.in_order(row for row in snapshot.rounds if row.status == "waiting")
        self._up = False
        self._settled_at_ms: int | None = None  # None: births have had their time
        self._retry_at_ms: int | None = None
        self._members: tuple[Pending, ...] = ()  # what the closing round counts
        self._resume()

    @property
    def wake_at_ms(self) -> int | None:
        """The earliest time at which a Tick would change something."""
        if not self._up:
            return None
        times = [self._retry_at_ms, self._settled_at_ms]
        if self._round is not None and not self._round.closing and self._retry_at_ms is None:
            times.append(self._round.ends_at_ms)
        return min((time for time in times if time is not None), default=None)

    @property
    def pending_count(self) -> int:
        """How many stored updates no version has counted yet."""
        return len(self._pending)

    def last_will(self) -> tuple[str, bytes]:
        """Topic and payload that say that nobody coordinates: the will, and retained, the goodbye of an orderly end."""
        goodbye = self._id.share(self._state(online=False))
        return goodbye.topic, goodbye.payload

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Decide what follows from `event`. Effects are to be performed in order."""
        match event:
            case Connected():
                return self._on_connected(now_ms)
            case Disconnected():
                self._up = False
                self._sessions.all_unknown()
                if self._round is not None:
                    self._round.all_left()
                return []
            case Received(topic=topic, payload=payload):
                return self._on_received(topic, payload, now_ms)
            case FleetRead(fleet=fleet):
                return self._on_fleet_read(fleet, now_ms)
            case RoundsRead(waiting=waiting, unwanted=unwanted):
                known = self._rounds.keys() | {row.round_id for row in self._waiting}
                fresh = [row for row in waiting if row.round_id not in known]
                self._waiting, withdrawn = rounds.withdraw([*self._waiting, *fresh], unwanted)
                if self._round is not None and self._round.row.round_id in unwanted:
                    self._round.is_unwanted = True
                return [*map(StoreRound, withdrawn), *self._end_unwanted(now_ms), *self._open_next(now_ms)]
            case Aggregated():
                return self._on_aggregated(event, now_ms)
            case AggregateFailed(round_id=round_id):
                if self._round is not None and self._round.row.round_id == round_id:
                    self._round.closing = False
                    self._retry_at_ms = now_ms + RETRY_MS
                return self._end_unwanted(now_ms)
            case Tick():
                return self._on_tick(now_ms)

    # The link

    def _on_connected(self, now_ms: int) -> list[Effect]:
        # The MQTT server may have lost what it retained, and births may have passed before we subscribed:
        # say everything again, under a new epoch that asks for births.
        self._up, self._told_plan = True, None
        self._begin_epoch()
        self._settled_at_ms = now_ms + SETTLE_MS
        if self._round is not None and not self._round.closing:
            self._round.extend(now_ms)
        effects: list[Effect] = [StoreEpoch(self._epoch)]
        if self._manifest is not None:
            effects.append(self._id.share(self._manifest))
        if self._round is not None:
            effects.append(self._tell_plan(self._round.row.plan))
        return [*effects, *self._open_or_idle(now_ms)]

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._sessions.begin(self._epoch)

    def _on_fleet_read(self, fleet: dict[str, str], now_ms: int) -> list[Effect]:
        knocked = bool(self._strangers & fleet.keys())
        self._read_fleet(fleet)
        effects: list[Effect] = []
        if knocked and self._up:
            # It was told that nobody knows it, and will not speak of itself again unless everyone is asked to.
            self._begin_epoch()
            effects += [StoreEpoch(self._epoch), self._id.share(self._state(online=True))]
        return [*effects, *self._close_if_due(now_ms)]

    def _on_tick(self, now_ms: int) -> list[Effect]:
        if self._retry_at_ms is not None and now_ms >= self._retry_at_ms:
            self._retry_at_ms = None
        if self._settled_at_ms is not None and now_ms >= self._settled_at_ms:
            self._settled_at_ms = None
        effects = self._close_if_due(now_ms)
        current = self._round
        if effects or current is None or current.closing or self._retry_at_ms is not None:
            return effects  # while the sum is to be tried again, its round is not short of updates
        if now_ms >= current.ends_at_ms:
            current.extend(now_ms)
            current.draw_again()
            if self._manifest is not None:  # what was retained may be lost or overwritten, and nobody can tell us
                effects += [self._id.share(self._manifest), self._tell_plan(current.row.plan)]
            effects += self._invite(self._sessions.present(), now_ms)
        return effects

    # What arrives

    def _on_received(self, topic: str, payload: bytes, now_ms: int) -> list[Effect]:
        try:
            address = topics.parse(topic)
        except topics.TopicError:
            return self._refuse("topic")
        if address.fleet != self._id.fleet or address.direction != "up":
            return self._refuse("topic")
        verify = self._verifiers.get(address.device_id)
        if verify is None:
            return [*self._refuse("unknown"), *self._answer_stranger(address, payload)]
        try:
            message = envelope.unseal(payload, topic, verify)
        except envelope.EnvelopeError as error:
            effects = self._refuse(error.reason)
            if address.kind == "update":
                effects.append(self._id.receipt(address.device_id, payload, 0, "refused", str(error)))
            return effects
        return self._on_message(address.device_id, message, payload, now_ms)

    def _on_message(self, device_id: str, message: Message, sealed: bytes, now_ms: int) -> list[Effect]:
        match message:
            case Birth():
                return self._on_birth(device_id, message, now_ms)
            case Death() if self._sessions.on_death(device_id, message):
                self._left(device_id)
                return [StoreSeen(device_id, present=False), *self._close_if_due(now_ms)]
            case Update():
                return self._on_update(device_id, message, sealed, now_ms)
            case Want():
                return self._on_want(device_id, message, now_ms)
            case Telemetry():
                work, reason, traffic = message.work, message.reason, message.traffic
                return [StoreSeen(device_id, present=True, work=work, reason=reason, traffic=traffic)]
            case _:
                return []

    def _on_birth(self, device_id: str, birth: Birth, now_ms: int) -> list[Effect]:
        if not self._sessions.on_birth(device_id, birth):
            return self._refuse("old birth")
        seen = StoreSeen(device_id, True, birth.software, birth.num_examples, birth.model_version)
        current = self._round
        if current is None or current.closing:
            return [seen]
        if device_id in current.invited and not current.has_reported(device_id):
            current.invite(device_id)
            return [seen, self._offer(device_id)]  # it may have slept through the first one
        return [seen, *self._invite({device_id: birth}, now_ms)]  # whoever else is there was drawn, or not, before

    def _on_want(self, device_id: str, want: Want, now_ms: int) -> list[Effect]:
        answer = serving.answer(want, self._manifest, self._id.fleet, device_id)
        if self._manifest is None or not answer:
            return []
        return answer if self._rations.grant(device_id, want, self._manifest, now_ms) else self._refuse("want")

    def _on_update(self, device_id: str, update: Update, sealed: bytes, now_ms: int) -> list[Effect]:
        digest = hashlib.sha256(sealed).digest()
        verdict, reason = self._judge(device_id, update, digest)
        receipt = self._id.receipt(device_id, sealed, update.round_id, verdict, reason)
        if verdict != "accepted":
            return [*self._refuse(verdict), receipt]
        weight = min(update.num_examples, self._rounds[update.round_id].plan.num_examples_max)
        row = UpdateRow(
            device_id,
            update.round_id,
            update.base_version,
            weight,
            digest,
            update.held_out_correct,
            update.held_out_count,
            update.payload,
        )
        self._last[device_id] = Last(update.round_id, digest)
        self._pending[device_id, update.round_id] = Pending(device_id, update.round_id, update.base_version, weight)
        if self._round is not None and self._round.row.round_id == update.round_id:
            self._round.report(device_id)
        return [StoreUpdate(row), receipt, *self._close_if_due(now_ms)]

    def _judge(self, device_id: str, update: Update, digest: bytes) -> tuple[Verdict, str]:
        """Verdict and reason for a signed update of an enrolled device."""
        last = self._last.get(device_id)
        if last is not None and update.round_id == last.round_id:
            if digest == last.digest:
                return "duplicate", ""
            return "refused", f"another update of round {update.round_id} is stored already"
        if last is not None and update.round_id < last.round_id:
            return "stale", f"an update of the later round {last.round_id} is stored already"
        row = self._rounds.get(update.round_id)
        if row is None:
            if update.round_id < min(self._rounds, default=0):
                return "stale", f"round {update.round_id} is older than the coordinator remembers"
            return "refused", f"round {update.round_id} was never opened"
        if update.base_version != row.base_version:
            return "refused", f"round {row.round_id} trains version {row.base_version}, not {update.base_version}"
        if self._manifest is not None and row.plan.scale_epoch != self._manifest.scale_epoch:
            return "stale", f"round {row.round_id} counts in scale epoch {row.plan.scale_epoch}, which is over"
        reason = self._id.admit(update.payload, row.plan)
        return ("accepted", "") if reason is None else ("refused", reason)

    # Rounds

    def _resume(self) -> None:
        """Take up the round that was open when the last run ended."""
        row = next((row for row in self._rounds.values() if row.status == "open"), None)
        if row is None:
            return
        self._round = Round(row, 0)
        for device_id, last in self._last.items():
            if last.round_id == row.round_id:
                self._round.report(device_id)

    def _open_next(self, now_ms: int) -> list[Effect]:
        if not self._up or self._round is not None or not self._waiting or self._manifest is None:
            return []
        waiting = self._waiting.pop(0)
        # the operator's wish is older than the model that it is carried out on
        plan = msgspec.structs.replace(waiting.plan, scale_epoch=self._manifest.scale_epoch)
        row = msgspec.structs.replace(waiting, status="open", plan=plan, base_version=self._manifest.model_version)
        self._remember(row)
        self._round = Round(row, now_ms)
        plan_told: list[Effect] = [] if row.plan == self._told_plan else [self._tell_plan(row.plan)]
        state = self._id.share(self._state(online=True))
        return [StoreRound(row), *plan_told, state, *self._invite(self._sessions.present(), now_ms)]

    def _open_or_idle(self, now_ms: int) -> list[Effect]:
        """Open the round that waits, or say that none is open: in either case everyone hears one new state."""
        return self._open_next(now_ms) or [self._id.share(self._state(online=True))]

    def _tell_plan(self, plan: Plan) -> Effect:
        self._told_plan = plan
        return self._id.share(plan)

    def _left(self, device_id: str) -> None:
        if self._round is not None:
            self._round.left(device_id)

    def _invite(self, candidates: Mapping[str, Birth], now_ms: int) -> list[Effect]:
        current = self._round
        if current is None or current.closing or now_ms > current.ends_at_ms:
            return []
        drawn = cohort.draw(current.row, candidates, current.invited, self._chance)
        for device_id in drawn:
            current.invite(device_id)
        return [self._offer(device_id) for device_id in drawn]

    def _close_if_due(self, now_ms: int) -> list[Effect]:
        current = self._round
        if current is None or self._manifest is None or not self._up or self._retry_at_ms is not None:
            return []
        settled = self._settled_at_ms is None or now_ms >= self._settled_at_ms
        if not settled or not current.may_close(now_ms, len(self._pending)):
            return []
        current.closing = True
        return [self._aggregate(current, self._manifest)]

    def _aggregate(self, current: Round, manifest: Manifest) -> Effect:
        self._members = rounds.members(self._pending.values(), manifest.model_version)
        # scales may change only when nothing that was counted in the old ones is left
        whole = len(self._members) == len(self._pending)
        return Aggregate(current.row.round_id, current.row.plan, manifest, self._members, whole)

    def _on_aggregated(self, done: Aggregated, now_ms: int) -> list[Effect]:
        current, manifest = self._round, self._manifest
        if current is None or manifest is None or not current.closing or current.row.round_id != done.round_id:
            return []
        if done.model and len(self._pending) > len(self._members):
            return [self._aggregate(current, manifest)]  # one came meanwhile: it counts in the old scales, too
        self._manifest = serving.manifest_after(manifest, done)
        row = msgspec.structs.replace(current.row, status="closed", model_version=self._manifest.model_version)
        self._remember(row)
        self._end_round(current)
        for member in self._members:
            del self._pending[member.device_id, member.round_id]
        commit = CommitRound(row, self._manifest, done, self._members)
        told: list[Effect] = [commit, self._id.share(self._manifest)]
        return [*told, *self._open_or_idle(now_ms)]

    def _end_unwanted(self, now_ms: int) -> list[Effect]:
        """Close the round that nobody wants, unless its sum is under way. What is stored of it stays pending."""
        current = self._round
        if current is None or current.closing or not current.is_unwanted:
            return []
        self._end_round(current)
        self._retry_at_ms = None
        row = msgspec.structs.replace(current.row, status="closed", model_version=current.row.base_version)
        self._remember(row)
        return [StoreRound(row), *(self._open_or_idle(now_ms) if self._up else [])]

    def _end_round(self, current: Round) -> None:
        self._round = None
        if current.lacks_somebody():  # who may lack the plan: what is retained may have been lost or overwritten
            self._told_plan = None

    def _remember(self, row: RoundRow) -> None:
        self._rounds[row.round_id] = row
        for round_id in sorted(self._rounds)[:-ROUNDS_REMEMBERED]:
            del self._rounds[round_id]

    # What is said

    def _offer(self, device_id: str) -> Effect:
        assert self._round is not None, "an offer needs an open round"
        row = self._round.row
        offer = Offer(row.round_id, self._round.plan_digest, row.base_version, row.lasts_ms)
        return self._id.say(device_id, offer)

    def _answer_stranger(self, address: topics.Address, payload: bytes) -> list[Effect]:
        """Tell a device that is not enrolled so, once: anyone may use its name."""
        if address.kind not in ("birth", "update") or address.device_id in self._strangers:
            return []
        if len(self._strangers) >= STRANGERS_MAX:
            return []
        self._strangers.add(address.device_id)
        reason = f"not enrolled; the operator can add it: broker fleet add {address.device_id} KEY"
        return [self._id.receipt(address.device_id, payload, 0, "unknown", reason)]

    def _state(self, *, online: bool) -> State:
        current, manifest = self._round, self._manifest  # once each: the link's thread asks too, for the will
        round_id = current.row.round_id if current is not None else 0
        version = manifest.model_version if manifest is not None else 0
        return State(max(1, self._epoch), online, round_id, version)

    # What is counted

    def _refuse(self, reason: str) -> list[Effect]:
        self.refused_count[reason] = self.refused_count.get(reason, 0) + 1
        return []

    def _read_fleet(self, fleet: dict[str, str]) -> None:
        for device_id in [known for known, key in self._fleet.items() if fleet.get(known) != key]:
            del self._verifiers[device_id]
            self._sessions.forget(device_id)
            self._left(device_id)
        for device_id in sorted(fleet.keys() - self._verifiers.keys()):
            self._verifiers[device_id] = self._id.verifier(fleet[device_id])
        self._fleet = dict(fleet)
        self._strangers -= fleet.keys()
