"""What comes of a round: its updates added to the newest version, measured, and rescaled where it is crowded."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from broker.aggregate import rules
from broker.effects import Aggregated, Restored
from broker.plans import is_dense
from broker.registry import model_of, operators_of, params_bytes_of
from broker.serving import base_of
from engine.codec import patch
from engine.dry_run import golden
from engine.frame import frame_of
from engine.master import Numbers, first
from engine.models.scheme import load_params
from engine.rescale import grown
from wire.messages import MODEL_FILE

if TYPE_CHECKING:
    from broker.aggregate.rule import Rule
    from broker.config import Aggregate as Recipe
    from broker.effects import Aggregate, CommitStage
    from broker.estimates import Estimates
    from broker.evaluate import HeldOut
    from broker.store import Store
    from engine.frame import Frame
    from wire.messages import Manifest, Plan

PUBLISHED_PER_SENT = 2  # where the configuration says nothing: so many parameters a version, for each of an update


class Kept(Protocol):
    """What versions are made of, wherever it is kept: in `broker.store`, or in the simulator's memory."""

    def blob(self, digest: bytes) -> bytes:
        """The content of a model file."""

    def remainder(self, model_version: int) -> bytes:
        """What the coordinator keeps of the newest version beside its published numbers."""

    def rule_state(self, model_version: int) -> bytes:
        """What the aggregation rule remembers of the newest version; empty where it remembers nothing."""

    def update_payload(self, device_id: str, round_id: int) -> bytes:
        """The payload of a stored update."""


class Made(NamedTuple):
    """The answer to the machine, and how many weights wanted to leave the int8 range and were held in it."""

    answer: Aggregated
    held_count: int


class Frames:
    """How the numbers of versions are to be read: the newest base file, read once for each way to train it."""

    def __init__(self, store: Kept) -> None:
        self._store = store
        self._base = b""
        self._frames: dict[str, Frame] = {}

    def under(self, manifest: Manifest, train: str) -> Frame:
        """The frame of `manifest`'s version. Raises ModelError or StoreError."""
        base = next(file.digest for file in manifest.files if file.name == MODEL_FILE)
        if base != self._base:
            self._base, self._frames = base, {}
        if train not in self._frames:
            self._frames[train] = frame_of(model_of(manifest, self._store.blob), train)
        return self._frames[train]


def frame_under(manifest: Manifest, train: str, store: Kept) -> Frame:
    """How the numbers of one version are to be read. Raises ModelError or StoreError."""
    return Frames(store).under(manifest, train)


def publish_max(rate: float, plan: Plan) -> int:
    """How many parameters a version may change for devices: `rate` of them; at 0 what the plan's updates suggest."""
    wanted = round(rate * plan.num_params) if rate else PUBLISHED_PER_SENT * plan.keep_count
    return max(1, min(wanted, plan.num_params))


def next_version(
    effect: Aggregate,
    store: Kept,
    rule: Rule,
    recipe: Recipe,
    *,
    frames: Frames,
    held_out: HeldOut | None,
    estimates: Estimates | None = None,
) -> Made:
    """Count the members of `effect`. Raises AggregateError, CodecError, EvaluateError, ModelError or StoreError."""
    manifest, plan = effect.manifest, effect.plan
    frame = frames.under(manifest, plan.train)
    before = Numbers(params_bytes_of(manifest, store.blob), store.remainder(manifest.model_version))
    known = store.rule_state(manifest.model_version)
    most = publish_max(recipe.publish_rate, plan)
    closing = effect.round_id, manifest.model_version, manifest.scale_epoch, is_dense(plan)
    counting = rules.Recipe(rule, recipe.learning_rate, most, *closing)
    after, held_count, rule_state = rules.next_numbers(
        frame, before, effect.members, store.update_payload, counting, rule_state=known, estimates=estimates
    )
    model, way = b"", b""
    larger = grown(frame, after) if effect.may_rescale else None
    if larger is not None:
        frame, after = larger
        model = bytes(frame.model)
    else:
        way = patch.make(frame, before.published, after.published)
    score = held_out.score(frame, after.published) if held_out is not None else None
    accuracy, loss = (score.correct / score.count, score.loss) if score is not None else (None, None)
    kept = after.remainder, model, way, rule_state, golden(frame, after.published), operators_of(frame.model)
    return Made(Aggregated(effect.round_id, after.published, accuracy, loss, *kept), held_count)


def restored(done: CommitStage, store: Store, frames: Frames, train: str) -> Restored:
    """What is kept of the version that has an older one's numbers. Raises ModelError or StoreError.

    Of one that was followed by others the master is gone, and begins again with what was published of it.
    """
    wanted, before = store.manifest(done.restored), store.manifest(done.manifest.model_version - 1)
    assert wanted is not None, "the operator, or a candidate, named a version that is there"
    assert before is not None, "versions have no gaps"
    frame, params = frames.under(wanted, train), params_bytes_of(wanted, store.blob)
    remainder = store.remainder(done.restored) or first(frame, load_params(frame.suffix, params)).remainder
    same_base = base_of(wanted) == base_of(before)
    way = patch.make(frame, params_bytes_of(before, store.blob), params) if same_base else b""
    return Restored(remainder, store.rule_state(done.restored), way)
