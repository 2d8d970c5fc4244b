"""The lesson with real numbers: the shipped digits model, taught by the product's own engine, codec, gate and rule.

    scikit-learn's digits, dealt unevenly ─▶ frozen features, once ─▶ fine_tune ─▶ residual.step ─▶ payload ─▶ gate
        ─▶ next_version over the simulated database ─▶ accuracy on digits that nobody holds

The trainable part begins anew, so that there is something to learn. Dishonest devices poison their deltas (`poison`).
A delta is computed once for each device, version and round: whoever colludes may look at those of the honest.
Only this module and what it imports need numpy: a world of witnesses runs without.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from broker import versions
from broker.admission import gate
from broker.aggregate.rules import AggregateError, rule_named
from broker.config import Aggregate as Rule
from broker.config import Config, Fleet, Model, Recipe
from broker.effects import Aggregate, Aggregated, AggregateFailed, Pending
from broker.evaluate import EvaluateError, HeldOut
from broker.plans import plan_of
from broker.registry import First as FirstVersion
from broker.registry import first_version
from edge_agent.trainer import payload_bytes_max
from engine import frozen
from engine.codec import patch, residual
from engine.codec.header import CodecError
from engine.frame import frame_of
from engine.models.graph import ModelError
from engine.models.scheme import load_params
from engine.train import Recipe as Tuning
from engine.train import fine_tune, mix_seed
from firmware_sim import data, keyring, poison
from firmware_sim.lesson import First, Learnt
from wire.messages import MODEL_FILE, PARAMS_FILE, digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from edge_agent.effects import Job
    from engine.frame import Frame
    from firmware_sim.database import Database
    from firmware_sim.lesson import Pupil
    from wire.messages import Plan

MODEL: Final = Path(__file__).parent / "models" / "digits.tflite"
TRAIN: Final = "last-2"
RECIPE: Final = Recipe(
    epochs=2, batch_size=16, learning_rate=0.01, momentum=0.9, keep_rate=0.05, num_examples_max=64, trainer_s_max=60
)
NO_CLIP: Final = 1e6  # the largest that a plan may name
CLASSES: Final = 10
CONCENTRATED_PER_KEPT: Final = 16  # "index concentration": on a sixteenth of what an update may carry
_frame = functools.lru_cache(maxsize=8)(functools.partial(frame_of, train=TRAIN))


class School(NamedTuple):
    """What no round changes: version 1, each device's features and labels, and those that nobody holds."""

    first: FirstVersion
    shares: tuple[tuple[NDArray[Any], NDArray[np.int32]], ...]
    held_out: HeldOut


@functools.lru_cache(maxsize=2)
def school(devices: int, seed: int) -> School:
    """Deal the digits, and run the frozen part of the model over all of them. Raises DataError."""
    shares = data.share(data.digits(), devices, seed)
    first = first_version(MODEL.read_bytes(), "digits", TRAIN, reset_seed=seed)
    frame = _frame(next(first.blobs[file.digest] for file in first.manifest.files if file.name == MODEL_FILE))

    def features(windows: NDArray[np.float32]) -> NDArray[Any]:
        return frozen.features(frame.model, frame.graph, frame.suffix, windows)

    held = tuple((features(windows), labels) for _, (windows, labels) in sorted(shares.devices.items()))
    return School(first, held, HeldOut(features(shares.test[0]), shares.test[1]))


class Numbers:
    """A `lesson.Lesson` for one world. `seed` deals the digits and begins the model."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._deltas: dict[tuple[int, int, bytes, bool], NDArray[np.int64]] = {}  # of the newest round only
        self._frames: dict[bytes, Frame] = {}  # by the digest of params that were made in it

    def first(self, devices: int) -> First:
        """Version 1 with its trainable part begun anew, and the product's plan for it."""
        self._school = school(devices, self._seed)
        manifest, blobs, remainder = self._school.first
        files = {file.name: file.digest for file in manifest.files}
        frame, params = _frame(blobs[files[MODEL_FILE]]), blobs[files[PARAMS_FILE]]
        self._frames[files[PARAMS_FILE]] = frame
        config = Config(Fleet(keyring.FLEET), Model("digits", TRAIN), plan=RECIPE)
        self.admit = gate(lambda _plan: frame)
        return First(manifest, dict(blobs), params, plan_of(config, manifest, frame), remainder)

    def learn(self, pupil: Pupil, job: Job, contents: Mapping[str, bytes], kept: bytes | None) -> Learnt:
        """One training, and the update that comes of it or that is sent in its place."""
        frame, plan = _frame(contents[MODEL_FILE]), job.plan
        made = self._poisoned(pupil, job, contents)
        owed, clip_norm = residual.nothing_owed(frame), plan.clip_norm if made is None else NO_CLIP
        if made is None:
            owed = _owed(kept, frame, plan) or owed
            made = self._delta(pupil.place, job, contents)
        sending = residual.Sending(
            plan.keep_count, plan.value_bits, plan.coding, clip_norm, payload_bytes_max(job), decay=plan.residual_decay
        )
        sent = residual.step(made, owed, frame, sending, job.base_version)
        left = residual.dump_owed(sent.owed, plan.scale_epoch)
        return Learnt(sent.payload, left, len(self._school.shares[pupil.place][1]), 0, 0)

    def advance(self, work: Aggregate, database: Database, *, grows: bool) -> Aggregated | AggregateFailed:
        """The product's own next version. Its scales grow when they are crowded, whatever the weather says."""
        del grows
        try:
            answer = _next_version(work, database, self._school.held_out)
        except (AggregateError, CodecError, EvaluateError, ModelError) as error:
            return AggregateFailed(work.round_id, str(error))
        model = answer.model or _model_of(database, work)
        self._frames[digest_of(answer.params)] = _frame(model)
        return answer

    def patch(self, base: bytes, params: bytes) -> bytes:
        """The product's own patch. Both are of one scale epoch."""
        return patch.make(self._frames[digest_of(params)], base, params)

    def apply_patch(self, base: bytes, payload: bytes) -> bytes | None:
        """What the patch makes of `base`; None where that is no version's."""
        frame = self._frames.get(digest_of(base))
        try:
            return None if frame is None else patch.apply(frame, base, payload)
        except CodecError:
            return None

    def own(self, model: bytes) -> bytes:
        """The parameters that a base file itself holds; none for what is no such file."""
        return _frame(model).own() if model else b""

    def mark(self, contents: Mapping[str, bytes]) -> bytes:
        """No update of this lesson says what it read."""
        del contents
        return b""

    def read(self, payload: bytes) -> None:
        """Numbers say nothing of their training."""
        del payload

    def miscount(self, database: Database, places: Mapping[str, int], dishonest: Collection[str]) -> str:
        """Is each version, to the bit, what the product makes of the updates that the database counts in it?"""
        del places, dishonest
        rows = {
            row.model_version: row for row in database.rounds.values() if row.status == "closed" and not row.is_trial
        }
        for after in database.lineage[1:]:
            version, before = after.manifest.model_version, database.lineage[after.manifest.parent_version - 1]
            if version not in rows:  # it has the numbers of an older one
                if after.params != before.params:
                    return f"version {version} is not what version {before.manifest.model_version} was"
                continue
            members = tuple(
                Pending(device, round_id, database.updates[device, round_id].base_version, counted.weight)
                for (device, round_id), counted in sorted(database.counted.items())
                if counted.model_version == version
            )
            grew = after.manifest.scale_epoch > before.manifest.scale_epoch
            work = Aggregate(rows[version].round_id, rows[version].plan, before.manifest, members, grew)
            if _next_version(work, database, None).params != after.params:
                return f"version {version} is not the sum of its {len(members)} members"
        return ""

    def _delta(self, place: int, job: Job, contents: Mapping[str, bytes], *, flip: bool = False) -> NDArray[np.int64]:
        """What this device learns in this round, int64 [P] in whole steps."""
        params = contents[PARAMS_FILE]
        key = place, job.round_id, digest_of(params), flip
        if key not in self._deltas:
            frame, plan = _frame(contents[MODEL_FILE]), job.plan
            features, labels = self._school.shares[place]
            seed = mix_seed(plan.seed, str(place), job.round_id)
            tuning = Tuning(plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum, seed)
            base = load_params(frame.suffix, params)
            taught = poison.flipped_labels(labels, CLASSES) if flip else labels
            local = fine_tune(frame.graph_with(base), frame.suffix, features, taught, tuning).params
            if self._deltas and next(iter(self._deltas))[1] != job.round_id:
                self._deltas.clear()
            self._deltas[key] = local.astype(np.int64) - base
        return self._deltas[key]

    def _poisoned(self, pupil: Pupil, job: Job, contents: Mapping[str, bytes]) -> NDArray[np.int64] | None:
        """What an attack sends in place of what was learned; None where it, too, is honest in this."""
        frame, plan = _frame(contents[MODEL_FILE]), job.plan

        def honest() -> NDArray[np.int64]:
            return np.stack([self._delta(place, job, contents) for place in pupil.honest])

        devices = len(self._school.shares)
        dishonest = devices - len(pupil.honest)
        match pupil.attack:
            case "label flip":
                return self._delta(pupil.place, job, contents, flip=True)
            case "sign flip":
                return poison.flipped_sign(self._delta(pupil.place, job, contents))
            case "scaling":
                return poison.scaled(self._delta(pupil.place, job, contents, flip=True))
            case "alie":
                return poison.little_is_enough(honest(), poison.z_max(devices, dishonest))
            case "ipm":
                return poison.inner_product(honest(), poison.turning(devices, dishonest))
            case "index concentration":
                return poison.concentrated(honest(), frame.scale, max(1, plan.keep_count // CONCENTRATED_PER_KEPT))
            case "free rider":
                seed = mix_seed(plan.seed, pupil.name, job.round_id)
                return poison.noise(plan.num_params, plan.keep_count, frame.unit, seed)
            case _:
                return None


def _owed(kept: bytes | None, frame: Frame, plan: Plan) -> residual.Owed | None:
    """What earlier rounds owe; None when that is nothing, or of other scales."""
    try:
        return None if kept is None else residual.load_owed(kept, plan.num_params, frame.lane, plan.scale_epoch)
    except CodecError:
        return None


def _next_version(work: Aggregate, database: Database, held_out: HeldOut | None) -> Aggregated:
    frames, recipe = versions.Frames(database), Rule()
    rule = rule_named(recipe.rule)
    return versions.next_version(work, database, rule, recipe, frames=frames, held_out=held_out).answer


def _model_of(database: Database, work: Aggregate) -> bytes:
    return database.blob(next(file.digest for file in work.manifest.files if file.name == MODEL_FILE))
