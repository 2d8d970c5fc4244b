"""Planted bugs: each one must be found. `make mutants`, or `python -m tests.mutants WORD` for those whose why has WORD.

The tests of a simulator can be green because they look at the wrong thing. Here each mutant is a bug that somebody
might write: a file, a text that stands in it exactly once, what it becomes, and why that is wrong. The runner
copies the tree, plants one, and runs the fast tests until the first one fails. A mutant that survives is a missing
test; a text that is not found exactly once is an error, so that the list cannot rot.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
FOLDERS = ("wire", "engine", "edge_agent", "broker", "firmware_sim", "tests", "deploy", "docs")
STORM = "tests/fleet/test_storm.py::test_every_promise_holds_in_every_storm_and_work_goes_on_after_it"
WIRE_TESTS = (
    "tests/wire/test_keys.py",
    "tests/wire/test_envelope.py",
    "tests/wire/test_topics.py",
    "tests/wire/test_chunks.py",
)
FLEET_TESTS = (
    "tests/fleet/test_forgery.py",
    "tests/fleet/test_weather.py",
    f"{STORM}[0]",
    "tests/fleet/test_cuts.py",
    "tests/edge_agent/test_download.py",
    "tests/edge_agent/test_agent.py",  # last: what only a scripted test finds is a fault that the weather lacks
    "tests/broker/test_coordinator.py",
    "tests/edge_agent/test_presence.py",
    "tests/broker/test_sessions.py",
    "tests/broker/test_turns.py",
    "tests/broker/test_ration.py",
    "tests/wire/test_coin.py",
    "tests/edge_agent/test_offer_to_all.py",
    "tests/broker/test_buffered.py",
    "tests/broker/test_standing.py",
    "tests/broker/test_rollout.py",
    "tests/edge_agent/test_held_estimate.py",
    "tests/edge_agent/test_runtime.py",
)
PARALLEL = 2
TIMEOUT_S = 600

NUMBERS_TESTS = (
    "tests/engine/test_steps.py",
    "tests/engine/test_residual.py",
    "tests/engine/test_master.py",
    "tests/edge_agent/test_trainer.py",
)
SEEING_TESTS = (
    "tests/edge_agent/test_sources.py",
    "tests/edge_agent/test_stream.py",
    "tests/edge_agent/test_inference.py",
    "tests/edge_agent/test_predictions.py",
    "tests/edge_agent/test_watching.py",
    "tests/edge_agent/test_unlabelled.py",
    "tests/edge_agent/test_samples.py",
    "tests/edge_agent/test_service.py",
    "tests/real/test_link.py",
)
ENROL_TESTS = (
    "tests/broker/test_claims.py",
    "tests/broker/test_enrolling.py",
    "tests/broker/test_service_claims.py",
    "tests/broker/test_certificates.py",
    "tests/wire/test_token_text.py",
    "tests/wire/test_clock_floor.py",
    "tests/wire/test_topics.py",
    "tests/edge_agent/test_certificates.py",
    "tests/edge_agent/test_enroll.py",
)
CODED_TESTS = ("tests/engine/test_codec.py", "tests/engine/test_robust.py")
DRIFT_TESTS = (
    "tests/engine/test_drift.py",
    "tests/engine/test_control.py",
    "tests/engine/test_estimate.py",
    "tests/broker/test_estimates.py",
    "tests/broker/test_hardened.py",
    "tests/edge_agent/test_held_estimate.py",
    "tests/edge_agent/test_own.py",
    "tests/edge_agent/test_trainer.py",
)
ROLLOUT_TESTS = (
    "tests/broker/test_rollout.py",
    "tests/broker/test_stages.py",
    "tests/edge_agent/test_slots.py",
    "tests/edge_agent/test_trying.py",
    "tests/edge_agent/test_trainings.py",
    "tests/edge_agent/test_flash.py",
    f"{STORM}[2]",
)
PROBATION_TESTS = (
    "tests/edge_agent/test_probation.py",
    "tests/edge_agent/test_slots.py",
    "tests/edge_agent/test_runtime.py",
)
WATCH_TESTS = (
    "tests/broker/test_field.py",
    "tests/broker/test_groups.py",
    "tests/broker/test_metrics.py",
    "tests/broker/test_refusals.py",
    "tests/broker/test_roster.py",
    "tests/broker/test_plan_check.py",
    "tests/broker/test_lanes.py",
    "tests/broker/test_service.py",
)
ENVELOPE_TESTS = (
    "tests/edge_agent/test_budget.py",
    "tests/edge_agent/test_host.py",
    "tests/edge_agent/test_byte_budget.py",
    "tests/edge_agent/test_traffic.py",
    "tests/edge_agent/test_service.py",
)


BYTES_TESTS = ("tests/wire/test_meter.py", "tests/edge_agent/test_traffic.py")
STORE_TESTS = ("tests/broker/test_store.py", "tests/broker/test_lease.py", "tests/broker/test_backup.py")
RULES_TESTS = (
    "tests/engine/test_ring.py",
    "tests/engine/test_robust.py",
    "tests/broker/test_aggregate.py",
    "tests/sim/test_lineage.py",
)
RULES = ("engine/ring.py", "engine/robust.py", "broker/aggregate/", "firmware_sim/lineage.py")
STORE = ("broker/postgres.py", "broker/lease.py", "broker/backup.py", "broker/store.py")
SEEING = (
    "edge_agent/inference.py",
    "edge_agent/predictions.py",
    "edge_agent/samples.py",
    "edge_agent/stream.py",
    "edge_agent/service.py",
    "wire/link.py",
)
SEEN = ("labels train again as if they were windows",)
ENROL = (
    "broker/claims.py",
    "broker/authority.py",
    "broker/enrolling.py",
    "broker/enrolments.py",
    "broker/log.py",
    "broker/certificates.py",
    "wire/clock_floor.py",
    "wire/dial.py",
    "wire/token_text.py",
    "edge_agent/certificates.py",
    "edge_agent/enroll.py",
)
ENROLLED = (
    "who was let in is a stranger until the next change of the store",
    "a device is called claim, as every token's certificate",
)
CODED = ("engine/kernels/gaps.py", "engine/kernels/gram.py")
DRIFT = (
    "engine/codec/estimate.py",
    "engine/drift.py",
    "engine/control.py",
    "engine/own.py",
    "broker/estimates.py",
    "broker/admission.py",
    "broker/aggregate/reading.py",
)
ROLLOUT = (
    "broker/rollout.py",
    "broker/stages.py",
    "broker/serving.py",
    "edge_agent/trying.py",
    "edge_agent/trainings.py",
    "edge_agent/trainer.py",
)
PROBATION = ("edge_agent/probation.py", "edge_agent/runtime.py", "edge_agent/slots.py")
WATCH = (
    "broker/field.py",
    "broker/groups.py",
    "broker/metrics.py",
    "broker/refusals.py",
    "broker/roster.py",
    "broker/plan_check.py",
    "broker/lanes.py",
    "broker/service.py",
)
NUMBERS = ("engine/", "edge_agent/trainer.py")  # what those tests are for
BYTES = ("wire/meter.py", "edge_agent/traffic.py")
AGENT = "edge_agent/agent.py"
DOWNLOAD = "edge_agent/download.py"
OUTBOX = "edge_agent/outbox.py"
PRESENCE = "edge_agent/presence.py"
COORDINATOR = "broker/coordinator.py"
VERDICTS = "broker/verdicts.py"
ROUNDS = "broker/rounds.py"
SESSIONS = "broker/sessions.py"
VOICE = "broker/voice.py"
TRAINER = "edge_agent/trainer.py"
MASTER = "engine/master.py"
RESIDUAL = "engine/codec/residual.py"


class Mutant(NamedTuple):
    """One planted bug."""

    file: str
    before: str
    after: str
    why: str


MUTANTS = (
    # the agent: what is finished
    Mutant(AGENT, "[*kept, *self._send(now_ms)]", "[*self._send(now_ms), *kept]", "publishes before it persists"),
    Mutant(AGENT, "last_round_id=round_id, outbox", "outbox", "trains a round twice: does not note it as done"),
    Mutant(
        AGENT,
        " or receipt.digest != self._outbox_digest:",
        ":",
        "empties the outbox on any receipt",
    ),
    Mutant(
        AGENT,
        "self._outbox_digest, self._presence.birth_digest):",
        "self._presence.birth_digest,):",
        "empties the outbox when nobody knows it",
    ),
    Mutant(
        AGENT,
        "if self._training is not None or self.durable.outbox or self._offer is None:",
        "if self._training is not None or self._offer is None:",
        "trains the next round while the outbox is full",
    ),
    Mutant(
        OUTBOX,
        "self.due_ms = now_ms + self._pause_ms // 2 + self._jitter.randrange(self._pause_ms)",
        "self.due_ms = None",
        "sends an update once, and never again",
    ),
    Mutant(
        OUTBOX,
        "self._pause_ms = min(self._pause_ms * 2, RESEND_MS_MAX)",
        "self._pause_ms = RESEND_MS_MIN",
        "resends every few seconds for days",
    ),
    Mutant(
        OUTBOX,
        "            return durable.residual_round_id",
        "            return durable.outbox_round_id",
        "forgets the residual rule: a refused update's residual becomes true",
    ),
    Mutant(
        AGENT,
        "{self.durable.residual_round_id, self.durable.outbox_round_id} - {0}",
        "{self.durable.outbox_round_id} - {0}",
        "deletes the residual that is owed",
    ),
    Mutant(
        AGENT,
        "self._presence.connection = None",
        "self._presence.connection = self._training = None",
        "one machine for link and work: a lost link forgets the training",
    ),
    # the agent: what it says and whom it believes
    Mutant(
        AGENT,
        "        self._presence.epoch = state.epoch\n        self._outbox.hurry()\n",
        "        self._presence.epoch = state.epoch\n        return []\n",
        "ignores a new epoch: no birth, no resend",
    ),
    Mutant(AGENT, "boot=self.durable.boot + 1", "boot=self.durable.boot", "does not count its boots"),
    Mutant(
        PRESENCE,
        "[] if self._answered else [self.birth(durable, reading)]",
        "[]",
        "never repeats a birth that nobody answers",
    ),
    Mutant(AGENT, "if manifest.model_version < known:", "if manifest.model_version < 0:", "believes an old manifest"),
    Mutant(
        AGENT,
        "manifest is None or manifest.model_version != self._offer.base_version",
        "manifest is None",
        "trains on whatever version is there",
    ),
    Mutant(
        AGENT,
        'effects.append(StopTraining("deadline"))',
        "pass",
        "gives up a training child without stopping it",
    ),
    Mutant(
        AGENT,
        "self._offer = None  # the pause",
        "self._offer, self._tries.due_ms = None, None  # the pause",
        "takes the late answer of a stopped child for the next one's: no pause between them",
    ),
    Mutant(
        AGENT,
        "        if self._download is not None and self._download.manifest != manifest:\n"
        "            self._download = None",
        "        if False:\n            self._download = None",
        "keeps fetching the version before",
    ),
    Mutant(AGENT, "return [*drops, *self._advance(now_ms)]", "return self._advance(now_ms)", "keeps a wrong patch"),
    Mutant(
        AGENT,
        "return self._on_patch_failed(event, now_ms)",
        "return self._on_training_failed(event.round_id, event.reason, now_ms)",
        "gives up a round over a wrong patch",
    ),
    # the download
    Mutant(
        DOWNLOAD,
        "        self._ask_again_at_ms = now_ms + self._pause_ms\n        return [Want",
        "        self._ask_again_at_ms = 2**52\n        return [Want",
        "asks for a chunk once, and never again",
    ),
    Mutant(DOWNLOAD, "if state.ready or state.patched:", "if True:", "takes every file for whole"),
    Mutant(DOWNLOAD, "if state.ready or state.patched:", "if state.ready:", "does not see that a patch is on flash"),
    Mutant(DOWNLOAD, 'self._url = ""\n', "pass\n", "waits for a web server that never answers"),
    Mutant(
        DOWNLOAD,
        "None if state.patch_failed else self._base_of(state)",
        "self._base_of(state)",
        "asks for a patch from the base file after one has failed",
    ),
    Mutant(
        DOWNLOAD,
        'return Base(own, b"", self._model) if own and self._model else None',
        "return None",
        "does not see that the base file holds a version",
    ),
    Mutant(DOWNLOAD, " and state.base.model == self._model", "", "patches params of other scales"),
    Mutant(
        DOWNLOAD,
        ' or base.params not in (b"", patch.base_digest)',
        "",
        "takes a patch of other params",
    ),
    Mutant(
        DOWNLOAD,
        "self._pause_ms = min(2 * self._pause_ms, RESEND_MS_MAX)",
        "self._pause_ms = RESEND_MS_MIN",
        "asks every few seconds for days",
    ),
    # the coordinator: what is stored and counted
    Mutant(
        COORDINATOR,
        "[StoreUpdate(row), receipt, *self._close_if_due(now_ms)]",
        "[receipt, StoreUpdate(row), *self._close_if_due(now_ms)]",
        "sends the receipt before it stores",
    ),
    Mutant(
        VERDICTS,
        "if last is not None and update.round_id == last.round_id:",
        "if False and last is not None and update.round_id == last.round_id:",
        "stores an update twice",
    ),
    Mutant(
        VERDICTS,
        "        if digest == last.digest:\n",
        "        if True:\n",
        "calls another update of the same round a duplicate",
    ),
    Mutant(
        COORDINATOR,
        "            del self._pending[member.device_id, member.round_id]",
        "            pass",
        "counts a pending update twice",
    ),
    Mutant(
        COORDINATOR,
        "rounds.members(self._pending.values(), manifest.model_version)",
        "rounds.members([p for p in self._pending.values() if p.round_id == current.row.round_id], "
        "manifest.model_version)",
        "drops late updates",
    ),
    Mutant(
        COORDINATOR,
        "{(p.device_id, p.round_id): p for p in snapshot.pending}",
        "{}",
        "forgets after a restart what was stored and not counted",
    ),
    Mutant(COORDINATOR, "self._last = dict(snapshot.last)", "self._last = {}", "forgets after a restart who reported"),
    Mutant(COORDINATOR, "[StoreEpoch(self._epoch), *self._rollout.share()]", "[*self._rollout.share()]", "no epoch"),
    Mutant(
        COORDINATOR,
        "told: list[Effect] = [CommitRound(row, manifest, done, self._members)]",
        "told: list[Effect] = [*self._rollout.share(), CommitRound(row, manifest, done, self._members)]",
        "shows a version before it is committed",
    ),
    Mutant(
        COORDINATOR,
        "return [*closed, StoreRound(row), *plan_told,",
        "return [*closed, *plan_told,",
        "opens a round without storing it",
    ),
    Mutant(
        VERDICTS,
        "reason = identity.admit(update.payload, row.plan)",
        "reason = None",
        "admits any payload",
    ),
    Mutant(
        VERDICTS,
        "if update.base_version != row.base_version:",
        "if False:",
        "takes an update of another version",
    ),
    # the coordinator: rounds that the operator gives up
    Mutant(
        COORDINATOR,
        "return [self._give_up(current), *(self._open_or_idle(now_ms) if self._up else [])]",
        "self._give_up(current); return self._open_or_idle(now_ms) if self._up else []",
        "does not store that a round was cancelled",
    ),
    Mutant(
        COORDINATOR,
        "        self._end_round(current)\n        self._retry_at_ms = None\n",
        "        self._end_round(current)\n        self._retry_at_ms, self._pending = None, {}\n",
        "drops what is stored of a cancelled round",
    ),
    Mutant(
        COORDINATOR,
        "return [*self._end_unwanted(now_ms), *self._do_wish(now_ms)]",
        "return []",
        "forgets a cancellation that came while the sum was under way",
    ),
    Mutant(
        ROUNDS,
        "_in_order(row for row in asked if row.round_id not in unwanted)",
        "_in_order(asked)",
        "opens a round that was withdrawn",
    ),
    # the coordinator: who is there, and when a round ends
    Mutant(
        COORDINATOR,
        "            return [seen, *self._offer(device_id)]  # it may",
        "            return [seen]  # it may",
        "does not offer the round again to a device that comes back",
    ),
    Mutant(
        COORDINATOR,
        "if self._settled_at_ms is not None and now_ms < self._settled_at_ms:",
        "if False:",
        "closes before it knows who is there",
    ),
    Mutant(
        COORDINATOR,
        "                    self._round.closing = False\n",
        "",
        "never tries a failed sum again",
    ),
    Mutant(
        COORDINATOR,
        "not self._round.closing and self._retry_at_ms is None:",
        "not self._round.closing:",
        "asks for a tick without pause while a failed sum waits",
    ),
    Mutant(
        COORDINATOR,
        "effects += [*self._rollout.share(), self._tell_plan(current.row.plan), *self._announce(now_ms)]",
        "effects += self._announce(now_ms)",
        "does not say again what the MQTT server lost",
    ),
    Mutant(VOICE, "verdict, fit_reason(reason)", "verdict, reason[:160]", "lets control characters into a reason"),
    Mutant(
        COORDINATOR, "            current.draw_again()\n", "", "holds places in the cohort for devices that are gone"
    ),
    Mutant(
        COORDINATOR,
        "self._up, self._told_plan = True, None",
        "self._up = True",
        "does not tell the plan again over a new link",
    ),
    Mutant(
        COORDINATOR,
        "        if current.lacks_somebody():",
        "        if False:",
        "leaves a plan that was overwritten as it is",
    ),
    Mutant(
        COORDINATOR,
        "for name, sealed in knocked for effect",
        "for name, sealed in () for effect",
        "leaves a new device waiting",
    ),
    Mutant(
        "broker/strangers.py",
        'self._births = dict.fromkeys(self._births, b"")',
        "pass",
        "believes that a device is there which knocked before the link was lost",
    ),
    Mutant(
        AGENT,
        'if receipt.verdict == "accepted" and receipt.digest == self._presence.birth_digest:',
        "if False:",
        "does not notice that it was let in",
    ),
    Mutant(
        ROUNDS,
        "if self.closing or pending_count < self.row.updates_min:",
        "if self.closing or pending_count < 1:",
        "closes with too few",
    ),
    Mutant(
        ROUNDS,
        "return now_ms >= self.ends_at_ms or not self._awaited",
        "return not self._awaited",
        "waits for ever for a device that is there and never reports",
    ),
    Mutant(
        ROUNDS,
        "return now_ms >= self.ends_at_ms or not self._awaited",
        "return now_ms >= self.ends_at_ms",
        "waits until the end though everyone has reported",
    ),
    Mutant(
        ROUNDS,
        "staleness = max(0, model_version - pending.base_version)",
        "staleness = 0",
        "a late update weighs as much as a fresh one",
    ),
    Mutant(
        SESSIONS,
        "not known.present or _pair(death) != _pair(known.birth)",
        "not known.present",
        "believes the death of an old connection",
    ),
    Mutant(
        SESSIONS,
        "return _is_same_card(birth, known) and _pair(birth) >= _pair(known)",
        "return _is_same_card(birth, known)",
        "believes an old birth",
    ),
    Mutant(
        SESSIONS,
        "if _is_same_card(birth, known) or birth.epoch != self._epoch:",
        "if True:",
        "takes a device with a new card for a replay of itself",
    ),
    Mutant(
        SESSIONS,
        "if any(_is_same_card(birth, old) and _pair(birth) <= _pair(old) for old in former):",
        "if False:",
        "believes what a dead card once said, after a new one took its place",
    ),
    Mutant(
        "broker/turns.py",
        "following += perform(effect) if not isinstance(effect, StoreUpdate | StoreSeen) else ()",
        "take(perform(effect) if not isinstance(effect, StoreUpdate | StoreSeen) else (), store, perform)",
        "performs what follows of an answer before what was decided earlier",
    ),
    Mutant(
        PRESENCE,
        "self._answered |= digest == outbox_digest and verdict",
        "self._answered |= verdict",
        "takes a receipt for a forgery for an answer",
    ),
    Mutant(
        PRESENCE,
        "self._answered |= round_id > self._round_id",
        "self._answered |= round_id >= self._round_id",
        "takes a replayed offer for an answer",
    ),
    Mutant(
        "broker/ration.py",
        "taken += sum(wanted.count for wanted in want.ranges)",
        "taken += 1",
        "counts wants and not chunks",
    ),
    Mutant(
        "broker/ration.py",
        "            return False\n",
        "            pass\n",
        "pours out chunks without bound",
    ),
    # scale epochs
    Mutant(
        VERDICTS,
        "if manifest is not None and row.plan.scale_epoch != manifest.scale_epoch:",
        "if False:",
        "counts steps of other scales: the epoch is not checked",
    ),
    Mutant(
        COORDINATOR,
        "if done.model and len(self._pending) > len(self._members):",
        "if False:",
        "changes the scales under an update that is stored",
    ),
    Mutant(
        ROUNDS,
        "plan = replace(row.plan, scale_epoch=newest.scale_epoch)",
        "plan = row.plan",
        "opens a round in scales that are over",
    ),
    Mutant(
        "broker/serving.py",
        "base_version=version if made.model else manifest.base_version",
        "base_version=manifest.base_version",
        "says of a new base file that it holds an old version",
    ),
    Mutant(
        "broker/serving.py",
        "scale_epoch=manifest.scale_epoch + bool(made.model)",
        "scale_epoch=manifest.scale_epoch",
        "does not count its scale epochs",
    ),
    # the numbers
    Mutant(
        MASTER,
        "change = (owed + unit * _HALF) //",
        "change = owed //",
        "publishes by truncation",
    ),
    Mutant(
        MASTER,
        "return (published << FRACTION_BITS) + owed",
        "return published << FRACTION_BITS",
        "makes the master from what was published: what rounding took is gone",
    ),
    Mutant(MASTER, "step * frame.unit", "step", "takes a bias's unit for one step"),
    Mutant(MASTER, "[:most])", "[: most + 1])", "publishes more of a version than it may"),
    Mutant(
        RESIDUAL, "elif take_units(", "elif False and take_units(", "does not take what was sent out of the residual"
    ),
    Mutant(RESIDUAL, "base_version - owed.base_version - 1", "base_version - owed.base_version", "missed the last one"),
    Mutant(RESIDUAL, "velocity[sent.indices] = 0", "pass", "goes on moving where it has sent"),
    Mutant(TRAINER, "limit - ENVELOPE_BYTES_MAX for", "limit for", "forgets the envelope when bytes are counted"),
    Mutant("edge_agent/residuals.py", "coding=plan.coding", 'coding="rice"', "codes otherwise than the plan says"),
    Mutant(RESIDUAL, "if epoch != scale_epoch:", "if False:", "pays a debt in steps of other scales"),
    Mutant(RESIDUAL, "    clip_steps(joining, frame.scale, float(sending.clip_norm))\n", "", "does not clip"),
    Mutant(
        TRAINER,
        "mix_seed(plan.seed, job.device_id, job.round_id)",
        'mix_seed(plan.seed, "", job.round_id)',
        "rounds on every device with one key",
    ),
    # the contract
    Mutant(
        "wire/envelope.py",
        "if not verify(_to_be_signed(topic, wrapped), signature):",
        "if False:",
        "believes unsigned messages",
    ),
    Mutant("wire/envelope.py", "external = topic.encode()", 'external = b""', "ignores the topic in the signature"),
    Mutant(
        "wire/envelope.py",
        "if messages.kind_of(message) != topic.rpartition",
        'if "" != topic.rpartition',
        "refuses every kind of message",
    ),
    Mutant(
        "wire/topics.py", "    if owner != shard(device_id):", "    if False:", "accepts a topic of the wrong shard"
    ),
    Mutant(
        "wire/chunks.py",
        "        if index in have:\n            continue\n",
        "",
        "asks for chunks that it has",
    ),
    # the account of bytes
    Mutant(
        "edge_agent/traffic.py",
        "if fresh.date > period.date or (",
        "if fresh.date != period.date or (",
        "a clock set back frees a day",
    ),
    Mutant(
        "edge_agent/traffic.py",
        "return max(kept.written, self._written_earlier + written)",
        "return max(kept.written, written)",
        "forgets at each start what was written to the card before",
    ),
    Mutant(
        DOWNLOAD,
        "if not self._asked and not self._files.keys() <= self._have.keys() | self._ready:",
        "if False:",
        "fetches a version of which a part has no room",
    ),
    Mutant("wire/meter.py", "if digest == self.update_digest", "if False", "counts an update sent again as a new one"),
    Mutant(
        "wire/coin.py",
        "offer.nonce, device_id) >= offer.draw",
        "offer.nonce, device_id) > offer.draw",
        "trains at the share itself, and is refused",
    ),
    Mutant(
        AGENT,
        "is_new = offer.round_id != self._tries.round_id",
        "is_new = self._offer is None or offer.round_id > self._offer.round_id",
        "an offer ends the pause after a failure",
    ),
    Mutant(
        AGENT,
        "        if not topics.is_shared(topic):",
        "        if True:",
        "an offer to all answers a birth that was lost",
    ),
    Mutant(
        AGENT,
        "        if is_over or now_ms >= self._offer_ends_ms",
        "        if now_ms >= self._offer_ends_ms",
        "waits for a round that has closed",
    ),
    Mutant(
        VERDICTS,
        "if not cohort.has_drawn(row, identity.fleet, device_id):",
        "if False:",
        "the coin is not checked",
    ),
    Mutant(
        COORDINATOR,
        "                effects.append(StoreRound(current.row))\n",
        "",
        "says a share that is not stored",
    ),
    Mutant(
        COORDINATOR,
        "                current.row = cohort.with_larger_share(current.row)\n",
        "",
        "starves when too few come",
    ),
    Mutant(
        COORDINATOR,
        "effects += [self._tell_plan(self._round.row.plan), *self._announce(now_ms)]",
        "effects += [self._tell_plan(self._round.row.plan)]",
        "a retained offer that was lost stays lost",
    ),
    Mutant(
        ROUNDS,
        "if 0 < self.row.updates_enough <= pending_count:",
        "if 0 < self.row.updates_enough < pending_count:",
        "waits for one update more than enough",
    ),
    Mutant(
        "broker/standing.py",
        "since = row.round_id - choice.rounds_of",
        "since = row.round_id - choice.rounds_of + 1",
        "the cap on participation is one round short",
    ),
    Mutant(
        "broker/store.py",
        '"draw = excluded.draw"',
        '"draw = rounds.draw"',
        "a raised share is forgotten",
    ),
    Mutant(
        "broker/postgres.py",
        "EXISTS (SELECT 1 FROM lease WHERE term = :term)",
        "TRUE",
        "a coordinator that slept writes",
    ),
    Mutant(
        "broker/postgres.py",
        "{lax}{_LOCK}",
        "{lax}",
        "the term is checked as it was before the wait",
    ),
    Mutant(
        "broker/postgres.py",
        "REPEATABLE READ READ ONLY",
        "READ COMMITTED READ ONLY",
        "a backup of several moments",
    ),
    Mutant(
        "broker/lease.py",
        "SET term = lease.term + 1,",
        "SET term = lease.term,",
        "a new holder cannot be told from the old",
    ),
    Mutant(
        "broker/lease.py",
        ":lease_s WHERE term = :term RETURNING term",
        ":lease_s RETURNING term",
        "renews the lease of another",
    ),
    Mutant(
        "broker/backup.py",
        "if copied != sealed",
        "if copied.row_count != sealed.row_count",
        "restores what has rotted",
    ),
    Mutant(
        "broker/backup.py",
        'if target.columns("settings"):',
        "if False:",
        "restores over a store",
    ),
    Mutant(
        "engine/ring.py",
        "if member.key in held:",
        "if False:",
        "adds an update that the sum holds already",
    ),
    Mutant(
        "engine/ring.py",
        "if one != other:",
        "if False:",
        "joins sums of different rounds",
    ),
    Mutant(
        "broker/aggregate/roll.py",
        "for key in sorted(self.members)",
        "for key in self.members",
        "the order of arrival decides",
    ),
    Mutant(
        "broker/aggregate/ranked.py",
        "if not state.purpose.dense:",
        "if False:",
        "ranks updates that carry a part of the parameters",
    ),
    Mutant(
        "engine/robust.py",
        "return within * within",
        "return within",
        "the longest update keeps the length of the bound",
    ),
    Mutant(
        "engine/robust.py",
        "return products - own, norms",
        "return products, norms",
        "in the first round each update vouches for itself",
    ),
    Mutant(
        "engine/robust.py",
        "np.minimum(_own(block.shared()), _own(block.gram()))",
        "_own(block.gram())",
        "does not see who sends the same parameters",
    ),
    Mutant(
        "firmware_sim/lineage.py",
        "if rule_state != (kept_state or rule_state):",
        "if False:",
        "the auditor believes what a rule remembers",
    ),
    Mutant(
        "broker/store.py",
        "SET remainder = NULL, rule_state = NULL ",
        "SET remainder = NULL ",
        "what rules remembered is kept for ever",
    ),
    Mutant(
        "broker/coordinator.py",
        "        if row.ring is None:\n            told += self._rollout.share()",
        "        if True:\n            told += self._rollout.share()",
        "shares a candidate with everyone",
    ),
    Mutant(
        "broker/rollout.py",
        "if verdict is None or (verdict.is_good and len(self._answers) < current.row.updates_min):",
        "if verdict is None:",
        "promotes what too few have tried",
    ),
    Mutant(
        "broker/rollout.py",
        "silent = asked - len(answers) if is_over else 0",
        "silent = 0",
        "who never answers is no sign of harm",
    ),
    Mutant(
        "broker/rollout.py",
        "trim = len(scored) // TRIMMED",
        "trim = 0",
        "one device of a ring decides for all",
    ),
    Mutant(
        "broker/rollout.py",
        "if lost - won > ring.worse_rate * count and is_worse(won, lost):",
        "if lost - won > ring.worse_rate * count:",
        "puts a version out by chance",
    ),
    Mutant(
        "broker/rollout.py",
        "if self.candidate is not None and self.candidate.manifest.model_version == update.base_version:",
        "if self.candidate is not None:",
        "counts what was said of an earlier candidate",
    ),
    Mutant(
        "broker/rollout.py",
        "if found is None or self._accuracy is None or found >= self._accuracy - ring.worse_rate:",
        "if found is None or self._accuracy is None or found >= 0:",
        "does not look at its own measure",
    ),
    Mutant(
        "broker/serving.py",
        "scale_epoch=newest.scale_epoch + (base_of(newest) != base_of(wanted)),",
        "scale_epoch=newest.scale_epoch,",
        "an old base under a new scale epoch",
    ),
    Mutant(
        "broker/verdicts.py",
        "if not standings.is_called(device_id, row.choice.tags):",
        "if False:",
        "whoever likes has a word in the ring",
    ),
    Mutant(
        "broker/rounds.py",
        "if not self._waiting or self._waiting[0].is_trial is not to_try:",
        "if not self._waiting:",
        "builds on a candidate",
    ),
    Mutant(
        "broker/store.py",
        "self._prune(version, version if row.ring is None else commit.manifest.parent_version)",
        "self._prune(version, version)",
        "lets the master go to which a rollback returns",
    ),
    Mutant(
        "broker/store.py",
        "last=_newest([*last, *self.stages.last()]),",
        "last=_newest(last),",
        "forgets at a restart who has tried",
    ),
    Mutant(
        "broker/stages.py",
        '"WHERE model_version > :restored AND model_version < :version AND stage',
        '"WHERE model_version >= :restored AND model_version < :version AND stage',
        "calls bad what it goes back to",
    ),
    Mutant(
        "edge_agent/probation.py",
        "model.version in (slots.now.version, slots.refused_version)",
        "model.version == slots.now.version",
        "takes again what the owner went back from",
    ),
    Mutant(
        "edge_agent/probation.py",
        "before = slots.now if stays or slots.before is None else slots.before",
        "before = slots.now",
        "probation: keeps what has not stayed, to go back to",
    ),
    Mutant(
        "edge_agent/probation.py",
        "        if connected and self._up_ms is not None:",
        "        if self._up_ms is not None:",
        "probation: counts the time until a lost link is noticed",
    ),
    Mutant(
        "edge_agent/probation.py",
        "        self._up_ms = now_ms if connected else None",
        "        self._up_ms = now_ms",
        "probation: counts time without a link",
    ),
    Mutant(
        "edge_agent/probation.py",
        "return replace(slots, tries_left=tries_left - 1)",
        "return slots",
        "probation: tries for ever",
    ),
    Mutant(
        "edge_agent/probation.py",
        "tries_left=slots.tries_left + 1, connected_ms",
        "connected_ms",
        "probation: an owner who restarts his agent uses up its tries",
    ),
    Mutant(
        "edge_agent/probation.py",
        "return Slots(before, None, slots.now.version, refused_because=reason)",
        "return Slots(before, None, slots.refused_version, refused_because=reason)",
        "probation: takes again what failed here",
    ),
    Mutant(
        "edge_agent/probation.py",
        "self._answered == self._version or not self._must_answer",
        "bool(self._answered) or not self._must_answer",
        "probation: takes the old version's answers for the new one's",
    ),
    Mutant(
        "edge_agent/probation.py",
        "                self._answered, self._connected_ms, self._up_ms = 0, 0, None",
        "                self._answered = 0",
        "probation: what dies again and again stays, if it lives long enough in sum",
    ),
    Mutant(
        "edge_agent/slots.py",
        "            return before\n        if version",
        "            return after\n        if version",
        "probation: shows what a full disk did not take",
    ),
    Mutant(
        "edge_agent/runtime.py",
        "needed.version > newest.get",
        "needed.version >= newest.get",
        "runtime: refuses the newest operator that it has",
    ),
    Mutant(
        "edge_agent/runtime.py",
        '"SQUEEZE": 1',
        '"SQUEEZE": 2',
        "runtime: claims an operator of the optimised kernels, which are not the ones that run",
    ),
    Mutant(
        "edge_agent/service.py",
        "        self._slots.tell(Started())\n        self._handle(effects.Booted())",
        "        self._handle(effects.Booted())",
        "probation: a version that takes the board down is loaded for ever",
    ),
    Mutant(
        "edge_agent/service.py",
        "Looked(self._link_reason is None)",
        "Looked(connected=True)",
        "probation: the shell takes any time for connected time",
    ),
    Mutant(
        "edge_agent/predictions.py",
        "            if not report.has_ended:\n                self._post(Failed(gone.reason))\n",
        "",
        "probation: a child that dies is no failure of its version",
    ),
    Mutant(
        "edge_agent/predictions.py",
        "            if not report.has_ended:\n",
        "            if True:\n",
        "probation: a cable that is out is a failure of the version",
    ),
    Mutant(
        AGENT,
        " or runtime.refusal(manifest, self._id.runtime)",
        "",
        "fetches what its runtime cannot run",
    ),
    Mutant(
        "edge_agent/trying.py",
        "won, lost = int((now & ~then).sum()), int((then & ~now).sum())",
        "lost, won = int((now & ~then).sum()), int((then & ~now).sum())",
        "takes what is worse for better",
    ),
    Mutant(
        "edge_agent/trainer.py",
        "if trial.refused and not trial.compared_with:",
        "if False:",
        "trains on a processor that is ill",
    ),
    Mutant(
        "edge_agent/trainings.py",
        "if answer.trial is not None and not answer.trial.refused:",
        "if answer.trial is not None:",
        "uses what it has refused",
    ),
    Mutant(
        "edge_agent/flash.py",
        "kept |= keep_files | in_use",
        "kept |= keep_files",
        "deletes what predicts",
    ),
    Mutant(
        "broker/field.py",
        "newest[key] = max(newest.get(key, told), told)",
        "newest[key] = told",
        "an older report counts in place of the newest",
    ),
    Mutant(
        "broker/field.py",
        "variance = max(alone, then.between + now.between)",
        "variance = alone",
        "devices that differ look like drift",
    ),
    Mutant(
        "broker/field.py",
        "min(1.0, p * len(before))",
        "min(1.0, p)",
        "asks many windows and rings by chance",
    ),
    Mutant(
        "broker/field.py",
        "now.count < EXAMPLES_MIN or not before",
        "not before",
        "few examples judge",
    ),
    Mutant(
        "broker/field.py",
        "p < P_MAX and drop >= DROP_MIN",
        "p < P_MAX",
        "rings over nothing",
    ),
    Mutant(
        "broker/groups.py",
        "(*kept, *ranked)[:GROUPS_MAX]",
        "(*kept, *ranked)",
        "series without a bound",
    ),
    Mutant(
        "broker/metrics.py",
        "groups_of(tags, self._groups.names)",
        "groups_of(tags)",
        "series grow as tags change",
    ),
    Mutant(
        "broker/refusals.py",
        "refusals.count + excluded.count",
        "excluded.count",
        "a day forgets its refusals",
    ),
    Mutant(
        "broker/refusals.py",
        "        self._told = counts\n",
        "",
        "counts refusals again each minute",
    ),
    Mutant(
        "broker/service.py",
        "if time.monotonic() >= self._tally_at_s:",
        "if True:",
        "a flood of refusals is a flood of writes",
    ),
    Mutant(
        "broker/service.py",
        "            self._keep_tally()\n        finally",
        "        finally",
        "an orderly end forgets refusals",
    ),
    Mutant(
        "broker/roster.py",
        "WHERE held_out_count > 0 ORDER BY base_version DESC",
        "ORDER BY base_version DESC",
        "a silent version hides the scores",
    ),
    Mutant(
        "broker/plan_check.py",
        "_unfit(value, known[key]) or _unfit(value, also)",
        "_unfit(value, known[key])",
        "bounds of the wire unchecked",
    ),
    Mutant(
        "broker/plan_check.py",
        '{"lane": recipe.lane, **words["plan"]}',
        'words["plan"]',
        "the configured lane is ignored",
    ),
    Mutant(
        "broker/lanes.py",
        "wish.rule_ranks and wish.chooses and not wish.lane.dense_state",
        "wish.rule_ranks and wish.chooses",
        "the hardened lane is refused",
    ),
    Mutant(
        "engine/codec/estimate.py",
        "Owed(-known)",
        "Owed(known)",
        "says again what is held already",
    ),
    Mutant(
        "engine/codec/estimate.py",
        "np.clip(sums, -limit, limit)",
        "sums",
        "an estimate grows beyond what a sum holds",
    ),
    Mutant(
        "engine/codec/estimate.py",
        "_PREFIX.pack(MARK, estimate.round_id)",
        "_PREFIX.pack(MARK, round_id)",
        "an update builds on itself",
    ),
    Mutant(
        "broker/estimates.py",
        "if round_id <= row.estimate.round_id:",
        "if False:",
        "adds to an estimate twice",
    ),
    Mutant(
        "broker/estimates.py",
        "follows == 0 or (builds_on_row and row.is_sound)",
        "follows == 0 or builds_on_row",
        "a row that is torn counts again",
    ),
    Mutant(
        "broker/estimates.py",
        "_, at = min(self._slots",
        "_, at = max(self._slots",
        "writes over the newer slot of a row",
    ),
    Mutant(
        "broker/estimates.py",
        'zlib.crc32(head, zlib.crc32(device_id.encode("ascii")))',
        "zlib.crc32(head)",
        "a torn name of a row",
    ),
    Mutant(
        "broker/estimates.py",
        "return row.is_sound and row.estimate.round_id == round_id",
        "return row.estimate.round_id == round_id",
        "believes a row that is torn",
    ),
    Mutant(
        "broker/aggregate/reading.py",
        "last = one",
        "last = last or one",
        "a device speaks by its first update",
    ),
    Mutant(
        "broker/aggregate/reading.py",
        "        estimates.flush()",
        "        pass",
        "commits before the rows are on disk",
    ),
    Mutant(
        "broker/admission.py",
        "return rows.holds(device_id, follows) or waits(device_id, follows)",
        "return rows.holds(device_id, follows)",
        "calls unfounded what builds on an update that waits",
    ),
    Mutant(
        "broker/verdicts.py",
        "if not identity.holds(device_id, update.payload, row.plan):",
        "if False:",
        "accepts what builds on nothing",
    ),
    Mutant(
        "edge_agent/outbox.py",
        "            return 0\n",
        "            return durable.residual_round_id\n",
        "builds for ever on what nobody holds",
    ),
    Mutant(
        "engine/drift.py",
        "factor = (proximal * part.step / part.unit)",
        "factor = (proximal * part.step * part.unit)",
        "pulls by the wrong scale",
    ),
    Mutant(
        "engine/drift.py",
        "    if descent.proximal:\n",
        "    if True:\n",
        "a plan that pulls nothing trains otherwise",
    ),
    Mutant(
        "engine/control.py",
        "fleet = (then - now)",
        "fleet = (now - then)",
        "corrects the wrong way",
    ),
    Mutant(
        "edge_agent/trainer.py",
        "proximal=plan.proximal,",
        "",
        "does not hear of the pull",
    ),
    Mutant(
        "engine/own.py",
        "worn[len(params) - len(own.params) :] = own.params",
        "pass",
        "does not wear its own layers",
    ),
    Mutant(
        "edge_agent/trainer.py",
        "delta[shared:] = 0  # what",
        "pass  # what",
        "tells of layers that stay on the device",
    ),
    Mutant(
        "edge_agent/trying.py",
        "return before if scores[0] > scores[1] else after",
        "return after",
        "keeps layers that do worse here",
    ),
    Mutant(
        "wire/keys.py",
        "if len(signature) != SIGNATURE_BYTES:",
        "if False:",
        "a signature that takes a byte of the message",
    ),
    Mutant(
        "wire/envelope.py",
        "if wrapped == _byte_string_head(len(payload)) + payload:",
        "if True:",
        "another head of a length passes",
    ),
    Mutant(
        "engine/kernels/gaps.py",
        "if bits > AHEAD or (levels == 0 and",
        "if bits > 64 or (levels == 0 and",
        "reads entries that do not fit the look-ahead",
    ),
    Mutant(
        "engine/kernels/gaps.py",
        "if position > end:",
        "if position > end + 8:",
        "a cut byte of an update goes unnoticed",
    ),
    Mutant(
        "engine/kernels/gaps.py",
        "if m >= LARGEST or (levels != 0 and m >= levels):",
        "if m >= LARGEST:",
        "a magnitude beyond its levels",
    ),
    Mutant(
        "engine/kernels/gram.py",
        "for w in range(squares * 16, taps):",
        "for w in range(squares * 16 + 1, taps):",
        "a column of the Gram is lost",
    ),
    Mutant(
        "broker/claims.py",
        "        if not _is_proven(claim):",
        "        if False:",
        "a place for a key that the claimant does not hold",
    ),
    Mutant(
        "broker/claims.py",
        '        if known not in ("", claim.public_key):',
        "        if False:",
        "a token takes the name of a device that is there",
    ),
    Mutant(
        "broker/claims.py",
        "        if unix_s >= token.expires_unix_s:",
        "        if unix_s > token.expires_unix_s + 86_400:",
        "a token does not end",
    ),
    Mutant(
        "broker/claims.py",
        "        if row is None or not is_same or row.name != device_id or not _is_for(row, tls_key):",
        "        if row is None or not is_same or row.name != device_id:",
        "a used token answers another TLS key",
    ),
    Mutant(
        "broker/claims.py",
        "        if row is None or not is_same or row.name",
        "        if row is None or row.name",
        "a used token answers another device",
    ),
    Mutant(
        "broker/claims.py",
        "        if row.revoked_unix_s:",
        "        if False:",
        "a revoked certificate is given again",
    ),
    Mutant(
        "broker/claims.py",
        "            self._kept.use(token.token_id, row.serial)\n",
        "            pass\n",
        "a token is good for ever",
    ),
    Mutant("broker/claims.py", "unix_s < newest.due_unix_s and _is_for", "_is_for", "nothing is ever renewed"),
    Mutant(
        "broker/claims.py",
        "            self._take_turn(topic, ASKER_CLAIMS_MAX, now_ms)\n",
        "            pass\n",
        "one device keeps all others out",
    ),
    Mutant(
        "broker/claims.py",
        '            self._take_turn("", CLAIMS_MAX, now_ms)  # behind',
        "            # behind",
        "all together are never cut",
    ),
    Mutant(
        "broker/claims.py",
        "        token = self._kept.token(token_id) if fleet == self._fleet else None",
        "        token = self._kept.token(token_id)",
        "another fleet's topic is answered",
    ),
    Mutant(
        "broker/claims.py",
        '    if token.device_id not in ("", claim.device_id):',
        "    if False:",
        "a token for one is good for all",
    ),
    Mutant(
        "broker/authority.py",
        "ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH",
        "ExtendedKeyUsageOID.SERVER_AUTH",
        "a device's key makes an MQTT server",
    ),
    Mutant(
        "broker/authority.py",
        "    until = min(unix_s + lasts_s, ends)",
        "    until = unix_s + lasts_s",
        "outlives its authority",
    ),
    Mutant(
        "broker/authority.py",
        ".next_update(authority.own.not_valid_after_utc)",
        ".next_update(_time(unix_s + DAY_S))",
        "the list ends tomorrow, and everybody is turned away",
    ),
    Mutant("broker/authority.py", "    if mode & 0o077:", "    if mode & 0o007:", "a key that the group may read"),
    Mutant(
        "broker/authority.py",
        "    if not read.is_signature_valid(authority.key.public_key()):\n        return {}\n",
        "",
        "believes the list of another authority",
    ),
    Mutant(
        "broker/enrolling.py",
        "    revoked = authority.read_list(path, ours) | dict",
        "    revoked = dict",
        "the revoked come back with a backup",
    ),
    Mutant(
        "broker/enrolling.py",
        "            was_in = store.remove_device(name)",
        "            was_in = True",
        "a revoked device stays in the fleet",
    ),
    Mutant(
        "broker/enrolments.py",
        '"WHERE name = :name AND revoked_unix_s = 0 AND expires_unix_s > :now"',
        '"WHERE serial = (SELECT MAX(serial) FROM certificates WHERE name = :name) "\n'
        '            "AND revoked_unix_s = 0 AND expires_unix_s > :now"',
        "only one of a device's certificates is revoked",
    ),
    Mutant(
        "broker/enrolments.py",
        "            self.revoke(name_in(token_id), unix_s)\n",
        "            pass\n",
        "a withdrawn token still opens the door",
    ),
    Mutant("broker/certificates.py", "    if not is_signed:", "    if False:", "a request for another's key"),
    Mutant(
        "edge_agent/certificates.py",
        "    if certificate.public_key != key:",
        "    if False:",
        "another key's certificate is kept",
    ),
    Mutant(
        "broker/certificates.py",
        ', x509.InvalidVersion) as error:\n        raise CertificateError("the request is no',
        ') as error:\n        raise CertificateError("the request is no',
        "a request with a strange version raises",
    ),
    Mutant(
        "wire/clock_floor.py",
        "    if time.time() >= floor:\n        return Tls(context)\n",
        "",
        "a right clock is not believed",
    ),
    Mutant(
        "wire/clock_floor.py",
        "ssl.cert_time_to_seconds(ends) < floor_unix_s",
        "ssl.cert_time_to_seconds(ends) < 0",
        "an ended server is forgiven",
    ),
    Mutant(
        "wire/clock_floor.py",
        "    return Tls(context, floor)",
        "    context.check_hostname = False\n    return Tls(context, floor)",
        "the name is forgiven with the time",
    ),
    Mutant(
        "wire/dial.py",
        "            clock_floor.check(self.sock, self._tls.floor_unix_s)\n",
        "",
        "nobody looks when the server's certificate ended",
    ),
    Mutant(
        "edge_agent/enroll.py",
        "        if isinstance(answer, Certificate) and answer.digest == digest_of(sealed):",
        "        if isinstance(answer, Certificate):",
        "an answer to another claim",
    ),
    Mutant(
        "edge_agent/enroll.py",
        "    certificates.check_issued(got, name, tls_key, authority[0])\n",
        "",
        "whatever comes is kept",
    ),
    Mutant(
        "edge_agent/enroll.py",
        "    certificates.check_issued(got, device.id, tls_key, authority[0])\n",
        "",
        "whatever comes is kept at renewal",
    ),
    Mutant(
        "edge_agent/enroll.py",
        "    if not path.exists():\n        given",
        "    if True:\n        given",
        "a config is overwritten",
    ),
    Mutant(
        "broker/service.py",
        "self._store_counter, self._poll_at_s = -1, 0.0",
        "pass",
        "who was let in is a stranger until the next change of the store",
    ),
    Mutant(
        "broker/log.py",
        'line("birth" if present else "death", device=seen)',
        'line("birth" if present else "death", device=device)',
        "who had waited to be let in is nobody in the log",
    ),
    Mutant(
        "wire/topics.py",
        'RESERVED: Final = (ALL, "coordinator", CLAIM)',
        'RESERVED: Final = (ALL, "coordinator")',
        "a device is called claim, as every token's certificate",
    ),
    Mutant("wire/token_text.py", "    if check != _check(body):", "    if False:", "a damaged token is taken for good"),
    Mutant(
        "broker/aggregate/guarded.py",
        "claimed * robust.bounded(claimed) * robust.uncrowded(batch)",
        "claimed * robust.uncrowded(batch)",
        "one device that claims 4,096 examples decides",
    ),
    Mutant(
        "edge_agent/sources/windower.py",
        "            start += self._hop\n",
        "            start += count\n",
        "windows take no account of the hop",
    ),
    Mutant(
        "edge_agent/sources/directory.py",
        "if file in self._last_look and file not in self._taken:",
        "if file not in self._taken:",
        "reads a file while it grows",
    ),
    Mutant(
        "edge_agent/sources/contents.py",
        "            if not is_too_long:\n                yield each\n",
        "            yield each\n",
        "the rest of a line that is too long is a sample",
    ),
    Mutant(
        "edge_agent/inference.py",
        "model.files, durable.residual_round_id)",
        "model.files)",
        "predicts without the layers of its own",
    ),
    Mutant(
        "edge_agent/inference.py",
        " or (self.reason and now_s >= self._again_s)",
        "",
        "a version once damaged is never tried again",
    ),
    Mutant(
        "edge_agent/predictions.py",
        "    if before != samples.UNKNOWN:",
        "    if before == label:",
        "a label that is said twice makes two examples",
    ),
    Mutant(
        "edge_agent/predictions.py",
        "1 if lived_s >= LASTED_S else self._deaths + 1",
        "self._deaths + 1",
        "the pause of the prediction child never shrinks",
    ),
    Mutant("edge_agent/predictions.py", 'payload or b"\\n")', "payload)", "an empty message ends the prediction child"),
    Mutant(
        "edge_agent/predictions.py", "        if self._spent:\n", "        if False:\n", "predictions spend the budget"
    ),
    Mutant(
        "edge_agent/first_model.py",
        "work in {Work.FETCHING, Work.TRAINING}",
        "work in {Work.TRAINING}",
        "the first model: it fetches beside a round",
    ),
    Mutant(
        "edge_agent/first_model.py",
        "model_version=manifest.base_version, files=files",
        "files=files",
        "the first model: it is taken for the version that is out",
    ),
    Mutant(
        "edge_agent/first_model.py",
        "        except NotBelieved:\n            return []",
        "        except NotBelieved:\n            raise",
        "the first model: a stranger ends the agent",
    ),
    Mutant(
        "edge_agent/first_model.py",
        "            case Trained():\n                self._wanted = False",
        "            case Trained():\n                pass",
        "the first model: the base replaces what a round brought",
    ),
    Mutant(
        "edge_agent/budget.py",
        "return minute >= self.begin_minute or minute < self.end_minute",
        "return minute >= self.begin_minute",
        "the owner's envelope: a night ends at midnight",
    ),
    Mutant(
        "edge_agent/budget.py",
        "        if reading.local_minute is None:\n",
        "        if False:\n",
        "the owner's envelope: a clock that is not set allows any hour",
    ),
    Mutant(
        "edge_agent/budget.py",
        "limits.full_voltage_only and reading.under_voltage is not False",
        "limits.full_voltage_only and reading.under_voltage",
        "the owner's envelope: voltage that is unknown is fine",
    ),
    Mutant(
        "edge_agent/budget.py",
        "        if reading.route is None:\n",
        "        if False:\n",
        "the owner's envelope: an unknown link is free",
    ),
    Mutant(
        "edge_agent/budget.py",
        "and reading.day_joules_left <= 0.0",
        "and reading.day_joules_left < 0.0",
        "the owner's envelope: the last joule is spent twice",
    ),
    Mutant(
        "edge_agent/host.py",
        "_Load(user + system + irq",
        "_Load(user + _nice + system + irq",
        "the owner's envelope: our own training counts as the load of others",
    ),
    Mutant(
        "edge_agent/host.py",
        "    return min(found)[1] if found else None\n",
        "    return max(found)[1] if found else None\n",
        "the owner's envelope: the link goes by the interface that is not preferred",
    ),
    Mutant(
        "edge_agent/host.py",
        "THROTTLED: Final = 0xE  #",
        "THROTTLED: Final = 0xE000E  #",
        "the owner's envelope: who was throttled once is throttled for ever",
    ),
    Mutant(
        "edge_agent/traffic.py",
        "(Period(text, total, core_s, written) for",
        "(Period(text, total, 0.0, written) for",
        "the owner's envelope: yesterday's energy counts today",
    ),
    Mutant(
        "edge_agent/service.py",
        "                self._ledger.train(item.cpu_s)\n",
        "",
        "the owner's envelope: no training takes any energy",
    ),
    Mutant(
        "edge_agent/samples.py",
        " and not self._is_at(descriptor, self._newest + 1)",
        "",
        "two writers of samples write over each other",
    ),
    Mutant("edge_agent/stream.py", "socket.MSG_DONTWAIT", "0", "telling waits for the child"),
    Mutant(
        "wire/link.py",
        "            if qos:  #",
        "            if True:  #",
        "a message of QoS 0 takes a place in the window",
    ),
    Mutant(
        "edge_agent/trainer.py",
        "old = (features[:0], labels[:0]) if unlabelled else old",
        "old = old",
        "labels train again as if they were windows",
    ),
    Mutant(
        "edge_agent/service.py",
        " if not self._predictions.takes(topic, payload)",
        "",
        "the owner's topics reach the machine",
    ),
    Mutant(
        "firmware_sim/processes.py",
        "        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)\n",
        "",
        "an interruption that Python swallowed is forgotten",
    ),
    Mutant(
        "firmware_sim/processes.py",
        " if signal.getsignal(number) is not signal.SIG_IGN]",
        "]",
        "what a background job ignores ends it",
    ),
    Mutant(
        "deploy/raspi/package.py",
        '        cp -a "$at"/before/edge-agent* "$DPKG_ROOT/lib/systemd/system"\n',
        "",
        "the program before a bad upgrade comes back with the bad one's unit",
    ),
    Mutant(
        "deploy/raspi/package.py",
        '        rm -rf "$at/lib" "$at/bin"\n',
        "",
        "a bad upgrade stays beside the program before it",
    ),
)


class Result(NamedTuple):
    """What became of one mutant. `killed_by` is empty when it survived."""

    killed_by: str
    took_s: float


def check(mutant: Mutant, tree: Path) -> None:
    """Refuse a mutant whose text does not stand in its file exactly once."""
    times = (tree / mutant.file).read_text().count(mutant.before)
    if times != 1:
        raise click.ClickException(
            f"mutant {mutant.why!r}: its text stands {times} times in {mutant.file}; write it anew"
        )


def plant(mutant: Mutant, root: Path) -> None:
    """Change the mutant's file under `root`."""
    path = root / mutant.file
    path.write_text(path.read_text().replace(mutant.before, mutant.after))


def copy_tree(source: Path, root: Path) -> None:
    """What the tests need; with its byte code, which stays true because times are copied, too."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("*.npz")
        shutil.copytree(source / folder, root / folder, ignore=ignored)
    shutil.copy(source / "pyproject.toml", root)


def _tests_for(mutant: Mutant) -> tuple[str, ...]:
    if mutant.why.startswith("the owner's envelope"):
        return ENVELOPE_TESTS
    if mutant.file.startswith(("firmware_sim/processes.py", "deploy/")):
        return ("tests/sim/test_processes.py", "tests/test_deploy.py")
    if mutant.file == "edge_agent/first_model.py":
        return ("tests/edge_agent/test_first_model.py",)
    if mutant.file.startswith("edge_agent/sources/") or mutant.file in SEEING or mutant.why in SEEN:
        return SEEING_TESTS
    if mutant.file in ENROL or mutant.why in ENROLLED:
        return ENROL_TESTS
    if mutant.file in CODED:
        return CODED_TESTS
    if mutant.file in DRIFT:
        return (*DRIFT_TESTS, *NUMBERS_TESTS)
    if mutant.file in ROLLOUT:
        return (*ROLLOUT_TESTS, *DRIFT_TESTS, *NUMBERS_TESTS, *FLEET_TESTS)
    if mutant.file in PROBATION:
        return PROBATION_TESTS
    if mutant.file in WATCH:
        return WATCH_TESTS
    if mutant.file.startswith(RULES):
        return RULES_TESTS
    if mutant.file.startswith(NUMBERS):
        return NUMBERS_TESTS
    if mutant.file in STORE:
        return (*STORE_TESTS, "tests/broker/test_stages.py", *FLEET_TESTS)
    if mutant.file in BYTES:
        return BYTES_TESTS
    return (*WIRE_TESTS, *FLEET_TESTS) if mutant.file.startswith("wire/") else FLEET_TESTS


def run(mutant: Mutant | None, tree: Path, tests: Iterable[str]) -> Result:
    """Copy the tree, plant the bug (None: none), run the tests until one fails."""
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        root = Path(name)
        copy_tree(tree, root)
        if mutant is not None:
            plant(mutant, root)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        try:
            done = subprocess.run(
                [*command, *tests],
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Result(f"the clock: it did not end within {TIMEOUT_S} s", time.monotonic() - started_s)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    killed_by = failed[0].split(" - ")[0].rpartition("::")[2] if failed else "" if done.returncode == 0 else "an error"
    return Result(killed_by, time.monotonic() - started_s)


def main(word: str = "") -> int:
    """Run every mutant whose why contains `word`, two at a time. Returns how many survived."""
    chosen = [mutant for mutant in MUTANTS if word in mutant.why]
    if not chosen:
        raise click.ClickException(f"no mutant's why has {word!r}")
    started_s = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="unchanged-") as name:
        tree = Path(name)  # of one moment, whatever is edited meanwhile
        copy_tree(ROOT, tree)
        for mutant in chosen:
            check(mutant, tree)
        unchanged = run(None, tree, dict.fromkeys(test for mutant in chosen for test in _tests_for(mutant)))
        if unchanged.killed_by:
            raise click.ClickException(f"{unchanged.killed_by} fails without any mutant; mend that first")
        with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
            for mutant, result in zip(
                chosen, pool.map(lambda mutant: run(mutant, tree, _tests_for(mutant)), chosen), strict=True
            ):
                results.append(result)
                verdict = f"killed by {result.killed_by}" if result.killed_by else "SURVIVED"
                click.echo(f"{result.took_s:6.1f} s  {mutant.file:22} {mutant.why}: {verdict}")
    survived = [result for result in results if not result.killed_by]
    took_s = time.monotonic() - started_s
    click.echo(f"{len(results) - len(survived)} of {len(results)} mutants killed in {took_s:.0f} s")
    return len(survived)


if __name__ == "__main__":
    try:
        sys.exit(1 if main(*sys.argv[1:2]) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
