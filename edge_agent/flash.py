"""Durable files: what is on flash after a power cut, and how it gets there.

    state.a state.b   the agent's Durable in two slots, written in turn; the newest valid one is true
    files/            model files named by their SHA-256; `.part` while chunks still come; `.patch`: the signed-for
                      message of which the training child makes the file, or nothing once a patch of it has failed
    residual/         what error feedback owes, one file per round
    model             which files make the newest whole model version

The two slots are rewritten in place. Measured on ext4, a 1 kB commit then writes 4 kB to the card, where a new file
with a rename writes 65 kB. Their room is reserved when they are made, so a disk that fills up later cannot keep an
update from its outbox. Chunks are not synced one by one: each proves itself by its SHA-256 when a file is opened
again, so a power cut costs time and nothing else.

Every OSError is left to the caller: the program ends, and starting up again is the recovery. But the page cache
outlives the program, and shows what never reached the card: after an fsync that failed, Linux calls its pages clean. So
slots and chunks are synced, and read back from the card, before anything is built on them (`drop_cache`), and a
directory is synced before what it names is relied on. Only a power cut tells the difference, later.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import cbor2
import msgspec

from edge_agent.disk import FULL, Directory
from edge_agent.effects import (
    Base,
    DropPatch,
    Durable,
    FileFailed,
    FileState,
    OpenFile,
    SealFile,
    WriteChunk,
    WritePatch,
)
from wire import messages
from wire.chunks import chunk_size
from wire.messages import MODEL_FILE, PARAMS_FILE, File, Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from edge_agent.disk import Disk

FileEffect: TypeAlias = OpenFile | WriteChunk | SealFile | WritePatch | DropPatch
_SLOT: Final = struct.Struct("<4sIQI")  # magic, CRC-32 of all that follows it, sequence, length of the content
_MAGIC: Final = b"HST1"
_SLOT_BYTES: Final = 128 * 1024  # the largest outbox is one MQTT payload
_SLOTS: Final = ("state.a", "state.b")
_FILES: Final = "files"
_RESIDUAL: Final = "residual"
_MODEL: Final = "model"
_PART: Final = ".part"
_PATCH: Final = ".patch"


class FlashError(Exception):
    """What is on flash cannot be used; the sentence says which file, and how to mend it."""


class Model(msgspec.Struct, frozen=True):
    """The newest model version that is whole on flash."""

    version: int
    train: str  # which part of it the plan trained, as the plan names it
    files: tuple[File, ...]


def write_file(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Replace the file `path` of the real disk by `data`, as `replace_file` does."""
    replace_file(Directory(path.parent), path.name, data, synced=synced)


def read_file(path: Path) -> bytes | None:
    """The bytes of the file `path` of the real disk; None when there is no such file."""
    return Directory(path.parent).read(path.name)


def replace_file(disk: Disk, name: str, data: bytes, *, synced: bool = True) -> None:
    """Replace the file `name` by `data`, mode 0600: after a power cut it holds the old bytes or the new, never a mix.

    Without `synced` only a crash of the program is survived so, not a power cut, and the card is spared.
    """
    directory, _, leaf = name.rpartition("/")
    aside = f"{directory}/.{leaf}.new" if directory else f".{leaf}.new"
    try:
        with _opened(disk, aside, empty=True) as descriptor:
            disk.write_at(descriptor, 0, data)
            if synced:
                disk.sync(descriptor)
        disk.rename(aside, name)
    except BaseException:
        disk.delete(aside)
        raise
    if synced:
        disk.sync_directory(directory)  # the rename itself lives in the directory; else it may roll back


def file_name(digest: bytes) -> str:
    """Where the model file with this SHA-256 is kept."""
    return f"{_FILES}/{digest.hex()}"


def read_model_file(disk: Disk, files: tuple[File, ...], name: str) -> bytes | None:
    """The content of the one of `files` that bears `name`; None when it is not whole on flash, or there is none."""
    digest = next((file.digest for file in files if file.name == name), b"")
    return read_whole(disk, digest) if digest else None


def read_whole(disk: Disk, digest: bytes) -> bytes | None:
    """The content of the model file with this SHA-256; None when it is not there, or is something else."""
    data = disk.read(file_name(digest))
    return data if data is not None and hashlib.sha256(data).digest() == digest else None


def map_whole(disk: Disk, digest: bytes) -> memoryview | None:
    """The same without memory for it, for who needs several: read for its digest piece by piece, then mapped."""
    return disk.view(file_name(digest)) if is_whole(disk, digest) else None


def is_whole(disk: Disk, digest: bytes) -> bool:
    """Whether the model file with this SHA-256 is there, and is that. Reads it piece by piece."""
    name = file_name(digest)
    return _exists(disk, name) and _digest(disk, name) == digest


def complete_file(disk: Disk, file: File, content: bytes) -> memoryview:
    """Make `content`, whose SHA-256 the caller has checked, the model file, which is shown; its chunks have done."""
    name = file_name(file.digest)
    with _opened(disk, name + _PART) as descriptor:  # its room was reserved when the file was opened
        disk.write_at(descriptor, 0, content)
        disk.truncate(descriptor, len(content))
        disk.sync(descriptor)
    _name_whole(disk, name)
    return disk.view(name)


def has_patch(disk: Disk, file: File) -> bool:
    """Whether a patch of this file waits to be applied."""
    return bool(disk.size_bytes(file_name(file.digest) + _PATCH))


def read_patch(disk: Disk, digest: bytes) -> Patch | None:
    """The patch that makes the file with this SHA-256; None when there is none, or it is damaged."""
    try:
        patch = messages.decode(disk.read(file_name(digest) + _PATCH) or b"")
    except messages.MessageError:
        return None
    return patch if isinstance(patch, Patch) and patch.digest == digest else None


def residual_name(round_id: int) -> str:
    """Where the residual that the update of this round leaves is kept."""
    return f"{_RESIDUAL}/{round_id}"


def load_durable(disk: Disk) -> tuple[int, Durable]:
    """The newest Durable on flash and its sequence number; 0 and a first one when nothing was ever saved.

    Raises FlashError when both slots were written and neither is valid.
    """
    kept = [disk.read(slot) or b"" for slot in _SLOTS]
    valid = [found for found in map(_take_slot, kept) if found is not None]
    if valid:
        return max(valid, key=lambda found: found[0])
    # One slot written and torn is a first start cut short: nothing was spoken of yet.
    if all(data.strip(b"\0") for data in kept):
        a, b = map(disk.place, _SLOTS)
        raise FlashError(
            f"{a} and {b} are both damaged, and with them the outbox: copy the directory {disk.place()} if you want it "
            "looked at, then move it away to start as a new device"
        )
    return 0, Durable()


def load_model(disk: Disk) -> Model | None:
    """The newest whole model version on flash; None when none was fetched yet, or the note is damaged."""
    data = disk.read(_MODEL)
    try:
        return None if data is None else _load(data, Model)
    except (cbor2.CBORError, msgspec.ValidationError):
        return None


class Flash:
    """The state directory of one agent. One process at a time, by the lock that the service holds."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._sequence = 0
        self._named: set[str] = set()  # slots whose names are on the card
        self._model = load_model(disk)
        for directory in ("", _FILES, _RESIDUAL):
            disk.make_directory(directory)

    # The agent's Durable

    def load(self, first_boot: int = 0) -> Durable:
        """Return the newest Durable that is on the card, as `load_durable` does; `first_boot` if there is none.

        An earlier process may have ended before a sync, or because of one that failed. What the cache shows of that
        would be believed, and the slot that is truly newest written over.
        """
        there = [slot for slot in _SLOTS if _exists(self.disk, slot)]
        for slot in there:
            with _opened(self.disk, slot) as descriptor:
                self.disk.sync(descriptor)
                self.disk.drop_cache(descriptor)
        if there:
            self.disk.sync_directory("")
            self._named.update(there)
        self._sequence, durable = load_durable(self.disk)
        return durable if self._sequence else Durable(boot=first_boot)

    def save(self, durable: Durable) -> None:
        """Write `durable` over the older slot. Returns when it is on flash; until then the newer slot stands."""
        content = _dump(durable)
        sequence = self._sequence + 1
        body = struct.pack("<QI", sequence, len(content)) + content
        record = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
        slot, disk = _SLOTS[sequence % 2], self.disk
        with _opened(disk, slot) as descriptor:
            disk.reserve(descriptor, max(_SLOT_BYTES, len(record)))
            disk.write_at(descriptor, 0, record)
            disk.sync(descriptor)
        if slot not in self._named:
            disk.sync_directory("")
            self._named.add(slot)
        self._sequence = sequence

    # Model files

    def perform(self, effect: FileEffect) -> FileState | FileFailed | None:
        """Do what the machine asks of a file, and return its answer, if one is owed. A full card is one.

        Raises OSError of a card that fails: it may not be believed.
        """
        file = effect.file
        try:
            match effect:
                case OpenFile():
                    return self.open_file(file)
                case WriteChunk(index=index, data=data):
                    self.write_chunk(file, index, data)
                case SealFile():
                    return self.seal_file(file)
                case WritePatch(patch=patch):
                    return self.write_patch(file, patch)
                case DropPatch():
                    self.drop_patch(file)
        except OSError as error:
            if error.errno not in FULL:
                raise
            where = f"free some space on the disk of {self.disk.place()}"
            return FileFailed(file.digest, f"no room for {file.name} of {file.size_bytes} bytes: {where}")
        return None

    def open_file(self, file: File) -> FileState:
        """Reserve room for `file` and say what of it is there: all of it is read and hashed."""
        disk, name = self.disk, file_name(file.digest)
        if _exists(disk, name):
            if _digest(disk, name) == file.digest:
                return FileState(file.digest, ready=True, have=_all_of(file))
            disk.rename(name, name + _PART)  # a card gone bad: what is still right need not be fetched again
        with _opened(disk, name + _PART) as descriptor:
            disk.reserve(descriptor, file.size_bytes)
            disk.truncate(descriptor, file.size_bytes)
            have = _true_chunks(disk, descriptor, file)
        if file.name != PARAMS_FILE:
            return FileState(file.digest, ready=False, have=have)
        if disk.size_bytes(name + _PATCH) == 0:
            return FileState(file.digest, ready=False, have=have, patch_failed=True)
        if read_patch(disk, file.digest) is not None:
            return FileState(file.digest, ready=False, have=have, patched=True)
        disk.delete(name + _PATCH)  # it is damaged
        return FileState(file.digest, ready=False, have=have, base=self._base())

    def _base(self) -> Base | None:
        """The version that is noted, if its params are whole."""
        digests = {file.name: file.digest for file in self._model.files} if self._model else {}
        if self._model is None or PARAMS_FILE not in digests or MODEL_FILE not in digests:
            return None
        if not is_whole(self.disk, digests[PARAMS_FILE]):
            return None
        return Base(self._model.version, digests[PARAMS_FILE], digests[MODEL_FILE])

    def write_chunk(self, file: File, index: int, data: bytes) -> None:
        """Keep one chunk, whose SHA-256 the caller has checked."""
        with _opened(self.disk, file_name(file.digest) + _PART) as descriptor:
            self.disk.write_at(descriptor, index * file.chunk_bytes, data)

    def write_patch(self, file: File, patch: Patch) -> FileState:
        """Keep the patch that makes `file`; and say whether it is there, and what it starts from."""
        replace_file(self.disk, file_name(file.digest) + _PATCH, messages.encode(patch))
        return self.open_file(file)

    def drop_patch(self, file: File) -> None:
        """Empty the patch of `file`, which needs no room: as long as the file is kept, none will be asked for."""
        with _opened(self.disk, file_name(file.digest) + _PATCH) as descriptor:
            self.disk.truncate(descriptor, 0)
            self.disk.sync(descriptor)
        self.disk.sync_directory(_FILES)

    def seal_file(self, file: File) -> FileState:
        """Sync the chunks and make them a model file, if their whole has the right SHA-256."""
        disk, name = self.disk, file_name(file.digest)
        if _exists(disk, name + _PART):
            with _opened(disk, name + _PART) as descriptor:
                disk.sync(descriptor)
                disk.drop_cache(descriptor)  # chunks of an earlier process may be in the cache alone
            if _digest(disk, name + _PART) == file.digest:
                _name_whole(disk, name)
                return FileState(file.digest, ready=True, have=_all_of(file))
        return self.open_file(file)

    def note_model(self, model: Model) -> None:
        """Remember which files make the newest version, if all are there, for who predicts and whom a patch finds.

        A name that stands proves itself: nothing bears it before its SHA-256 was right, and on the card.
        """
        if model != self._model and all(_exists(self.disk, file_name(file.digest)) for file in model.files):
            self.disk.sync_directory(_FILES)  # whoever gave the names may have ended before this
            replace_file(self.disk, _MODEL, _dump(model))
            self._model = model

    def forget(
        self,
        keep_files: frozenset[bytes] | None,
        keep_residuals: frozenset[int],
        in_use: AbstractSet[bytes] = frozenset(),
    ) -> None:
        """Delete every model file and residual that is not to be kept; None keeps all model files.

        Kept are also the newest whole version, what a kept patch starts from, and the files that are `in_use`.
        """
        if keep_files is not None:
            kept = {file.digest for file in self._model.files} if self._model else set()
            kept |= keep_files | in_use
            patches = (read_patch(self.disk, digest) for digest in keep_files)
            bases = {patch.base_digest for patch in patches if patch is not None}
            _delete_but(self.disk, _FILES, {digest.hex() for digest in kept | bases})
        _delete_but(self.disk, _RESIDUAL, {str(round_id) for round_id in keep_residuals})


def _take_slot(data: bytes) -> tuple[int, Durable] | None:
    """(sequence, content) of a slot's bytes; None when they are not exactly what was once written."""
    if len(data) < _SLOT.size:
        return None
    magic, checksum, sequence, length = _SLOT.unpack_from(data)
    body = data[8 : _SLOT.size + length]
    if magic != _MAGIC or len(body) != _SLOT.size - 8 + length or zlib.crc32(body) != checksum:
        return None
    return sequence, _load(body[_SLOT.size - 8 :], Durable)


def _dump(struct_: msgspec.Struct) -> bytes:
    return cbor2.dumps(msgspec.to_builtins(struct_, builtin_types=(bytes,)))


def _load(data: bytes, kind: Any) -> Any:
    return msgspec.convert(cbor2.loads(data), type=kind, builtin_types=(bytes,))


def _name_whole(disk: Disk, name: str) -> None:
    """Give a part that is whole, and on the card, its name; a patch of it, or that one has failed, is of no use now."""
    disk.rename(name + _PART, name)
    disk.delete(name + _PATCH)
    disk.sync_directory(_FILES)


def _all_of(file: File) -> frozenset[int]:
    return frozenset(range(len(file.chunk_digests)))


def _true_chunks(disk: Disk, descriptor: int, file: File) -> frozenset[int]:
    return frozenset(
        index
        for index, expected in enumerate(file.chunk_digests)
        if hashlib.sha256(disk.read_at(descriptor, index * file.chunk_bytes, chunk_size(file, index))).digest()
        == expected
    )


def _exists(disk: Disk, name: str) -> bool:
    return disk.size_bytes(name) is not None


def _digest(disk: Disk, name: str) -> bytes:
    sha256 = hashlib.sha256()
    for piece in disk.pieces(name):
        sha256.update(piece)
    return sha256.digest()


@contextlib.contextmanager
def _opened(disk: Disk, name: str, *, empty: bool = False) -> Iterator[int]:
    descriptor = disk.open(name, empty=empty)
    try:
        yield descriptor
    finally:
        disk.close(descriptor)


def _delete_but(disk: Disk, directory: str, names: set[str]) -> None:
    for name in disk.names(directory):
        if name.removesuffix(_PART).removesuffix(_PATCH) not in names:
            disk.delete(f"{directory}/{name}")
