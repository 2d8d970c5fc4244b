"""The gate before the store: does an update's payload hold what its plan allows?

Whatever passes can be added: values within the sum's bounds, at indices of this model, no more of them than the plan
says, in a format of the plan's numbers. So nothing in the store can keep a round from closing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.codec.header import CodecError
from engine.codec.payload import decode, lane_of

if TYPE_CHECKING:
    from wire.messages import Plan


def admit(payload: bytes, plan: Plan) -> str | None:
    """The reason why `payload` is refused, as a sentence; None when it is good."""
    try:
        decode(payload, lane_of(plan.value_bits), size=plan.num_params, k_max=plan.keep_count)
    except CodecError as error:
        return str(error)
    return None
