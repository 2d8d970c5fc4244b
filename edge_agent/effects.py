"""The words between the agent's machine and its shell: events go in, effects come out.

The shell (`edge_agent.service` on a device, `firmware_sim.device` in the simulator) performs effects strictly in
the order of the list. That order is the durability argument: whatever must be on flash stands before whatever
speaks of it.
"""

import enum
from typing import TypeAlias

from msgspec import Struct

from wire.messages import File, Patch, Plan, Range, Traffic, Trial


class Durable(Struct, frozen=True):
    """All that must survive a power cut; written whole, by one atomic write."""

    boot: int = 0  # grows with each start, from a number drawn for an empty flash: two flashes do not look alike
    last_round_id: int = 0  # the newest round that this device has finished, or given up
    outbox: bytes = b""  # the sealed update not yet receipted; resent byte by byte the same
    outbox_round_id: int = 0
    residual_round_id: int = 0  # which residual file on flash is the true one; 0: none
    model_version: int = 0  # the newest version ever believed; an older manifest is a replay


class Work(enum.Enum):
    """What the device is doing about learning."""

    IDLE = "idle"
    WAITING = "waiting"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"


class Job(Struct, frozen=True):
    """What the training child is asked to do."""

    device_id: str
    round_id: int
    base_version: int
    plan: Plan
    files: tuple[File, ...]
    residual_round_id: int
    update_bytes_max: int = 0  # of the sealed update, as the owner allows it now; 0: the plan alone decides
    golden: bytes = b""  # of the manifest: what a dry run of the version must give; empty: none is made


# Events


class Booted(Struct, frozen=True):
    """Power is on and `Durable` was read. Always the first event."""


class Connected(Struct, frozen=True):
    """The MQTT session stands and every subscription is granted."""

    connection: int  # counts the connections of this boot


class Disconnected(Struct, frozen=True):
    """The link is gone."""


class Received(Struct, frozen=True):
    """Bytes arrived on a topic. Hostile until their signature is checked."""

    topic: str
    payload: bytes


class Base(Struct, frozen=True):
    """A whole model version on flash, from which a patch may lead to another."""

    version: int
    params: bytes  # digest of its params.bin; empty: not known, since model.tflite alone holds them
    model: bytes  # digest of its model.tflite


class FileState(Struct, frozen=True):
    """What flash holds of the file with this digest: the answer to OpenFile, SealFile and WritePatch."""

    digest: bytes
    ready: bool  # whole, and its SHA-256 is right
    have: frozenset[int]  # indexes of the chunks whose SHA-256 is right
    patched: bool = False  # a patch that makes it is there
    patch_failed: bool = False  # one has failed, and none will do any more
    base: Base | None = None  # the version noted there, from which a patch may start; None: there is none


class FileFailed(Struct, frozen=True):
    """Flash could not do what OpenFile, WriteChunk, WritePatch or SealFile asked: it is full, or ill."""

    digest: bytes
    reason: str


class Fetched(Struct, frozen=True):
    """One chunk came by HTTP. Believed by its digest alone."""

    digest: bytes  # of the file
    index: int
    data: bytes


class FetchFailed(Struct, frozen=True):
    """HTTP does not bring what FetchRanges asked for."""

    digest: bytes
    reason: str


class Trained(Struct, frozen=True):
    """The training child is done, and the residual it owes next is on flash under the round's number."""

    round_id: int
    payload: bytes
    num_examples: int
    held_out_correct: int
    held_out_count: int
    trial: Trial | None = None  # where the plan was one


class TrainingFailed(Struct, frozen=True):
    """The training child ended without a result."""

    round_id: int
    reason: str


class PatchFailed(Struct, frozen=True):
    """The training child could not make params.bin of its patch: the base, the patch or the result is wrong."""

    round_id: int
    reason: str


class Reading(Struct, frozen=True):
    """What the host says of itself. None is unknown, which is never fine where a limit is set."""

    temperature_c: float | None = None
    battery_rate: float | None = None
    on_mains: bool | None = None
    num_examples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    day_bytes_left: int | None = None  # of what the owner lets the link carry; None: no limit
    month_bytes_left: int | None = None
    traffic: Traffic | None = None  # since the device was enrolled; None: nobody counts
    throttled: bool | None = None  # the firmware takes the clock back, for heat or want of power
    under_voltage: bool | None = None
    busy_rate: float | None = None  # of all cores, what other programs keep busy
    route: str | None = None  # the network interface by which everything leaves
    local_minute: int | None = None  # of the day, by the owner's clock, where it is set
    day_joules_left: float | None = None  # of what the owner lets training take; None: no limit


class Tick(Struct, frozen=True):
    """The time named by `wake_at_ms` may have come."""


Event: TypeAlias = (
    Booted
    | Connected
    | Disconnected
    | Received
    | FileState
    | FileFailed
    | Fetched
    | FetchFailed
    | Trained
    | TrainingFailed
    | PatchFailed
    | Reading
    | Tick
)

# Effects


class Persist(Struct, frozen=True):
    """Write the durable state. Returns only when it is on flash."""

    durable: Durable


class Publish(Struct, frozen=True):
    """Hand the bytes to the link. They may be lost; who needs an answer asks again."""

    topic: str
    payload: bytes


class OpenFile(Struct, frozen=True):
    """Look what flash holds of this file, make room for the rest, and answer with FileState or FileFailed."""

    file: File


class WriteChunk(Struct, frozen=True):
    """Keep one verified chunk."""

    file: File
    index: int
    data: bytes


class SealFile(Struct, frozen=True):
    """All chunks are there: sync, check the whole digest, make it a model file, answer with FileState."""

    file: File


class WritePatch(Struct, frozen=True):
    """Keep the patch that makes this file, atomically; answer with FileState or FileFailed."""

    file: File
    patch: Patch


class DropPatch(Struct, frozen=True):
    """The patch of this file is wrong: delete it, and remember as long as the file is of use that none will do."""

    file: File


class FetchRanges(Struct, frozen=True):
    """Get these chunks by HTTP, in place of what was asked before; answer with Fetched for each, or FetchFailed."""

    url: str  # of the manifest; the file is at {url}/{digest in hex}
    file: File
    ranges: tuple[Range, ...]


class StartTraining(Struct, frozen=True):
    """Start the training child. It answers with Trained or TrainingFailed."""

    job: Job


class StopTraining(Struct, frozen=True):
    """Kill the training child. No answer is owed."""

    reason: str


class SetLabel(Struct, frozen=True):
    """Give the stored window its label."""

    window: int
    label: int


class TakeModel(Struct, frozen=True):
    """Let this version predict from now on, whose numbers are in its base file. Of `first_model` alone."""

    version: int
    file: File


class Forget(Struct, frozen=True):
    """Delete model files and residuals that no longer matter. Not urgent, safe to repeat."""

    keep_files: frozenset[bytes] | None  # None: no manifest is known yet, keep them all
    keep_residuals: frozenset[int]


Effect: TypeAlias = (
    Persist
    | Publish
    | OpenFile
    | WriteChunk
    | SealFile
    | WritePatch
    | DropPatch
    | FetchRanges
    | StartTraining
    | StopTraining
    | SetLabel
    | Forget
)
