"""The gate before the store: does an update's payload hold what its plan allows?

Whatever passes can be added: values within the sum's bounds, at indices of this model, no more of them than the plan
says, in a coding that it allows. So nothing in the store can keep a round from closing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.codec.estimate import split
from engine.codec.header import CodecError
from engine.codec.payload import decode
from engine.own import shared_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.estimates import Estimates
    from engine.frame import Frame
    from wire.messages import Plan


def gate(frame_under: Callable[[Plan], Frame]) -> Callable[[bytes, Plan], str | None]:
    """Make the gate of a model: `frame_under` says how a plan's updates are to be read.

    It takes a payload and its plan and returns the reason why it is refused, as a sentence; None when it is good.
    """

    def admit(payload: bytes, plan: Plan) -> str | None:
        frame = frame_under(plan)
        try:
            follows, content = split(payload)
            if (follows is None) != (plan.lane != "hardened"):
                return f"the update does not build on an estimate as lane {plan.lane} does"
            update = decode(content, frame.shapes, lane=frame.lane, k_max=plan.keep_count, coding=plan.coding)
            if plan.keep_local and update.indices[-1:] >= shared_count(frame.suffix, plan.keep_local):
                return f"the update tells of the last {plan.keep_local} layers, which stay on devices"
        except CodecError as error:
            return str(error)
        return None

    return admit


def holder(
    frame_under: Callable[[Plan], Frame], estimates: Estimates, waits: Callable[[str, int], bool]
) -> Callable[[str, bytes, Plan], bool]:
    """Make what answers whether there is the estimate that a device's payload builds on.

    It is in the device's row, or will be: then the update that makes it `waits` (device_id, round_id) in the store.
    """

    def holds(device_id: str, content: bytes, plan: Plan) -> bool:
        follows, _ = split(content)
        if not follows:
            return True
        rows = estimates.of(frame_under(plan).suffix.num_params)
        return rows.holds(device_id, follows) or waits(device_id, follows)

    return holds
