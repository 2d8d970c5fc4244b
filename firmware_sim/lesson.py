"""What a simulated fleet is taught: the seam between a world and the numbers in it.

    version 1 ─▶ learn: files in, a payload and a residual out ─▶ admit ─▶ advance: the next version ─▶ patch

A world knows files, payloads and parameters as bytes, as the machines do. What they mean is one of two lessons: the
`witness` module, whose numbers betray who was lost or counted twice, and `numbers.Numbers`, the shipped digits model
with the product's own engine. The auditor asks the lesson for what can be read from the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from random import Random

    from broker.effects import Aggregate, Aggregated, AggregateFailed
    from edge_agent.effects import Job
    from firmware_sim.database import Database
    from wire.messages import Manifest, Plan

EXAMPLES: Final = 96  # what a training says that it had: more than a witness's plan lets a device weigh


class First(NamedTuple):
    """What `broker init` leaves: version 1, its files by digest, and the plan of all rounds."""

    manifest: Manifest
    contents: dict[bytes, bytes]
    params: bytes
    plan: Plan
    remainder: bytes = b""  # of the coordinator's master (engine.master)


class Pupil(NamedTuple):
    """Whose training child learns. `chance` is the world's."""

    name: str
    place: int  # its index
    attack: str  # see `attacks`; "" for the honest
    honest: tuple[int, ...]  # the places of those
    chance: Random


class Learnt(NamedTuple):
    """What a training child leaves."""

    payload: bytes
    residual: bytes
    num_examples: int
    held_out_correct: int
    held_out_count: int


class Said(NamedTuple):
    """What an update's payload says of its training, in a lesson that makes it say so."""

    place: int  # the device's
    round_id: int
    residual: int  # the nonce of the update that left the residual; 0: there is none yet
    nonce: int
    model: bytes  # the first 8 bytes of the mark of the model files that were read


class Lesson(Protocol):
    """What a world needs to know of its numbers."""

    def first(self, devices: int) -> First:
        """Version 1 for so many devices."""

    def learn(self, pupil: Pupil, job: Job, contents: Mapping[str, bytes], kept: bytes | None) -> Learnt:
        """One training on these model files, by name. `kept` is the file of the residual that the job names."""

    def admit(self, payload: bytes, plan: Plan) -> str | None:
        """The gate before the store: why the payload is refused, None when it is good."""

    def advance(self, work: Aggregate, database: Database, *, grows: bool) -> Aggregated | AggregateFailed:
        """The next version's parameters; in new scales where the weather says that it `grows`."""

    def patch(self, base: bytes, params: bytes) -> bytes:
        """The payload of a patch that makes `params` of the parameters `base`."""

    def apply_patch(self, base: bytes, payload: bytes) -> bytes | None:
        """What the patch makes of `base`; None where that is nothing."""

    def own(self, model: bytes) -> bytes:
        """The parameters that a base file itself holds."""

    def mark(self, contents: Mapping[str, bytes]) -> bytes:
        """What a training that says so would say of these model files."""

    def read(self, payload: bytes) -> Said | None:
        """What the payload says of its training; None where it says nothing."""

    def miscount(self, database: Database, places: Mapping[str, int], dishonest: Collection[str]) -> str:
        """Do the versions hold just the updates that the database counts, once each? A sentence where they do not.

        `places` are the devices' indices. Of those that are `dishonest` the payload in the database says what it adds.
        """
