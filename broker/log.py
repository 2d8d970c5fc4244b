"""The coordinator's log: one line for each thing that happened. Its form is `wire.log_line`.

Lines stand among the effects that they tell of, and are said when their turn comes: an update is only called
accepted once it is on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.effects import Effect, Event, Publish, Received, SendChunk, StoreSeen, StoreUpdate
from wire import envelope
from wire.log_line import line
from wire.messages import Receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker.turns import Told


def new_reason(before: Mapping[str, int], after: Mapping[str, int]) -> str | None:
    """The word under which one more message was refused, if there is one."""
    return next((word for word, count in after.items() if count != before.get(word, 0)), None)


def tell(event: Event, effects: Sequence[Effect], refused: str | None, pending_count: int) -> list[Told]:
    """The effects of `event`, each followed by the line that tells of it. `refused`: the word, if it was."""
    told: list[Told] = []
    device = event.topic.split("/")[4] if isinstance(event, Received) and effects else ""
    if device and refused is not None:
        told.append(line("refused", reason=refused, device=device, why=_why(effects)))
    for effect in effects:
        told.append(effect)
        match effect:
            case StoreUpdate(row=row):
                digest = row.digest.hex()
                told.append(line("accepted", device=device, round=row.round_id, digest=digest, pending=pending_count))
            case StoreSeen(device_id=seen, present=present, work=""):  # perhaps of one that had waited to be let in
                told.append(line("birth" if present else "death", device=seen))
            case SendChunk(file=file, index=index):
                told.append(line("chunk", device=device, file=file.name, index=index))
    return told


def _why(effects: Sequence[Effect]) -> str:
    """The sentence in our own receipt."""
    for effect in effects:
        if isinstance(effect, Publish) and effect.topic.endswith("/receipt"):
            receipt = envelope.unseal(effect.payload, effect.topic, lambda _message, _signature: True)
            return receipt.reason if isinstance(receipt, Receipt) else ""
    return ""
