"""The gate before the store: does an update's payload hold what its plan allows?

Whatever passes can be added: finite values within the sum's bounds, at indices of this model, no more of them than the
plan says. So nothing in the store can keep a round from closing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.codec import sparse

if TYPE_CHECKING:
    from wire.messages import Plan


def admit(payload: bytes, plan: Plan) -> str | None:
    """The reason why `payload` is refused, as a sentence; None when it is good."""
    try:
        sparse.decode(payload, size=plan.num_params, k_max=plan.keep_count)
    except sparse.CodecError as error:
        return str(error)
    return None
