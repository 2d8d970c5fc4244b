"""What the devices of a swarm have on flash: a little of their own, and files that they share.

Ten thousand devices fetch the same bytes. Each knows which chunks, files and patches are its own; the bytes are kept
once, in the depot, by their SHA-256. Whether they are right is found out as on a device: a chunk by its digest, a file
by that of its whole, a patch by what comes of it. The durable state is bytes, and read back from bytes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_agent.effects import Base, Durable, FileState
from engine.codec import patch as patches
from engine.codec.header import CodecError
from engine.frame import frame_of
from wire.messages import MODEL_FILE, PARAMS_FILE

if TYPE_CHECKING:
    from edge_agent.effects import Job
    from engine.frame import Frame
    from wire.messages import File, Patch


class Depot:
    """The bytes that devices hold, once for all of them. Grows with each version of the model."""

    def __init__(self) -> None:
        self._chunks: dict[bytes, bytes] = {}
        self._wholes: dict[bytes, bytes] = {}
        self._frames: dict[tuple[bytes, str], Frame] = {}
        self._made: dict[tuple[bytes, bytes, bytes], bool] = {}  # which patch makes which file, and does it?

    def keep_chunk(self, file: File, index: int, data: bytes) -> None:
        """Keep a chunk whose digest the agent has compared with the manifest's."""
        self._chunks.setdefault(file.chunk_digests[index], data)

    def is_sound(self, file: File) -> bool:
        """Do the chunks, all of which are here, make this file?"""
        if file.digest not in self._wholes:
            whole = b"".join(self._chunks[digest] for digest in file.chunk_digests)
            if hashlib.sha256(whole).digest() != file.digest:
                return False
            self._wholes[file.digest] = whole
        return True

    def makes(self, patch: Patch, file: File, model: bytes, train: str) -> bool:
        """Does this patch make `file`? From a file of the depot, or from what the base file `model` itself holds."""
        key = (file.digest, patch.base_digest, hashlib.sha256(patch.payload).digest())
        if key not in self._made:
            self._made[key] = self._apply(patch, file, self._frame(model, train))
        return self._made[key]

    def _apply(self, patch: Patch, file: File, frame: Frame) -> bool:
        base = self._wholes.get(patch.base_digest) or frame.own()
        if hashlib.sha256(base).digest() != patch.base_digest:
            return False
        try:
            params = patches.apply(frame, base, patch.payload)
        except CodecError:
            return False
        if hashlib.sha256(params).digest() != file.digest:
            return False
        self._wholes[file.digest] = params
        return True

    def _frame(self, model: bytes, train: str) -> Frame:
        if (model, train) not in self._frames:
            self._frames[model, train] = frame_of(self._wholes[model], train)
        return self._frames[model, train]


class Flash:
    """One device's flash."""

    __slots__ = ("_base", "_chunks", "_depot", "_patches", "_wholes", "durable")

    def __init__(self, depot: Depot) -> None:
        self.durable = b""
        self._depot = depot
        self._chunks: dict[bytes, set[int]] = {}
        self._wholes: set[bytes] = set()
        self._patches: dict[bytes, Patch | None] = {}  # digest of what it makes → it; None: one has failed
        self._base: Base | None = None  # the newest version that was whole

    def load(self, first_boot: int = 0) -> Durable:
        """The durable state; a new device's flash is empty."""
        return msgspec.msgpack.decode(self.durable, type=Durable) if self.durable else Durable(boot=first_boot)

    def save(self, durable: Durable) -> None:
        """Replace the durable state."""
        self.durable = msgspec.msgpack.encode(durable)

    def open_file(self, file: File) -> FileState:
        """What is there of `file`."""
        if file.digest in self._wholes:
            return FileState(file.digest, ready=True, have=frozenset(range(len(file.chunk_digests))))
        have = frozenset(self._chunks.get(file.digest, ()))
        if file.name != PARAMS_FILE:
            return FileState(file.digest, ready=False, have=have)
        if file.digest in self._patches:
            failed = self._patches[file.digest] is None
            return FileState(file.digest, ready=False, have=have, patched=not failed, patch_failed=failed)
        return FileState(file.digest, ready=False, have=have, base=self._base)

    def write_chunk(self, file: File, index: int, data: bytes) -> None:
        """Keep one chunk that the agent believes."""
        self._depot.keep_chunk(file, index, data)
        self._chunks.setdefault(file.digest, set()).add(index)

    def seal_file(self, file: File) -> FileState:
        """Make the chunks a file, if its whole has the right digest; else they go."""
        self._chunks.pop(file.digest)
        if self._depot.is_sound(file):
            self._keep_whole(file)
        return self.open_file(file)

    def write_patch(self, file: File, patch: Patch | None) -> FileState:
        """Keep the patch that makes `file`, or that none will do."""
        self._patches[file.digest] = patch
        return self.open_file(file)

    def prepare(self, job: Job) -> bool:
        """What a training child does first: make the parameters of their patch; False if they cannot be made."""
        digests = {file.name: file.digest for file in job.files}
        params = next(file for file in job.files if file.name == PARAMS_FILE)
        patch, model = self._patches.get(params.digest), digests[MODEL_FILE]
        if patch is not None:
            if patch.base_digest not in self._wholes and model not in self._wholes:
                return False
            if not self._depot.makes(patch, params, model, job.plan.train):
                return False
            self._keep_whole(params)
        if self._wholes.issuperset(digests.values()):
            self._base = Base(job.base_version, params.digest, model)
        return True

    def forget(self, keep_files: frozenset[bytes] | None) -> None:
        """Drop what is not to be kept, but for the noted version; None keeps all."""
        if keep_files is None:
            return
        noted = {self._base.params, self._base.model} if self._base is not None else set()
        bases = {patch.base_digest for patch in self._patches.values() if patch is not None}
        self._wholes &= keep_files | noted | bases
        self._chunks = {digest: have for digest, have in self._chunks.items() if digest in keep_files}
        self._patches = {digest: patch for digest, patch in self._patches.items() if digest in keep_files}

    def _keep_whole(self, file: File) -> None:
        self._wholes.add(file.digest)
        self._chunks.pop(file.digest, None)
        self._patches.pop(file.digest, None)
