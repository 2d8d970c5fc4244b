"""The coordinator as a pure state machine: events in, effects out. No clock, no socket, no database.

    link:   DOWN ──Connected──▶ UP (a new epoch: everyone is asked for a birth) ──Disconnected──▶ DOWN
    round:  none ──a round waits──▶ OPEN ──▶ CLOSING ──▶ none            (see broker.rounds)

Rules that keep finished work:

1. An update is stored before its receipt is published. Whoever has a receipt is counted.
2. (device_id, round_id) is stored once. The same bytes again are a duplicate, other bytes are refused.
3. The new version, the updates that it counts and the round's end are one transaction: a crash before it leaves
   all of them to be counted, a crash after it none.
4. An update whose round has closed, or was cancelled, is counted by the next one that closes.
5. A round's nonce and share are stored before anyone hears of them, and a share only grows: who was drawn stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from broker import cohort, rounds
from broker.effects import (
    Aggregate,
    Aggregated,
    AggregateFailed,
    Choice,
    CommitRound,
    Connected,
    Disconnected,
    Effect,
    Event,
    FleetRead,
    Last,
    Pending,
    Received,
    RoundsRead,
    Snapshot,
    StageWished,
    StoreEpoch,
    StoreInvited,
    StoreRound,
    StoreSeen,
    StoreTrial,
    StoreUpdate,
    Tick,
)
from broker.rollout import Rollout
from broker.rounds import Book, Round
from broker.sessions import Sessions
from broker.standing import Standings
from broker.strangers import Strangers
from broker.verdicts import judge
from wire import envelope, topics
from wire.messages import Birth, Death, Message, State, Telemetry, Update, Want, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from broker.voice import Identity
    from wire.messages import Manifest, Offer, Plan

SETTLE_MS: Final = 5_000  # after a new epoch, how long births may take before absence means absence
RETRY_MS: Final = 10_000


class Coordinator:
    """The fleet's side of every round. `handle` is the only door; `wake_at_ms` the only timer."""

    def __init__(self, identity: Identity, snapshot: Snapshot, chance: Random) -> None:
        self.refused_count: dict[str, int] = {}  # what arrived and was not believed, by reason
        self._id = identity
        self._chance = chance
        self._epoch = snapshot.epoch
        self._round: Round | None = None
        self._haste = 1  # how many times the share that a round asks for is drawn: lately too few came
        self._fleet: dict[str, str] = {}
        self._verifiers: dict[str, envelope.Verify] = {}
        self._sessions = Sessions()
        self._standings = Standings(snapshot.tags, snapshot.took)
        self._strangers = Strangers(identity)
        self._rollout = Rollout(identity, snapshot)
        self._read_fleet(snapshot.fleet)
        self._last = dict(snapshot.last)
        self._pending = {(p.device_id, p.round_id): p for p in snapshot.pending}
        self._told_plan: Plan | None = None  # what everyone is known to have been told, and is retained; None: unknown
        self._book = Book(snapshot.rounds)
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
                self._strangers.all_left()
                if self._round is not None:
                    self._round.all_left()
                return []
            case Received(topic=topic, payload=payload):
                return self._on_received(topic, payload, now_ms)
            case FleetRead(fleet=fleet, tags=tags):
                self._standings.read_tags(tags)
                return self._on_fleet_read(fleet, now_ms)
            case RoundsRead(waiting=waiting, unwanted=unwanted):
                self._rollout.is_paused = event.paused
                withdrawn = self._book.read(waiting, unwanted)
                if self._round is not None and self._round.row.round_id in unwanted:
                    self._round.is_unwanted = True
                return [*map(StoreRound, withdrawn), *self._end_unwanted(now_ms), *self._open_next(now_ms)]
            case StageWished():
                self._rollout.wish = event
                return self._do_wish(now_ms)
            case Aggregated():
                return [*self._on_aggregated(event, now_ms), *self._do_wish(now_ms)]
            case AggregateFailed(round_id=round_id):
                if self._round is not None and self._round.row.round_id == round_id:
                    self._round.closing = False
                    self._retry_at_ms = now_ms + RETRY_MS
                return [*self._end_unwanted(now_ms), *self._do_wish(now_ms)]
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
        effects: list[Effect] = [StoreEpoch(self._epoch), *self._rollout.share()]
        if self._round is not None:
            effects += [self._tell_plan(self._round.row.plan), *self._announce(now_ms)]
        return [*effects, *self._open_or_idle(now_ms)]

    def _begin_epoch(self) -> None:
        self._epoch += 1
        self._sessions.begin(self._epoch)

    def _on_fleet_read(self, fleet: dict[str, str], now_ms: int) -> list[Effect]:
        knocked = self._strangers.knocked(fleet)
        self._read_fleet(fleet)
        effects = [effect for name, sealed in knocked for effect in self._let_in(name, sealed, now_ms)]
        return [*effects, *self._close_if_due(now_ms)]

    def _let_in(self, device_id: str, sealed: bytes, now_ms: int) -> list[Effect]:
        """It was told that nobody knows it, and is not any more: its birth is believed now, if it still is there."""
        seen = self._on_received(topics.up(self._id.fleet, device_id, "birth"), sealed, now_ms) if sealed else []
        return [self._id.receipt(device_id, digest_of(sealed), 0, "accepted", ""), *seen] if seen else []

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
            if current.row.nonce:
                current.row = cohort.with_larger_share(current.row)
                self._book.note(current.row)
                effects.append(StoreRound(current.row))
            # what was retained may be lost or overwritten, and nobody can tell us
            effects += [*self._rollout.share(), self._tell_plan(current.row.plan), *self._announce(now_ms)]
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
            return [*self._refuse("unknown"), *self._strangers.hear(address, payload)]
        try:
            message = envelope.unseal(payload, topic, verify)
        except envelope.EnvelopeError as error:
            effects = self._refuse(error.reason)
            if address.kind == "update":
                effects.append(self._id.receipt(address.device_id, digest_of(payload), 0, "refused", str(error)))
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
                self._standings.on_telemetry(device_id, message.battery_rate)
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
            return [seen, *self._offer(device_id)]  # it may have slept through the first one
        return [seen, *self._invite(self._draw({device_id: birth}, now_ms))]  # the others were drawn, or not, before

    def _on_want(self, device_id: str, want: Want, now_ms: int) -> list[Effect]:
        answer = self._rollout.serve(device_id, want, now_ms)
        return self._refuse("want") if answer is None else answer

    def _on_update(self, device_id: str, update: Update, sealed: bytes, now_ms: int) -> list[Effect]:
        digest = digest_of(sealed)
        known = self._last.get(device_id), self._book.opened, self._rollout.newest
        verdict, reason = judge(device_id, update, digest, known, identity=self._id, standings=self._standings)
        receipt = self._id.receipt(device_id, digest, update.round_id, verdict, reason)
        if verdict != "accepted":
            return [*self._refuse(verdict), receipt]
        self._last[device_id] = Last(update.round_id, digest)
        if self._round is not None and self._round.row.round_id == update.round_id:
            self._round.report(device_id)
        if update.trial is not None:
            tried = StoreTrial(self._rollout.tried(device_id, update, digest))
            return [tried, receipt, *self._close_if_due(now_ms)]
        row = rounds.stored(device_id, update, digest, self._book.opened[update.round_id].plan)
        self._standings.on_update(device_id, update.round_id, update.base_version)
        self._pending[device_id, update.round_id] = Pending(device_id, update.round_id, update.base_version, row.weight)
        return [StoreUpdate(row), receipt, *self._close_if_due(now_ms)]

    # Rounds

    def _resume(self) -> None:
        """Take up the round that was open when the last run ended."""
        row = next((row for row in self._book.opened.values() if row.status == "open"), None)
        if row is None:
            return
        self._round = Round(row, 0)
        for device_id, last in self._last.items():
            if last.round_id == row.round_id:
                self._round.report(device_id)

    def _open_next(self, now_ms: int) -> list[Effect]:
        manifest = self._rollout.newest
        if not self._up or self._round is not None or self._rollout.is_paused or manifest is None:
            return []
        row, moot = self._book.take(manifest, to_try=self._rollout.candidate is not None)
        closed: list[Effect] = [*map(StoreRound, moot)]
        if row is None:  # the operator cancelled the trial, or there is nothing to do
            ended = [*closed, *self._rollout.put_out("no ring is left to try it")]
            return [*ended, *self._open_or_idle(now_ms)] if ended else []
        if row.mode == "buffered" and row.choice == Choice():
            there = self._standings.among(row, self._sessions.present())
            row = cohort.with_coin(row, len(there), self._haste, self._chance)
        self._book.note(row)
        self._round = Round(row, now_ms)
        plan_told: list[Effect] = [] if row.plan == self._told_plan else [self._tell_plan(row.plan)]
        state = self._id.share(self._state(online=True))
        return [*closed, StoreRound(row), *plan_told, state, *self._announce(now_ms)]

    def _open_or_idle(self, now_ms: int) -> list[Effect]:
        """Open the round that waits, or say that none is open: in either case everyone hears one new state."""
        return self._open_next(now_ms) or [self._id.share(self._state(online=True))]

    def _tell_plan(self, plan: Plan) -> Effect:
        self._told_plan = plan
        return self._id.share(plan)

    def _left(self, device_id: str) -> None:
        if self._round is not None:
            self._round.left(device_id)

    def _announce(self, now_ms: int) -> list[Effect]:
        """Offer the open round to those who are there: in one word to all, or in one to each that is drawn."""
        drawn = self._draw(self._sessions.present(), now_ms)
        if self._round is not None and self._round.row.nonce:
            return [self._id.share(self._offered(self._round))]
        return self._invite(drawn)

    def _invite(self, drawn: list[str]) -> list[Effect]:
        if self._round is None or not drawn:
            return []
        offers = [effect for device_id in drawn for effect in self._offer(device_id)]
        return [StoreInvited(self._round.row.round_id, tuple(drawn)), *offers]

    def _draw(self, candidates: Mapping[str, Birth], now_ms: int) -> list[str]:
        current = self._round
        if current is None or current.closing or now_ms > current.ends_at_ms:
            return []
        eligible = self._standings.among(current.row, candidates)
        drawn = cohort.draw(current.row, self._id.fleet, eligible, current.invited, self._chance)
        for device_id in drawn:
            current.invite(device_id)
        return drawn

    def _close_if_due(self, now_ms: int) -> list[Effect]:
        current, manifest = self._round, self._rollout.manifest
        if current is None or manifest is None or not self._up or self._retry_at_ms is not None:
            return []
        if self._settled_at_ms is not None and now_ms < self._settled_at_ms:
            return []
        if current.row.is_trial:
            return self._end_trial_if_due(current, now_ms)
        if not current.may_close(now_ms, len(self._pending)):
            return []
        current.closing = True
        return [self._aggregate(current, manifest)]

    def _end_trial_if_due(self, current: Round, now_ms: int) -> list[Effect]:
        ended = self._rollout.end_trial(current, now_ms)
        if ended is None:
            return []
        row, effects = ended
        self._book.note(row)
        self._end_round(current)
        return [*effects, *self._open_or_idle(now_ms)]

    def _aggregate(self, current: Round, manifest: Manifest) -> Effect:
        self._members = rounds.members(self._pending.values(), manifest.model_version)
        # scales may change only when nothing that was counted in the old ones is left
        whole = len(self._members) == len(self._pending)
        return Aggregate(current.row.round_id, current.row.plan, manifest, self._members, whole)

    def _on_aggregated(self, done: Aggregated, now_ms: int) -> list[Effect]:
        current, before = self._round, self._rollout.manifest
        if current is None or before is None or not current.closing or current.row.round_id != done.round_id:
            return []
        if done.model and len(self._pending) > len(self._members):
            return [self._aggregate(current, before)]  # one came meanwhile: it counts in the old scales, too
        manifest = self._rollout.made(current.row, done)
        row = msgspec.structs.replace(current.row, status="closed", model_version=manifest.model_version)
        self._book.note(row)
        self._haste = cohort.haste_after(row, len(self._members), self._haste)
        self._end_round(current)
        for member in self._members:
            del self._pending[member.device_id, member.round_id]
        told: list[Effect] = [CommitRound(row, manifest, done, self._members)]
        if row.ring is None:
            told += self._rollout.share()
        elif why := self._rollout.worse_here(row.ring):
            told += self._rollout.put_out(why)
        told += self._open_or_idle(now_ms)
        return [*told, *self._close_if_due(now_ms)]  # as many as are enough may have come while the sum was made

    def _do_wish(self, now_ms: int) -> list[Effect]:
        """Promote or restore the version that the operator names, unless a sum is under way: then after it."""
        current = self._round
        if current is not None and current.closing:
            return []
        effects = self._rollout.do_wish()
        if not effects:
            return []
        # whoever trains for the open round, trains what nobody wants any more
        ended = [] if current is None else [self._give_up(current)]
        return [*ended, *effects, *(self._open_or_idle(now_ms) if self._up else [])]

    def _end_unwanted(self, now_ms: int) -> list[Effect]:
        """Close the round that nobody wants, unless its sum is under way. What is stored of it stays pending."""
        current = self._round
        if current is None or current.closing or not current.is_unwanted:
            return []
        return [self._give_up(current), *(self._open_or_idle(now_ms) if self._up else [])]

    def _give_up(self, current: Round) -> Effect:
        """The round ends without a version."""
        self._end_round(current)
        self._retry_at_ms = None
        row = msgspec.structs.replace(current.row, status="closed", model_version=current.row.base_version)
        self._book.note(row)
        return StoreRound(row)

    def _end_round(self, current: Round) -> None:
        self._round = None
        if current.lacks_somebody():  # who may lack the plan: what is retained may have been lost or overwritten
            self._told_plan = None

    # What is said

    def _offer(self, device_id: str) -> list[Effect]:
        assert self._round is not None, "an offer needs an open round"
        introduced = self._rollout.introduce(device_id) if self._round.row.is_trial else []
        return [*introduced, self._id.say(device_id, self._offered(self._round))]

    def _offered(self, current: Round) -> Offer:
        return cohort.offer(current.row, current.plan_digest, len(self._fleet))

    def _state(self, *, online: bool) -> State:
        current, manifest = self._round, self._rollout.manifest  # once each: the link's thread asks too, for the will
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
