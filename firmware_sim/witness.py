"""Witness training: updates that betray what became of them.

The update of device `index` for round r says "one, at my place, in digit r". Aggregation adds up; the parameters
of a version are one 64-bit integer a device, read in base four. So each version's parameters show, for every
device and round, whether its update is lost (0), counted (1), or counted twice (2).

In a large fleet the places are shared, and an update adds a number of its own, modulo 2^64, in place of the digit:
the sum shows whether just those updates are in it, once each, that are said to be.

The payload also names the residual that the training began with and the model that it read, and a number that no
two trainings share: who trains a round twice makes two different updates. This is a format of the simulator's own;
`admit` is its parser, as `engine.codec` is the product's. The module is a `lesson.Lesson`.

A patch of it is no shorter than what it makes: it only behaves like one. It fits one content, and says so of others.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import struct
from typing import TYPE_CHECKING, Final

from broker.effects import Aggregated
from firmware_sim.attacks import NUMERIC
from firmware_sim.lesson import EXAMPLES, First, Learnt
from firmware_sim.lesson import Said as Witness
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Plan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from broker.effects import Aggregate
    from edge_agent.effects import Job
    from firmware_sim.database import Database
    from firmware_sim.lesson import Pupil

SMALL_FLEET: Final = 64  # devices that have a place each
ROUNDS_MAX: Final = 30  # base-four digits in a signed 64-bit integer, less one
NO_RESIDUAL: Final = 2**64 - 1  # the residual that the job named was not on flash

CHUNK_BYTES: Final = 32  # small, so that fetching takes a while
LARGE_CHUNK_BYTES: Final = 256  # in a large fleet, where that would take too long

_FORM: Final = struct.Struct("<4sIIQQ8s")
_MAGIC: Final = b"WIT1"
_PATCH: Final = b"P"
_DIGEST_BYTES: Final = 32
_FROZEN_BYTES: Final = 320


PLAN: Final = Plan(
    model="witness",
    train="last-1",
    lane="economy",
    num_params=1,
    epochs=1,
    batch_size=1,
    learning_rate=0.1,
    momentum=0.0,
    clip_norm=1.0,
    keep_count=1,
    value_bits=0,
    seed=7,
    num_examples_min=5,
    num_examples_max=64,
    trainer_memory_bytes_max=64 << 20,
    trainer_ms_max=60_000,
)


def first(devices: int) -> First:
    """Version 1, in small chunks so that fetching takes a while."""
    params = empty(devices)
    model = base(0, params)
    chunk_bytes = CHUNK_BYTES if devices <= SMALL_FLEET else LARGE_CHUNK_BYTES
    files = (chunks.split(MODEL_FILE, model, chunk_bytes=chunk_bytes), chunks.split(PARAMS_FILE, params))
    manifest = Manifest("witness", 1, 0, PLAN.num_params, files, base_version=1)
    return First(manifest, {files[0].digest: model, files[1].digest: params}, params, PLAN)


def learn(pupil: Pupil, job: Job, contents: Mapping[str, bytes], kept: bytes | None) -> Learnt:
    """A payload that says what was read. Who attacks with numbers says that it is another device's."""
    before = owed(kept) if job.residual_round_id else 0
    nonce = 1 + pupil.chance.getrandbits(63)
    place = pupil.place if pupil.attack not in NUMERIC else pupil.place + 1
    payload = encode(Witness(place, job.round_id, before, nonce, mark(contents)))
    return Learnt(payload, residual(nonce), EXAMPLES, held_out_correct=3, held_out_count=4)


def encode(witness: Witness) -> bytes:
    """The payload of an update: longer than a sector, so that a power cut may leave half of it."""
    return _FORM.pack(_MAGIC, *witness) + residual(witness.nonce)


def read(payload: bytes) -> Witness | None:
    """What the payload says; None when it is none of this format."""
    if len(payload) < _FORM.size or not payload.startswith(_MAGIC):
        return None
    said = Witness(*_FORM.unpack_from(payload)[1:])
    return said if payload[_FORM.size :] == residual(said.nonce) else None


def residual(nonce: int) -> bytes:
    """The file that the update with this nonce leaves: long enough to be torn."""
    return nonce.to_bytes(8, "little") * 80


def owed(content: bytes | None) -> int:
    """The nonce of the update that left this residual; NO_RESIDUAL when it is not there, or not whole.

    A trial leaves an empty one where there was none.
    """
    if content == b"":
        return 0
    nonce = int.from_bytes((content or b"")[:8], "little")
    return nonce if content == residual(nonce) else NO_RESIDUAL


def admit(payload: bytes, plan: Plan) -> str | None:
    """Why the payload is refused. The control characters are on purpose: a reason may come from anywhere."""
    del plan
    return None if read(payload) is not None else f"not a witness:\n\t{payload[:40].decode('latin-1')}" + "\x00" * 200


def base(scale_epoch: int, params: bytes) -> bytes:
    """The base file of a scale epoch, which holds the parameters of the version that opens it."""
    return (hashlib.sha512(f"base {scale_epoch}".encode()).digest() * 5)[:_FROZEN_BYTES] + params


def own(model: bytes) -> bytes:
    """The parameters that a base file itself holds."""
    return model[_FROZEN_BYTES:]


def empty(devices: int) -> bytes:
    """The parameters of the first version: nobody is counted. Not zeros, which flash has before they are fetched."""
    return (1 << 62).to_bytes(8, "little") * min(devices, SMALL_FLEET)


def advance(work: Aggregate, database: Database, *, grows: bool) -> Aggregated:
    """The parameters after the updates of the members."""
    said = [read(database.updates[member.device_id, member.round_id].payload) for member in work.members]
    assert None not in said, "a payload that was not admitted is aggregated"
    members = ((each.place, each.round_id) for each in said if each is not None)
    params = add_members(database.lineage[-1].params, members)
    model = base(work.manifest.scale_epoch + 1, params) if grows else b""
    return Aggregated(work.round_id, params, None, None, model=model)


def add_members(params: bytes, members: Iterable[tuple[int, int]], sign: int = 1) -> bytes:
    """The parameters after the updates of these devices, by index, and rounds; without them where `sign` is -1."""
    sums = list(struct.unpack(f"<{len(params) // 8}Q", params))
    for index, round_id in members:
        place = index % len(sums)
        sums[place] = (sums[place] + sign * _token(index, round_id)) % 2**64
    return struct.pack(f"<{len(sums)}Q", *sums)


def miscount(database: Database, places: Mapping[str, int], dishonest: Collection[str]) -> str:
    """Is each version the one before and the updates that it is said to count; and each honest device in it once?"""
    honest: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)  # by version
    lies: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for (device, round_id), counted in database.counted.items():
        if device in dishonest:
            said = read(database.updates[device, round_id].payload)
            assert said is not None, "a payload that was not admitted is counted"
            lies[counted.model_version].append((said.place, said.round_id))
        else:
            honest[counted.model_version].append((places[device], round_id))
    for after in database.lineage[1:]:
        version, before = after.manifest.model_version, database.lineage[after.manifest.parent_version - 1]
        members = [*honest[version], *lies[version]]
        if add_members(before.params, members) != after.params:
            return f"version {version} is not the sum of its {len(members)} members"
    if len(places) > SMALL_FLEET:
        return ""
    kept = {each.manifest.model_version for each in database.ancestors()}
    told = itertools.chain.from_iterable(said for version, said in lies.items() if version in kept)
    params = add_members(database.fleets.params, told, sign=-1)
    return _miscounted(params, database, {name: at for name, at in places.items() if name not in dishonest}, kept)


def _miscounted(params: bytes, database: Database, places: Mapping[str, int], kept: Collection[int]) -> str:
    """What was counted in a version that was rolled back is in no later one, and all the rest is, once."""
    counted = {key for key, where in database.counted.items() if where.model_version in kept}
    for device, index in places.items():
        for round_id in range(1, len(database.rounds) + 1):
            times = count(params, index, round_id)
            if times != ((device, round_id) in counted):
                return f"round {round_id} of {device} is in the parameters {times} times"
    return ""


def count(params: bytes, index: int, round_id: int) -> int:
    """How often the update of this device and round is in the parameters of a small fleet."""
    (number,) = struct.unpack_from("<Q", params, 8 * index)
    return int(number) >> 2 * (round_id - 1) & 3


def _token(index: int, round_id: int) -> int:
    """What the update of this device for this round adds: its digit, or a number that no other has."""
    if round_id <= ROUNDS_MAX and index < SMALL_FLEET:
        return int(4 ** (round_id - 1))
    return int.from_bytes(hashlib.blake2b(f"{index}/{round_id}".encode(), digest_size=8).digest(), "little")


def patch(base: bytes, params: bytes) -> bytes:
    """The payload of a patch that makes `params` of this content, and of no other."""
    return _PATCH + hashlib.sha256(base).digest() + params


def apply_patch(base: bytes, payload: bytes) -> bytes | None:
    """What the patch makes of `base`; None where it is no patch, or one of another base."""
    start = len(_PATCH) + _DIGEST_BYTES
    if payload[:start] != _PATCH + hashlib.sha256(base).digest() or len(payload) == start:
        return None
    return payload[start:]


def mark(contents: Mapping[str, bytes]) -> bytes:
    """What a training child says of the content of the model files that it read."""
    digests = sorted(hashlib.sha256(content).digest() for content in contents.values())
    return hashlib.sha256(b"".join(digests)).digest()[:8]
