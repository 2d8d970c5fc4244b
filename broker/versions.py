"""What comes of a round: its updates added to the newest version, measured, and rescaled where it is crowded."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from broker.aggregate.rules import next_numbers
from broker.effects import Aggregated
from broker.registry import model_of, params_bytes_of
from engine.frame import frame_of
from engine.master import Numbers
from engine.rescale import grown

if TYPE_CHECKING:
    from broker.aggregate.rule import Rule
    from broker.effects import Aggregate
    from broker.evaluate import HeldOut
    from broker.store import Store
    from engine.frame import Frame
    from wire.messages import Manifest


class Made(NamedTuple):
    """The answer to the machine, and how many weights wanted to leave the int8 range and were held in it."""

    answer: Aggregated
    held_count: int


def frame_under(manifest: Manifest, train: str, store: Store) -> Frame:
    """How the numbers of a version are to be read. Raises ModelError or StoreError."""
    return frame_of(model_of(manifest, store.blob), train)


def next_version(effect: Aggregate, store: Store, rule: Rule, learning_rate: float, held_out: HeldOut | None) -> Made:
    """Count the members of `effect`. Raises AggregateError, EvaluateError, ModelError or StoreError."""
    manifest = effect.manifest
    frame = frame_under(manifest, effect.plan.train, store)
    before = Numbers(params_bytes_of(manifest, store.blob), store.remainder(manifest.model_version))
    after, held_count = next_numbers(
        frame, before, effect.members, store.update_payload, rule=rule, learning_rate=learning_rate
    )
    model = b""
    larger = grown(frame, after) if effect.may_rescale else None
    if larger is not None:
        frame, after = larger
        model = frame.model
    score = held_out.score(frame, after.published) if held_out is not None else None
    accuracy, loss = (score.correct / score.count, score.loss) if score is not None else (None, None)
    answer = Aggregated(effect.round_id, after.published, accuracy, loss, after.remainder, model)
    return Made(answer, held_count)
