"""A device's flash: all that a power cut leaves.

The durable state is kept as bytes and read back from bytes, so that what a fresh agent knows is what the encoding
carries and nothing else. A file is a set of chunks until it is sealed. A torn chunk is kept as torn as it is: the
digests must find out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_agent.effects import Base, Durable, FileState
from wire.messages import MODEL_FILE, PARAMS_FILE

if TYPE_CHECKING:
    from edge_agent.effects import Job
    from wire.messages import File, Patch


class Flash:
    """The durable state, the model files and the residuals of one device."""

    def __init__(self) -> None:
        self.durable = b""
        self.residuals: dict[int, int] = {}  # round → the nonce of the update that left it
        self._chunks: dict[bytes, dict[int, bytes]] = {}
        self._sealed: dict[bytes, bytes] = {}
        self._patches: dict[bytes, Patch | None] = {}  # digest of what it makes → it; None: one has failed
        self._base: Base | None = None  # the newest version that was whole

    def read(self) -> Durable:
        """The durable state as a process finds it when it starts."""
        return decode(self.durable)

    def write(self, durable: Durable) -> None:
        """Replace the durable state; atomic, as a rename is."""
        self.durable = msgspec.msgpack.encode(durable)

    def write_chunk(self, digest: bytes, index: int, data: bytes) -> None:
        """Keep one chunk, or what became of it."""
        self._chunks.setdefault(digest, {})[index] = data

    def look(self, file: File) -> FileState:
        """What is there of `file`, by its digests."""
        if file.digest in self._sealed:
            return FileState(file.digest, ready=True, have=frozenset())
        chunks = self._chunks.get(file.digest, {})
        have = {i for i, data in chunks.items() if hashlib.sha256(data).digest() == file.chunk_digests[i]}
        state = FileState(file.digest, ready=False, have=frozenset(have))
        if file.name != PARAMS_FILE:
            return state
        if file.digest in self._patches:
            failed = self.has_dropped_patch(file.digest)
            return msgspec.structs.replace(state, patched=not failed, patch_failed=failed)
        is_there = self._base is not None and self._base.params in self._sealed
        return msgspec.structs.replace(state, base=self._base if is_there else None)

    def write_patch(self, file: File, patch: Patch | None) -> FileState:
        """Keep a patch, or that none will do."""
        self._patches[file.digest] = patch
        return self.look(file)

    def patch(self, digest: bytes) -> Patch | None:
        """The patch that makes the file with this digest, unless the file is there."""
        return None if digest in self._sealed else self._patches.get(digest)

    def has_dropped_patch(self, digest: bytes) -> bool:
        """Did a patch of this file fail, and is that still of use?"""
        return digest in self._patches and self._patches[digest] is None

    def complete(self, file: File, content: bytes) -> None:
        """Keep what a patch made, whose digest is right."""
        self._sealed[file.digest] = content
        self._chunks.pop(file.digest, None)
        self._patches.pop(file.digest, None)

    def note(self, job: Job) -> None:
        """Remember the version of this job, if it is whole."""
        digests = {file.name: file.digest for file in job.files}
        if all(digest in self._sealed for digest in digests.values()):
            self._base = Base(job.base_version, digests[PARAMS_FILE], digests[MODEL_FILE])

    def lose(self, digest: bytes) -> None:
        """A sealed file is gone."""
        self._sealed.pop(digest, None)

    def seal(self, file: File) -> FileState:
        """Make a file of its chunks if the digest of the whole is right; drop the chunks that are not."""
        state = self.look(file)
        if not state.ready:
            chunks = self._chunks.get(file.digest, {})
            whole = b"".join(chunks[i] for i in sorted(chunks))
            if hashlib.sha256(whole).digest() == file.digest:
                self._sealed[file.digest] = whole
                self._chunks.pop(file.digest, None)
                self._patches.pop(file.digest, None)
        return self.look(file)

    def rot(self, digest: bytes) -> None:
        """One chunk of this file is no longer what was written."""
        for index, data in self._chunks.get(digest, {}).items():
            self._chunks[digest][index] = data[:-1] + bytes([data[-1] ^ 1])
            return

    def sealed(self, digest: bytes) -> bytes | None:
        """The content of a sealed file, as a training child reads it."""
        return self._sealed.get(digest)

    def forget(self, keep_files: frozenset[bytes] | None, keep_residuals: frozenset[int]) -> None:
        """Delete everything but this, the noted version and what a kept patch starts from; None keeps every file."""
        self.residuals = {r: data for r, data in self.residuals.items() if r in keep_residuals}
        if keep_files is not None:
            self._chunks = {d: chunks for d, chunks in self._chunks.items() if d in keep_files}
            self._patches = {d: patch for d, patch in self._patches.items() if d in keep_files}
            bases = {patch.base_digest for patch in self._patches.values() if patch is not None}
            noted = {self._base.params, self._base.model} if self._base is not None else set()
            self._sealed = {d: data for d, data in self._sealed.items() if d in keep_files | bases | noted}


def decode(data: bytes) -> Durable:
    """The durable state in these bytes; a new device's flash is empty."""
    return msgspec.msgpack.decode(data, type=Durable) if data else Durable()
