"""Stored updates, read for a rule: each as it was sent, or, in lane hardened, what the coordinator holds of its device.

There a device has one voice in a sum, however many of its updates wait: its row after the last of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from broker.estimates import Said, after
from engine.codec import estimate, payload
from engine.codec.header import CodecError
from engine.ring import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.effects import Pending
    from broker.estimates import Estimates
    from engine.codec.update import Update
    from engine.frame import Frame


def members_of(
    frame: Frame,
    pending: Sequence[Pending],
    payload_of: Callable[[str, int], bytes],
    estimates: Estimates | None,
) -> Iterator[Member]:
    """Read stored updates one by one, and bring the rows of their devices forward; on disk when all were read.

    Raises CodecError for a payload that nobody can read, or that needs a row where none is kept.
    """
    in_order = sorted(pending, key=lambda update: (update.device_id, update.round_id))
    for device_id, mine in itertools.groupby(in_order, key=lambda update: update.device_id):
        said, last = [], None
        for one in mine:
            follows, content = estimate.split(payload_of(device_id, one.round_id))
            update = read(frame, content)
            if follows is None:
                yield Member((device_id, one.round_id), update, one.weight)
            else:
                said.append(Said(one.round_id, follows, update))
                last = one
        if last is not None:
            held = _advanced(frame, device_id, said, estimates)
            yield Member((device_id, last.round_id), held, last.weight)
    if estimates is not None:
        estimates.flush()


def read(frame: Frame, content: bytes) -> Update:
    """One payload, without what names an estimate in front of it. Raises CodecError."""
    # it was admitted by its own round's plan, and a late one's may have allowed more than this round's
    size = frame.suffix.num_params
    return payload.decode(content, frame.shapes, lane=frame.lane, k_max=size, coding="context")


def _advanced(frame: Frame, device_id: str, said: list[Said], estimates: Estimates | None) -> Update:
    if estimates is None:
        raise CodecError(f"{device_id}'s update builds on an estimate, and none is kept here: no plan can ask for it.")
    rows = estimates.of(frame.suffix.num_params)
    before = rows.row(device_id)
    row = after(before, said)
    if row is not before:
        rows.put(device_id, row)
    return estimate.as_update(row.estimate, frame.lane)
