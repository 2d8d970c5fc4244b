"""The words between the coordinator's machine and its shell: events go in, effects come out.

The shell (`broker.service` beside a real MQTT server, `firmware_sim` in the simulator) performs effects strictly
in the order of the list: what is receipted was stored before.
"""

from typing import Literal, TypeAlias

from msgspec import Struct

from wire.limits import COIN_SIDES
from wire.messages import File, Manifest, Operator, Plan, Traffic

Mode: TypeAlias = Literal["buffered", "synchronous"]


class Choice(Struct, frozen=True, omit_defaults=True):
    """Whom a round is for, beyond what its plan says. The defaults leave nobody out.

    Only the coordinator can tell who is meant, so a round with a choice is offered one by one.
    """

    tags: tuple[str, ...] = ()  # the operator's; a device has every one of them
    battery_rate_min: float = 0.0  # of a device that tells its battery's
    version_min: int = 0  # of the model on its flash
    rounds_max: int = 0  # of the last `rounds_of` rounds that a device may have taken part in; 0: of all
    rounds_of: int = 0


class Ring(Struct, frozen=True):
    """When a candidate is put out: of the round that makes it, and of each round that tries it."""

    worse_rate: float  # of held-out answers, here or in the field
    error_rate: float  # of the devices asked that refuse it, or never answer
    is_last: bool = True  # no other ring is to try it after this one


class RoundRow(Struct, frozen=True):
    """One round as the store keeps it. In a trial (its plan's lane) devices try a candidate, and nothing is summed."""

    round_id: int
    plan: Plan
    status: Literal["waiting", "open", "closed"]
    updates_min: int  # a round never closes with fewer
    cohort_max: int  # 0: everyone present and eligible
    lasts_ms: int
    base_version: int = 0  # set when it opens
    model_version: int = 0  # set when it closes; its base version again: it was cancelled, and made none
    mode: Mode = "synchronous"  # offered to all at once, or one by one
    updates_enough: int = 0  # it closes at once with so many; 0: when nobody is awaited, or time is up
    nonce: bytes = b""  # of a buffered round, set when it opens: what its coins are made of (wire.coin)
    draw: int = COIN_SIDES  # the share of them that takes part; it only grows
    choice: Choice = Choice()
    ring: Ring | None = (
        None  # of a trial; of another round: its version is a candidate until trials end. None: it is not
    )

    @property
    def is_trial(self) -> bool:
        """Do its devices try a candidate?"""
        return self.plan.lane == "trial"

    @property
    def is_cancelled(self) -> bool:
        """Did it end without a new version, or before it was opened? A trial that was opened never made one."""
        ended = self.status == "closed" and self.model_version == self.base_version
        return ended and not (self.is_trial and self.base_version)


class UpdateRow(Struct, frozen=True):
    """One accepted update as the store keeps it; (device_id, round_id) is unique."""

    device_id: str
    round_id: int
    base_version: int
    weight: int  # examples, capped by the plan
    digest: bytes  # of the sealed bytes, as the receipt names it
    held_out_correct: int
    held_out_count: int
    payload: bytes


class TrialRow(Struct, frozen=True):
    """What a device said of a candidate, as the store keeps it; (device_id, round_id) is unique."""

    device_id: str
    round_id: int
    model_version: int  # of the candidate
    digest: bytes  # of the sealed bytes, as the receipt names it
    held_out_correct: int
    held_out_count: int
    compared_with: int  # the version in use there; 0: none that could be compared
    won: int
    lost: int
    refused: str  # why it is not taken into use there; empty: it is


class Candidate(Struct, frozen=True):
    """A version that no trial has found good yet, and that is shared with nobody."""

    manifest: Manifest
    accuracy: float | None = None  # on the coordinator's own held-out set, where it has one


class Pending(Struct, frozen=True):
    """A stored update that no round has counted yet."""

    device_id: str
    round_id: int
    base_version: int
    weight: int


class Last(Struct, frozen=True):
    """The newest stored update of a device: all that is needed to tell a duplicate."""

    round_id: int
    digest: bytes


class Snapshot(Struct, frozen=True):
    """What the coordinator must know of the store when it starts."""

    epoch: int
    fleet: dict[str, str]  # device_id → public key text
    rounds: tuple[RoundRow, ...]  # the waiting, the open one, and the newest closed ones
    last: dict[str, Last]
    pending: tuple[Pending, ...]
    manifest: Manifest | None  # the newest version that is no candidate, and was not put out
    tags: dict[str, frozenset[str]] = {}  # by device
    took: dict[str, tuple[int, ...]] = {}  # device → the newest rounds of its stored updates, in order
    accuracy: float | None = None  # of that version, here
    candidate: Candidate | None = None
    trials: tuple[TrialRow, ...] = ()  # of the round that is open


# Events


class Connected(Struct, frozen=True):
    """The MQTT session stands and every subscription is granted."""


class Disconnected(Struct, frozen=True):
    """The link is gone."""


class Received(Struct, frozen=True):
    """Bytes arrived on a topic. Hostile until their signature is checked."""

    topic: str
    payload: bytes


class FleetRead(Struct, frozen=True):
    """The operator changed who is enrolled, or what devices are called by."""

    fleet: dict[str, str]
    tags: dict[str, frozenset[str]] = {}


class RoundsRead(Struct, frozen=True):
    """What the operator wants, as the store has it: may be said again, and changes nothing then."""

    waiting: tuple[RoundRow, ...]  # asked for, and not opened
    unwanted: frozenset[int] = frozenset()  # round_ids, waiting or open, that are to end without a new version
    paused: bool = False  # none is to be opened for now


class StageWished(Struct, frozen=True):
    """The operator has made up his mind about a version. May be said again."""

    version: Candidate  # and its accuracy, where it was measured
    promote: bool  # the candidate, whatever trials say; else the fleet goes back to this version


class Aggregated(Struct, frozen=True):
    """The answer to Aggregate: the next parameters and how good they are."""

    round_id: int
    params: bytes  # the file's content, as `engine` writes it
    accuracy: float | None  # on the coordinator's own held-out set, where it has one
    loss: float | None
    remainder: bytes = b""  # of the master (engine.master): kept with the version, and never sent
    model: bytes = b""  # a new base file, in whose scales the parameters are and which holds them; empty: it stays
    patch: bytes = b""  # what makes them of the version before (engine.codec.patch); empty: nothing does
    rule_state: bytes = b""  # what the aggregation rule remembers of this version: kept with it, and never sent
    golden: bytes = b""  # what a dry run of the version gives (engine.dry_run)
    operators: tuple[Operator, ...] = ()  # what a runtime must have to run the version


class AggregateFailed(Struct, frozen=True):
    """The answer to Aggregate when no parameters came of it."""

    round_id: int
    reason: str


class Tick(Struct, frozen=True):
    """The time named by `wake_at_ms` may have come."""


Event: TypeAlias = (
    Connected | Disconnected | Received | FleetRead | RoundsRead | StageWished | Aggregated | AggregateFailed | Tick
)

# Effects


class Publish(Struct, frozen=True):
    """Hand the bytes to the link. They may be lost; who needs them asks again."""

    topic: str
    payload: bytes
    retain: bool = False


class SendChunk(Struct, frozen=True):
    """Read one chunk of a stored file, seal it for this topic, publish it."""

    topic: str
    file: File
    index: int


class SendPatch(Struct, frozen=True):
    """Make what turns `base_version`'s parameters into `file`, seal it, publish it; where it does not pay, `otherwise`.

    It pays when it fits one message and is smaller than those chunks.
    """

    topic: str
    file: File  # the parameters of `model_version`
    base_version: int
    model_version: int
    otherwise: tuple[SendChunk, ...]


class StoreEpoch(Struct, frozen=True):
    """Remember the epoch before anyone hears of it."""

    epoch: int


class StoreSeen(Struct, frozen=True):
    """What a device said of itself, for `broker fleet list`."""

    device_id: str
    present: bool
    software: str = ""
    num_examples: int = 0
    model_version: int = 0
    work: str = ""
    reason: str = ""
    traffic: Traffic | None = None  # its account of bytes, where it gave one


class StoreUpdate(Struct, frozen=True):
    """Keep an accepted update. Returns only when it is on disk."""

    row: UpdateRow


class StoreTrial(Struct, frozen=True):
    """Keep what a device said of a candidate. Returns only when it is on disk."""

    row: TrialRow


class StoreInvited(Struct, frozen=True):
    """Count an offer of the round to each of these devices, for `broker fleet show`."""

    round_id: int
    device_ids: tuple[str, ...]


class StoreRound(Struct, frozen=True):
    """Keep a round's new status."""

    row: RoundRow


class Aggregate(Struct, frozen=True):
    """Turn these stored updates into the next parameters; answer with Aggregated or AggregateFailed."""

    round_id: int
    plan: Plan
    manifest: Manifest  # of the version that they change
    members: tuple[Pending, ...]  # with their final weights, in the order of (device_id, round_id)
    may_rescale: bool = False  # they are all that waits: the answer may bring a new base file


class CommitRound(Struct, frozen=True):
    """One transaction: the new version and its files, these updates counted in it, the round closed."""

    row: RoundRow
    manifest: Manifest
    made: Aggregated
    members: tuple[Pending, ...]  # where the row has a ring, the version is a candidate


class Restored(Struct, frozen=True):
    """What the coordinator keeps of a version that has the numbers of an older one; found by the shell."""

    remainder: bytes = b""
    rule_state: bytes = b""
    patch: bytes = b""  # what makes its parameters of those of the version before; empty: nothing does


class CommitStage(Struct, frozen=True):
    """One transaction: what became of the candidate, the version that everyone is told from now on, the trial's end.

    Without `restored` that is the candidate itself. Else it is a new version, with the numbers of an older one.
    """

    manifest: Manifest
    why: str
    restored: int = 0  # the version whose numbers are the fleet's again
    put_out: int = 0  # the candidate, if there was one
    row: RoundRow | None = None  # of the trial that ends with it
    numbers: Restored = Restored()


Effect: TypeAlias = (
    Publish
    | SendChunk
    | SendPatch
    | StoreEpoch
    | StoreSeen
    | StoreInvited
    | StoreTrial
    | StoreUpdate
    | StoreRound
    | Aggregate
    | CommitRound
    | CommitStage
)
