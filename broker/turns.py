"""One turn of the coordinator's loop: in which order the effects of several events are performed. Pure.

    events ─▶ machine ─▶ effects ─▶ pieces ─▶ what a piece stores, as one transaction ─▶ the rest of it, in order
                            ▲                                                              │
                            └────────────── what an answer leads to, behind the rest ◀─────┘

The shell beside a real MQTT server and the simulator's shell both take their turns here, so that what the storms prove
is what runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from broker.effects import (
    Aggregate,
    CommitRound,
    CommitStage,
    Effect,
    StoreEpoch,
    StoreRound,
    StoreSeen,
    StoreTrial,
    StoreUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Told: TypeAlias = Effect | str  # a line of the log stands among the effects that it tells of


def take(
    effects: Sequence[Told],
    store: Callable[[list[StoreUpdate | StoreSeen]], None],
    perform: Callable[[Told], Sequence[Told]],
) -> None:
    """Perform effects in the order in which they were decided.

    `store` keeps several as one transaction. `perform` performs one of the others and gives what the machine decided
    on its answer, if it has one at once. That comes behind the rest: the machine decided the rest before it, and what
    it decides now may speak of an epoch, or count an update, that is yet to be stored.
    """
    while effects:
        following: list[Told] = []
        for piece in pieces(effects):
            store([effect for effect in piece if isinstance(effect, StoreUpdate | StoreSeen)])
            for effect in piece:
                following += perform(effect) if not isinstance(effect, StoreUpdate | StoreSeen) else ()
        effects = following


def pieces(effects: Sequence[Told]) -> list[list[Told]]:
    """Cut the list so that within a piece stores may go first, as one transaction, and no promise is broken.

    What a piece of several effects stores are updates and sightings; every other effect on the store is a piece of
    its own, so that nothing is moved across it.
    """
    found: list[list[Told]] = []
    is_open = False
    for effect in effects:
        alone = isinstance(effect, StoreEpoch | StoreRound | StoreTrial | Aggregate | CommitRound | CommitStage)
        if alone or not is_open:
            found.append([effect])
        else:
            found[-1].append(effect)
        is_open = not alone
    return found
