"""Messages: every payload that crosses MQTT is exactly one of these structs, inside an envelope.

On the wire a message is one CBOR array: its tag, then its fields in the order written here. Arrays have no keys
to order or to repeat, so there is one encoding of each message, and only that one passes: `decode` scans the
bytes before any general CBOR code sees them, decodes, checks every bound, encodes again and compares.

How a message may change: a field is never removed, moved or retyped; a new field goes last and has a default;
unknown trailing fields are ignored by `msgspec` but must still be canonical. The structs inside messages (`File`,
`Range`, `Operator`, `Traffic`) do not grow. `docs/WIRE.md`, the struct and its golden vector change in one commit.
"""

import hashlib
from typing import Annotated, Final, Literal, TypeAlias, get_args

import cbor2
import msgspec
from msgspec import Meta, Struct

from wire import fields, limits
from wire.enrolment import Certificate, Claim, Renew


class MessageError(ValueError):
    """The peer's bytes are not one of our messages. The sentence says what was wrong."""


DeviceId: TypeAlias = fields.DeviceId
FleetId: TypeAlias = DeviceId
Digest: TypeAlias = fields.Digest
Count: TypeAlias = fields.Count
RoundId: TypeAlias = fields.RoundId
Version: TypeAlias = fields.Version
DurationMs: TypeAlias = fields.DurationMs
Reason: TypeAlias = fields.Reason
Name: TypeAlias = fields.Name
Train: TypeAlias = fields.Train
Url: TypeAlias = fields.Url
Examples: TypeAlias = fields.Examples


class Birth(Struct, frozen=True, array_like=True, tag="birth"):
    """Device → coordinator, first message of a connection and again for each new epoch: I am here.

    `(boot, connection)` only grows, but for a device whose flash was replaced, which draws its first boot anew; a death
    with another pair than the newest birth's is an old one and is ignored, and so is a birth with a smaller one.
    """

    boot: Count
    connection: Count
    epoch: Count  # the coordinator epoch that this birth answers; 0: none heard yet
    model_version: Version  # the newest version on flash; 0: none
    num_examples: Examples  # labelled examples in the device's own store
    software: Name


class Death(Struct, frozen=True, array_like=True, tag="death"):
    """Device → coordinator, as the MQTT will: this connection is gone. Carries the numbers of its birth."""

    boot: Count
    connection: Count


class State(Struct, frozen=True, array_like=True, tag="state"):
    """Coordinator → all, retained: who coordinates. A new `epoch` asks every device for its birth again."""

    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    online: bool
    round_id: Count  # the open round; 0: none
    model_version: Version


class Plan(Struct, frozen=True, array_like=True, tag="plan"):
    """Coordinator → all, retained: the rules of the rounds that name it by the SHA-256 of its encoding."""

    model: Name
    train: Train
    lane: Literal["economy", "trial", "hardened"]  # trial: nothing trains, the base version is compared; section 6
    num_params: Annotated[int, Meta(ge=1, le=limits.PARAMS_MAX)]
    epochs: Annotated[int, Meta(ge=1, le=1000)]
    batch_size: Annotated[int, Meta(ge=1, le=4096)]
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)]
    momentum: Annotated[float, Meta(ge=0.0, lt=1.0)]
    clip_norm: Annotated[float, Meta(gt=0.0, le=1e6)]
    keep_count: Annotated[int, Meta(ge=1, le=limits.PARAMS_MAX)]  # non-zeros of one update
    value_bits: Annotated[int, Meta(ge=0, le=8)]  # 0: an int8 model's whole steps, exactly; else values are rounded
    seed: Annotated[int, Meta(ge=0, le=2**53)]
    num_examples_min: Examples  # a device with fewer stays out
    num_examples_max: Annotated[int, Meta(ge=1, le=4096)]  # the weight of a device never exceeds this
    trainer_memory_bytes_max: Annotated[int, Meta(ge=16 << 20, le=2**40)]
    trainer_ms_max: DurationMs
    scale_epoch: Count = 0  # of the model that the round trains; steps are counted in its scales
    trainer_arena_bytes: Annotated[int, Meta(ge=0, le=2**40)] = 0  # what training takes beside the program; 0: unknown
    coding: Literal["rice", "context"] = "rice"  # context: a half of the bytes, for milliseconds at the coordinator
    update_bytes_max: Count = 0  # of one sealed update; the device sends fewer values to fit; 0: keep_count decides
    momentum_correction: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0  # of what is owed (Lin et al. 2018); 0: none
    residual_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0  # what is left of a debt per version missed
    proximal: Annotated[float, Meta(ge=0.0, le=1e4)] = 0.0  # pull to the base version in every step (FedProx); 0: none
    scaffold: bool = False  # each step is corrected by how the device's gradients differ from the fleet's
    keep_local: Annotated[int, Meta(ge=0, le=64)] = 0  # so many last layers of those that train stay on the device


class Offer(Struct, frozen=True, array_like=True, tag="offer"):
    """Coordinator → device: you are in this round's cohort. Train `base_version` by the named plan.

    Coordinator → all, retained: so is everyone whose coin is below the share (wire/coin.py).

    `lasts_ms` is a duration from its arrival: a device has no clock that outlives a power cut.
    """

    round_id: RoundId
    plan_digest: Digest
    base_version: Version
    lasts_ms: DurationMs
    nonce: Annotated[bytes, Meta(max_length=limits.NONCE_BYTES_MAX)] = b""  # public; what the round's coins are made of
    draw: Annotated[int, Meta(ge=0, le=limits.COIN_SIDES)] = limits.COIN_SIDES  # the share: whose coin is below is in
    jitter_ms: Annotated[int, Meta(ge=0, le=366 * 24 * 3600 * 1000)] = 0  # each waits its own part of it


class Trial(Struct, frozen=True, array_like=True):
    """How a version did on a device that tried it, beside the version that was in use there.

    On the device's own held-out examples: those that only the new one gets right were `won`, those that only the old
    one does `lost`.
    """

    compared_with: Count  # the version that was in use; 0: none that could be compared
    won: Examples
    lost: Examples
    refused: Reason = ""  # why the device does not take it into use; empty: it does


class Update(Struct, frozen=True, array_like=True, tag="update"):
    """Device → coordinator: the sparse delta of one round. (device, round_id) is its idempotency key.

    The signed bytes are made once, stored, and resent unchanged until a receipt names their digest.
    `payload` is numbers (engine.codec); here it is bytes.
    """

    round_id: RoundId
    base_version: Version
    num_examples: Annotated[int, Meta(ge=1, le=limits.EXAMPLES_MAX)]
    held_out_correct: Examples  # of the base model, on the device's own held-out examples
    held_out_count: Examples
    payload: Annotated[bytes, Meta(max_length=limits.UPDATE_PAYLOAD_BYTES_MAX)]
    trial: Trial | None = None  # in a round of a plan that is a trial: the payload is empty then

    def __post_init__(self) -> None:
        """Refuse more correct answers than questions, and a trial that says two things."""
        if self.held_out_correct > self.held_out_count:
            raise ValueError(f"{self.held_out_correct} correct of {self.held_out_count} held-out examples")
        if self.trial is not None and (self.payload or self.trial.won + self.trial.lost > self.held_out_count):
            raise ValueError("a trial brings no payload, and decides no more examples than were held out")


Verdict: TypeAlias = Literal["accepted", "duplicate", "stale", "refused", "unknown", "unfounded"]


class Receipt(Struct, frozen=True, array_like=True, tag="receipt"):
    """Coordinator → device: what became of the message whose sealed bytes have this digest.

    accepted: stored, and will be counted. duplicate: had been. stale: older than the coordinator remembers.
    refused: for the reason given, and never to be sent again. unknown: this device is not enrolled; keep the
    update, ask the operator. unfounded: in lane `hardened`, the coordinator does not hold what this update builds on;
    start from nothing. All but unknown empty an outbox, and only when the digest matches.
    """

    digest: Digest
    round_id: Count
    verdict: Verdict
    reason: Reason = ""


MODEL_FILE: Final = "model.tflite"  # of a version's manifest: the base, the same for all versions of a scale epoch
PARAMS_FILE: Final = "params.bin"  # and what trains of it, as its own file stores it: all that a round changes


class File(Struct, frozen=True, array_like=True):
    """One content-addressed file of a model version, in chunks of `chunk_bytes` (the last may be shorter)."""

    name: Name
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=limits.FILE_BYTES_MAX)]
    chunk_bytes: Annotated[int, Meta(ge=1, le=limits.CHUNK_BYTES_MAX)]
    chunk_digests: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=limits.FILE_CHUNKS_MAX)]

    def __post_init__(self) -> None:
        """Refuse a digest list that does not fit the size: everyone may then trust both."""
        expected = -(-self.size_bytes // self.chunk_bytes)
        if len(self.chunk_digests) != expected:
            raise ValueError(f"file {self.name} needs {expected} chunk digests, not {len(self.chunk_digests)}")


class Operator(Struct, frozen=True, array_like=True):
    """What a runtime must have to run the version: this kind of operator, in this version of it."""

    kind: Name  # as the file's schema names it: CONV_2D
    version: Annotated[int, Meta(ge=1, le=10_000)]


class Manifest(Struct, frozen=True, array_like=True, tag="manifest"):
    """Coordinator → all, retained: the newest model version and the files that make it."""

    model: Name
    model_version: Version
    parent_version: Version
    num_params: Annotated[int, Meta(ge=1, le=limits.PARAMS_MAX)]
    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=limits.FILES_MAX)]
    scale_epoch: Count = 0  # grows when the scales of the base change; what counts in older ones is void
    url: Url = ""  # the files are there too, each as {url}/{digest in hex}, by HTTP range requests
    base_version: Version = 0  # the version whose parameters `model.tflite` itself holds; 0: none known
    golden: Annotated[bytes, Meta(max_length=32)] = b""  # of the dry run (engine/dry_run.py), a SHA-256; empty: none
    operators: Annotated[tuple[Operator, ...], Meta(max_length=limits.OPERATORS_MAX)] = ()  # empty: not known

    def __post_init__(self) -> None:
        """Refuse two files of one name."""
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError(f"two files of version {self.model_version} have one name")


class Range(Struct, frozen=True, array_like=True):
    """`count` chunks from `first` on."""

    first: Annotated[int, Meta(ge=0, lt=limits.FILE_CHUNKS_MAX)]
    count: Annotated[int, Meta(ge=1, le=limits.FILE_CHUNKS_MAX)]


class Want(Struct, frozen=True, array_like=True, tag="want"):
    """Device → coordinator: send me these chunks of the file with this digest.

    Of `params.bin`, a device says of which version it has it, whole or in its `model.tflite`: a patch from there may do
    instead of the chunks.
    """

    digest: Digest
    ranges: Annotated[tuple[Range, ...], Meta(min_length=1, max_length=limits.WANT_RANGES_MAX)]
    base_version: Count = 0  # 0: none, or a patch did not fit; send chunks

    def __post_init__(self) -> None:
        """Refuse to ask for more than one want may."""
        total = sum(wanted.count for wanted in self.ranges)
        if total > limits.WANT_CHUNKS_MAX:
            raise ValueError(f"one want asks for {total} chunks, and may ask for {limits.WANT_CHUNKS_MAX}")


class Chunk(Struct, frozen=True, array_like=True, tag="chunk"):
    """Coordinator → device: one chunk. Its SHA-256 stands in the manifest, or it is dropped."""

    digest: Digest  # of the whole file
    index: Annotated[int, Meta(ge=0, lt=limits.FILE_CHUNKS_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=limits.CHUNK_BYTES_MAX)]


class Patch(Struct, frozen=True, array_like=True, tag="patch"):
    """Coordinator → device: what turns the `params.bin` of `base_version` into the wanted one.

    It is believed when the result has the wanted digest; whoever finds another wants the whole file.
    `payload` is numbers (engine.codec); here it is bytes.
    """

    digest: Digest  # of the file that it makes
    base_version: Version
    base_digest: Digest  # of the file that it starts from
    payload: Annotated[bytes, Meta(min_length=1, max_length=limits.CHUNK_BYTES_MAX)]


class Traffic(Struct, frozen=True, array_like=True):
    """Bytes of a device since it was enrolled, by purpose: PUBLISH packets as MQTT writes them, with their PUBACKs.

    `transport` is all that TCP carried beyond those (MQTT's own packets, TLS), where the host can tell.
    """

    update_up: Count = 0  # updates, the first time
    retry_up: Count = 0  # the same bytes again
    model_up: Count = 0  # wants
    model_down: Count = 0  # chunks and patches; over HTTP, what was fetched
    telemetry_up: Count = 0
    control_up: Count = 0  # births
    control_down: Count = 0  # state, plan, manifest, offer, receipt, label
    transport_up: Count = 0
    transport_down: Count = 0


class Telemetry(Struct, frozen=True, array_like=True, tag="telemetry"):
    """Device → coordinator, now and then: how it is. Lost ones are not missed."""

    boot: Count
    sequence: Count
    work: Name  # idle, waiting, fetching, training, sending
    reason: Reason  # why it does not do more
    bytes_up: Count
    bytes_down: Count
    temperature_c: Annotated[float, Meta(ge=-100.0, le=300.0)] | None = None
    battery_rate: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None  # 1.0 is full; None is unknown
    traffic: Traffic | None = None


class Label(Struct, frozen=True, array_like=True, tag="label"):
    """Coordinator → device: the true label of the stored window with this number."""

    window: Count
    label: Annotated[int, Meta(ge=0, le=65_535)]


_Learning: TypeAlias = Birth | Death | State | Plan | Offer | Update | Receipt | Manifest | Want | Chunk | Patch
Message: TypeAlias = _Learning | Telemetry | Label | Claim | Renew | Certificate


def encode(message: Message) -> bytes:
    """The one encoding of `message`: a definite-length CBOR array, shortest integers and floats.

    Checks the bounds on the way, so that nobody sends what the peer must refuse; raises MessageError.
    """
    return _dump(_to_tree(_to_message(_to_tree(message))))


def decode(data: bytes) -> Message:
    """Return the message that `data` is; raise MessageError, and nothing else, for any other bytes.

    Fields after the known ones are ignored (a newer peer); trailing fields with a default may be absent (an older
    one). Everything else must be exactly what `encode` writes.
    """
    _scan(data)
    try:
        tree = cbor2.loads(data)
    except cbor2.CBORError as error:
        raise MessageError(f"the message is not CBOR: {error}") from error
    message = _to_message(tree)
    known = _to_tree(message)
    if _dump(known) != data:
        _check_older_or_newer(data, tree, known)
    return message


def digest_of(data: bytes) -> bytes:
    """SHA-256: the name of sealed bytes in a receipt, of an encoded plan in an offer, of a file in a manifest."""
    return hashlib.sha256(data).digest()


def kind_of(message: Message) -> str:
    """The tag of `message`, which is also the last level of its topic."""
    return str(message.__struct_config__.tag)


def fit_reason(sentence: str) -> str:
    """Make any sentence a Reason: one line, no control characters, not too long."""
    printable = "".join(c if " " <= c < "\x7f" or c > "\x9f" else " " for c in sentence)
    return printable if len(printable) <= limits.REASON_CHARS_MAX else printable[: limits.REASON_CHARS_MAX - 1] + "…"


# By tag: msgspec prepares a struct's checks once, and those of a union anew at every call, which takes 13 µs.
_KINDS: Final[dict[object, type[Message]]] = {struct.__struct_config__.tag: struct for struct in get_args(Message)}
_EXTRA_BYTES: Final = {24: 1, 25: 2, 26: 4, 27: 8}  # additional information → bytes of argument (RFC 8949, section 3)
_INFINITIES: Final = {25: 0x7C00, 26: 0x7F80_0000, 27: 0x7FF0_0000_0000_0000}  # exponent all ones: Inf or NaN


def _to_tree(message: Message) -> list[object]:
    tree: list[object] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return tree


def _to_message(tree: object) -> Message:
    tag = tree[0] if isinstance(tree, list) and tree else None
    kind = _KINDS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise MessageError("the bytes are none of the messages of the contract")
    try:
        return msgspec.convert(tree, type=kind, builtin_types=(bytes,), strict=True)
    except msgspec.ValidationError as error:
        raise MessageError(f"the message breaks a bound of the contract: {error}") from error


def _dump(tree: object) -> bytes:
    return cbor2.dumps(tree, canonical=True)


def _check_older_or_newer(data: bytes, tree: list[object], known: list[object]) -> None:
    """Allow another number of fields, and no other difference from what we would have written."""
    shared = min(len(known), len(tree))
    if _dump(tree) != data:
        raise MessageError("a number or a length is not in its shortest form")
    if _dump(known[:shared]) != _dump(tree[:shared]):
        raise MessageError("a field is not written in its own form: an integer for a float, or a field too many")


def _scan(data: bytes) -> None:
    """Walk all of `data` once, building nothing: only what our messages are made of may reach the decoder.

    That is integers, byte and text strings, arrays, false, true, null and finite floats, all of declared length.
    """
    size = len(data)
    if size > limits.PAYLOAD_BYTES_MAX:
        raise MessageError(f"the message has {size} bytes, and {limits.PAYLOAD_BYTES_MAX} are the most")
    position = items = 0
    open_arrays = [1]  # elements still to come, per array we are in; the first stands for the message itself
    while open_arrays:
        if open_arrays[-1] == 0:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        items += 1
        if position < size and data[position] < 24:  # a small number, as most items are
            position += 1
            continue
        major, argument, position = _head(data, position, size)
        if major in {2, 3}:
            position += argument
            if position > size:
                raise MessageError("a string is longer than the message")
        elif major == 4:
            if argument > limits.CBOR_ITEMS_MAX - items:
                raise MessageError(f"the message has more than {limits.CBOR_ITEMS_MAX} items")
            open_arrays.append(argument)
            if len(open_arrays) - 1 > limits.CBOR_DEPTH_MAX:
                raise MessageError(f"the message nests deeper than {limits.CBOR_DEPTH_MAX} arrays")
    if position != size:
        raise MessageError(f"{size - position} bytes follow the message")


def _head(data: bytes, position: int, size: int) -> tuple[int, int, int]:
    """Read one initial byte and its argument: (major type, argument, position after them)."""
    if position >= size:
        raise MessageError("the message ends too early")
    first = data[position]
    major, info = first >> 5, first & 31
    if major in {5, 6}:
        raise MessageError("maps and tags are no part of a message")
    position += 1
    argument = info
    if info > 23:
        after = position + _EXTRA_BYTES.get(info, size)
        if info > 27 or after > size:
            raise MessageError("an item has no definite length, or ends too early")
        argument = int.from_bytes(data[position:after], "big")
        position = after
    if major == 7 and not _is_plain(info, argument):
        raise MessageError("only false, true, null and finite floats are allowed, no other simple value")
    return major, argument, position


def _is_plain(info: int, argument: int) -> bool:
    if info in _INFINITIES:
        infinity = _INFINITIES[info]
        return argument & infinity != infinity
    return info in {20, 21, 22}
