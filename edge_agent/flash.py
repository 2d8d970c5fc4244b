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

Every OSError is left to the caller. After an error of fsync nothing is read back: the program ends, and starting up
again is the recovery.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import cbor2
import msgspec

from edge_agent.effects import Base, Durable, FileState
from wire import messages
from wire.chunks import chunk_size
from wire.messages import MODEL_FILE, PARAMS_FILE, File, Patch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SLOT: Final = struct.Struct("<4sIQI")  # magic, CRC-32 of all that follows it, sequence, length of the content
_MAGIC: Final = b"HST1"
_SLOT_BYTES: Final = 128 * 1024  # the largest outbox is one MQTT payload
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
    """Replace `path` by `data`, mode 0600: after a power cut it holds the old bytes or the new, never a mix.

    Without `synced` only a crash of the program is survived so, not a power cut, and the card is spared.
    """
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if synced:
        _sync_directory(path.parent)  # the rename itself lives in the directory; else it may roll back


def read_file(path: Path) -> bytes | None:
    """The bytes of `path`; None when there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def file_path(root: Path, digest: bytes) -> Path:
    """Where the model file with this SHA-256 is kept."""
    return root / "files" / digest.hex()


def read_model_file(root: Path, files: tuple[File, ...], name: str) -> bytes | None:
    """The content of the one of `files` that bears `name`; None when it is not whole on flash, or there is none."""
    digest = next((file.digest for file in files if file.name == name), b"")
    return read_whole(root, digest) if digest else None


def read_whole(root: Path, digest: bytes) -> bytes | None:
    """The content of the model file with this SHA-256; None when it is not there, or is something else."""
    data = read_file(file_path(root, digest))
    return data if data is not None and hashlib.sha256(data).digest() == digest else None


def is_whole(root: Path, digest: bytes) -> bool:
    """Whether the model file with this SHA-256 is there, and is that. Reads it piece by piece."""
    path = file_path(root, digest)
    return path.exists() and _digest(path) == digest


def complete_file(root: Path, file: File, content: bytes) -> None:
    """Make `content`, whose SHA-256 the caller has checked, the model file; its chunks and its patch have done."""
    path = file_path(root, file.digest)
    part = path.with_suffix(_PART)
    with _opened(part) as descriptor:  # its room was reserved when the file was opened
        _write_at(descriptor, 0, content)
        os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    part.replace(path)
    path.with_suffix(_PATCH).unlink(missing_ok=True)
    _sync_directory(path.parent)


def has_patch(root: Path, file: File) -> bool:
    """Whether a patch of this file waits to be applied."""
    return bool(read_file(file_path(root, file.digest).with_suffix(_PATCH)))


def read_patch(root: Path, digest: bytes) -> Patch | None:
    """The patch that makes the file with this SHA-256; None when there is none, or it is damaged."""
    try:
        patch = messages.decode(read_file(file_path(root, digest).with_suffix(_PATCH)) or b"")
    except messages.MessageError:
        return None
    return patch if isinstance(patch, Patch) and patch.digest == digest else None


def residual_path(root: Path, round_id: int) -> Path:
    """Where the residual that the update of this round leaves is kept."""
    return root / "residual" / str(round_id)


def load_model(root: Path) -> Model | None:
    """The newest whole model version under `root`; None when none was fetched yet, or the note is damaged."""
    data = read_file(root / "model")
    try:
        return None if data is None else _load(data, Model)
    except (cbor2.CBORError, msgspec.ValidationError):
        return None


class Flash:
    """The state directory of one agent. One process at a time, by the lock that the service holds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._slots = (root / "state.a", root / "state.b")
        self._sequence = 0
        self._model = load_model(root)
        for directory in (root, root / "files", root / "residual"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # The agent's Durable

    def load(self) -> Durable:
        """Return the newest Durable; a first one when nothing was ever saved.

        Raises FlashError when both slots were written and neither is valid.
        """
        kept = [read_file(slot) or b"" for slot in self._slots]
        valid = [found for found in map(_take_slot, kept) if found is not None]
        if not valid:
            # One slot written and torn is a first start cut short: nothing was spoken of yet.
            if all(data.strip(b"\0") for data in kept):
                raise FlashError(
                    f"{self._slots[0]} and {self._slots[1]} are both damaged, and with them the outbox: copy the "
                    f"directory {self.root} if you want it looked at, then move it away to start as a new device"
                )
            return Durable()
        self._sequence, durable = max(valid, key=lambda found: found[0])
        return durable

    def save(self, durable: Durable) -> None:
        """Write `durable` over the older slot. Returns when it is on flash; until then the newer slot stands."""
        content = _dump(durable)
        sequence = self._sequence + 1
        body = struct.pack("<QI", sequence, len(content)) + content
        record = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
        slot = self._slots[sequence % 2]
        is_new = not slot.exists()
        with _opened(slot) as descriptor:
            os.posix_fallocate(descriptor, 0, max(_SLOT_BYTES, len(record)))
            _write_at(descriptor, 0, record)
            os.fsync(descriptor)
        if is_new:
            _sync_directory(self.root)
        self._sequence = sequence

    # Model files

    def open_file(self, file: File) -> FileState:
        """Reserve room for `file` and say what of it is there: all of it is read and hashed."""
        path = file_path(self.root, file.digest)
        part = path.with_suffix(_PART)
        if path.exists():
            if _digest(path) == file.digest:
                return FileState(file.digest, ready=True, have=_all_of(file))
            path.replace(part)  # a card gone bad: what is still right need not be fetched again
        with _opened(part) as descriptor:
            os.posix_fallocate(descriptor, 0, file.size_bytes)
            os.ftruncate(descriptor, file.size_bytes)
            have = _true_chunks(descriptor, file)
        if file.name != PARAMS_FILE:
            return FileState(file.digest, ready=False, have=have)
        patch = path.with_suffix(_PATCH)
        if patch.exists() and not patch.stat().st_size:
            return FileState(file.digest, ready=False, have=have, patch_failed=True)
        if read_patch(self.root, file.digest) is not None:
            return FileState(file.digest, ready=False, have=have, patched=True)
        patch.unlink(missing_ok=True)  # it is damaged
        return FileState(file.digest, ready=False, have=have, base=self._base())

    def _base(self) -> Base | None:
        """The version that is noted, if its params are whole."""
        digests = {file.name: file.digest for file in self._model.files} if self._model else {}
        if self._model is None or PARAMS_FILE not in digests or MODEL_FILE not in digests:
            return None
        if not is_whole(self.root, digests[PARAMS_FILE]):
            return None
        return Base(self._model.version, digests[PARAMS_FILE], digests[MODEL_FILE])

    def write_chunk(self, file: File, index: int, data: bytes) -> None:
        """Keep one chunk, whose SHA-256 the caller has checked."""
        with _opened(file_path(self.root, file.digest).with_suffix(_PART)) as descriptor:
            _write_at(descriptor, index * file.chunk_bytes, data)

    def write_patch(self, file: File, patch: Patch) -> FileState:
        """Keep the patch that makes `file`; and say whether it is there, and what it starts from."""
        write_file(file_path(self.root, file.digest).with_suffix(_PATCH), messages.encode(patch))
        return self.open_file(file)

    def drop_patch(self, file: File) -> None:
        """Empty the patch of `file`, which needs no room: as long as the file is kept, none will be asked for."""
        with _opened(file_path(self.root, file.digest).with_suffix(_PATCH)) as descriptor:
            os.ftruncate(descriptor, 0)
            os.fsync(descriptor)
        _sync_directory(self.root / "files")

    def seal_file(self, file: File) -> FileState:
        """Sync the chunks and make them a model file, if their whole has the right SHA-256."""
        path = file_path(self.root, file.digest)
        part = path.with_suffix(_PART)
        if part.exists():
            with _opened(part) as descriptor:
                os.fsync(descriptor)
            part.replace(path)
            path.with_suffix(_PATCH).unlink(missing_ok=True)
            _sync_directory(path.parent)
        return self.open_file(file)  # a name proves nothing: this reads it, and takes the name away if it lies

    def note_model(self, model: Model) -> None:
        """Remember which files make the newest version, if all are there, for who predicts and whom a patch finds.

        A name that stands proves itself: nothing bears it before its SHA-256 was right.
        """
        if model != self._model and all(file_path(self.root, file.digest).exists() for file in model.files):
            write_file(self.root / "model", _dump(model))
            self._model = model

    def forget(self, keep_files: frozenset[bytes] | None, keep_residuals: frozenset[int]) -> None:
        """Delete every model file and residual that is not to be kept; None keeps all model files.

        Kept are also the newest whole version, and what a kept patch starts from.
        """
        if keep_files is not None:
            kept = {file.digest for file in self._model.files} if self._model else set()
            kept |= keep_files
            patches = (read_patch(self.root, digest) for digest in keep_files)
            bases = {patch.base_digest for patch in patches if patch is not None}
            _delete_but(self.root / "files", {digest.hex() for digest in kept | bases})
        _delete_but(self.root / "residual", {str(round_id) for round_id in keep_residuals})


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


def _all_of(file: File) -> frozenset[int]:
    return frozenset(range(len(file.chunk_digests)))


def _true_chunks(descriptor: int, file: File) -> frozenset[int]:
    return frozenset(
        index
        for index, expected in enumerate(file.chunk_digests)
        if hashlib.sha256(os.pread(descriptor, chunk_size(file, index), index * file.chunk_bytes)).digest() == expected
    )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_but(directory: Path, names: set[str]) -> None:
    for path in directory.iterdir():
        if path.name.removesuffix(_PART).removesuffix(_PATCH) not in names:
            path.unlink(missing_ok=True)
