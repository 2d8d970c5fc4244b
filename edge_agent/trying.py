"""Is a model version any worse on this device than the one that predicts here? Asked by the child, before it is used.

    dry run ─▶ its own numbers?     held-out windows ─▶ both versions ─▶ won, lost ─▶ worse beyond chance?

A device has few held-out windows, so a few answers more or less say nothing: a version is refused where the sign test
says so at two standard deviations, (lost - won)² > 4 (lost + won), of the windows that only one of the two gets right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wire.messages import Trial, fit_reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_agent.effects import Job
    from engine.frame import Frame
    from engine.models.graph import Content
    from engine.own import Own
    from engine.train import Deployed

UNLIKE_ITSELF = (
    "its dry run gives other numbers than its manifest says: the kernels, the memory or the processor is ill"
)


class InUse(NamedTuple):
    """The version that predicts here, whole."""

    version: int
    train: str
    model: Content  # the .tflite file
    params: Content


class HeldOut(NamedTuple):
    """This device's examples that never train."""

    features: NDArray[Any]  # [n, ...], as they enter the part that trains
    labels: NDArray[Any]  # int32 [n]
    own: Own | None = None  # the layers that stay here: every version is judged with them


def try_out(
    job: Job, frame: Frame, params: Content, held_out: HeldOut, in_use: InUse | None, *, ready: Deployed
) -> Trial:
    """Compare the version of `job`, which has these params in this frame, with the one in use.

    `ready` is that version with this device's own layers, as it is to answer here. Raises ModelError, TrainingError.
    """
    if job.golden:
        from engine.dry_run import golden, golden_of

        found = golden_of(ready, frame) if held_out.own is None else golden(frame, params)
        if found != job.golden:
            return Trial(0, 0, 0, fit_reason(f"version {job.base_version} is refused: {UNLIKE_ITSELF}"))
    from engine.sign_test import is_worse

    old = _comparable(job, frame, in_use)
    if in_use is None or old is None or held_out.labels.dtype == "float32":  # targets: no answer is right or wrong
        return Trial(0, 0, 0)
    now, then = ready.right(held_out.features, held_out.labels), _right(old, in_use.params, held_out)
    won, lost = int((now & ~then).sum()), int((then & ~now).sum())
    why = f"worse here than version {in_use.version}: of {len(now)} held-out examples {lost} lost, {won} won"
    return Trial(in_use.version, won, lost, fit_reason(why) if is_worse(won, lost) else "")


def better_own(frame: Frame, held_out: HeldOut, params: NDArray[Any], tuned: NDArray[Any]) -> Own | None:
    """The layers that stay here: as they were tuned, or as they were in `params` [P] where those did better.

    None where no layer stays. Both are judged on what the fleet shares of `params`. Raises ModelError, TrainingError.
    """
    from engine.own import own_of, with_own
    from engine.train import right

    if not len(tuned):
        return None
    if held_out.labels.dtype == "float32":
        return own_of(tuned, frame)
    before, after = (own_of(each, frame) for each in (params[len(params) - len(tuned) :], tuned))
    scores = [
        int(right(frame.graph_with(with_own(params, own)), frame.suffix, held_out.features, held_out.labels).sum())
        for own in (before, after)
    ]
    return before if scores[0] > scores[1] else after


def _comparable(job: Job, frame: Frame, in_use: InUse | None) -> Frame | None:
    """The frame of the version in use, if the same features enter it; None where it cannot be compared."""
    from engine.frame import frame_of

    if in_use is None or in_use.version == job.base_version or in_use.train != job.plan.train:
        return None
    if in_use.model is frame.model or in_use.model == frame.model:
        return frame
    old = frame_of(in_use.model, in_use.train)
    return old if old.suffix.cut == frame.suffix.cut and old.suffix.entering == frame.suffix.entering else None


def _right(frame: Frame, params: Content, held_out: HeldOut) -> NDArray[Any]:
    from engine.models.scheme import load_params
    from engine.own import with_own
    from engine.train import right

    graph = frame.graph_with(with_own(load_params(frame.suffix, params), held_out.own))
    return right(graph, frame.suffix, held_out.features, held_out.labels)
