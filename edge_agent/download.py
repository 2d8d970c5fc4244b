"""Fetching a model version: which chunks are on flash, which to ask for, which to believe.

    OpenFile → FileState → Want → Chunk … Chunk → SealFile → FileState(ready)

A chunk is believed when its SHA-256 stands in the signed manifest. What is on flash is asked of flash, never
remembered, so that a power cut costs at most the chunk that was being written.
"""

from edge_agent.effects import Effect, FileState, OpenFile, SealFile, WriteChunk
from wire import chunks
from wire.limits import RESEND_MS_MIN
from wire.messages import Chunk, File, Manifest, Want


class Download:
    """The fetch of one manifest's files. Pure: time is an argument."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._files = {file.digest: file for file in manifest.files}
        self._have: dict[bytes, set[int]] = {}  # known after FileState
        self._ready: set[bytes] = set()
        self._asked: set[tuple[bytes, int]] = set()
        self._ask_again_at_ms: int | None = None

    @property
    def complete(self) -> bool:
        """Every file is whole and on flash."""
        return len(self._ready) == len(self._files)

    @property
    def wake_at_ms(self) -> int | None:
        """When `wants` has something to repeat."""
        return self._ask_again_at_ms if self._asked else None

    def start(self) -> list[Effect]:
        """Ask flash what it holds."""
        return [OpenFile(file) for file in self._files.values()]

    def on_file_state(self, state: FileState) -> list[Effect]:
        """Flash answered. A file with all chunks is sealed; a seal that failed starts the file again."""
        file = self._files.get(state.digest)
        if file is None:
            return []
        self._have[file.digest] = set(state.have)
        if state.ready:
            self._ready.add(file.digest)
            return []
        self._ready.discard(file.digest)
        self._asked = {(digest, index) for digest, index in self._asked if digest != file.digest}
        return [SealFile(file)] if len(state.have) == len(file.chunk_digests) else []

    def on_chunk(self, chunk: Chunk) -> list[Effect]:
        """Keep the chunk if it is wanted and true; seal the file after its last one."""
        file = self._files.get(chunk.digest)
        if file is None or file.digest in self._ready or not chunks.accepts(file, chunk):
            return []
        have = self._have.get(file.digest)
        if have is None or chunk.index in have:
            return []
        have.add(chunk.index)
        self._asked.discard((file.digest, chunk.index))
        effects: list[Effect] = [WriteChunk(file, chunk.index, chunk.data)]
        if len(have) == len(file.chunk_digests):
            effects.append(SealFile(file))
        return effects

    def wants(self, now_ms: int) -> list[Want]:
        """What to ask for now: the next chunks once the last ones came, or the same again after a silence."""
        if self._asked and self._ask_again_at_ms is not None and now_ms < self._ask_again_at_ms:
            return []
        for file in self._incomplete():
            ranges = chunks.missing_ranges(file, self._have[file.digest])
            self._asked = {(file.digest, r.first + i) for r in ranges for i in range(r.count)}
            self._ask_again_at_ms = now_ms + RESEND_MS_MIN
            return [Want(file.digest, ranges)]
        self._asked.clear()
        return []

    def ask_afresh(self) -> None:
        """The link was lost: whatever was asked will not come."""
        self._asked.clear()
        self._ask_again_at_ms = None

    def _incomplete(self) -> list[File]:
        return [
            file
            for digest, file in self._files.items()
            if digest not in self._ready and digest in self._have and len(self._have[digest]) < len(file.chunk_digests)
        ]
