"""Fetching a model version: which chunks are on flash, which to ask for, which to believe.

    OpenFile → FileState → Want → Chunk … Chunk → SealFile → FileState(ready)

A chunk is believed when its SHA-256 stands in the signed manifest. What is on flash is asked of flash, never
remembered, so that a power cut costs at most the chunk that was being written. Who hears nothing asks again, and
waits twice as long each time.
"""

from typing import Final

from edge_agent.effects import Effect, FileState, OpenFile, SealFile, WriteChunk
from wire import chunks
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN
from wire.messages import Chunk, File, Manifest, Want

SEALS_MAX: Final = 3  # a file whose chunks are all right and that still cannot be sealed so often never will be


class Download:
    """The fetch of one manifest's files. Pure: time is an argument."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.impossible = ""  # name of a file whose chunks are all right and whose whole is not: a wrong manifest
        self._files = {file.digest: file for file in manifest.files}
        self._have: dict[bytes, set[int]] = {}  # known after FileState
        self._seals: dict[bytes, int] = {}  # how often each file was to be sealed
        self._ready: set[bytes] = set()
        self._asked: set[tuple[bytes, int]] = set()
        self._pause_ms = RESEND_MS_MIN
        self._ask_again_at_ms = 0

    @property
    def complete(self) -> bool:
        """Every file is whole and on flash."""
        return len(self._ready) == len(self._files)

    @property
    def wake_at_ms(self) -> int | None:
        """When `wants` has something to repeat."""
        return self._ask_again_at_ms if self._asked and not self.complete else None

    def start(self) -> list[Effect]:
        """Ask flash what it holds."""
        return [OpenFile(file) for file in self._files.values()]

    def on_file_state(self, state: FileState) -> list[Effect]:
        """Flash answered. A file with all chunks is sealed; after a seal that failed, what is missing is fetched."""
        file = self._files.get(state.digest)
        if file is None or file.digest in self._ready:
            return []  # not ours, or an answer from before the file was whole
        self._have[file.digest] = set(state.have)
        self._asked = {(digest, index) for digest, index in self._asked if digest != file.digest}
        if state.ready:
            self._ready.add(file.digest)
            return []
        return self._seal_if_full(file)

    def on_chunk(self, chunk: Chunk, now_ms: int) -> list[Effect]:
        """Keep the chunk if it is wanted and true; seal the file after its last one."""
        file = self._files.get(chunk.digest)
        if file is None or file.digest in self._ready or not chunks.accepts(file, chunk):
            return []
        have = self._have.get(file.digest)
        if have is None or chunk.index in have:
            return []
        have.add(chunk.index)
        self._asked.discard((file.digest, chunk.index))
        # On a slow link eight chunks take longer than one pause: patience counts from the last one that came.
        self._pause_ms = RESEND_MS_MIN
        self._ask_again_at_ms = now_ms + self._pause_ms
        return [WriteChunk(file, chunk.index, chunk.data), *self._seal_if_full(file)]

    def wants(self, now_ms: int) -> list[Want]:
        """What to ask for now: the next chunks once the last ones came, or the same again after a silence."""
        if self._asked and now_ms < self._ask_again_at_ms:
            return []
        file = self._first_incomplete()
        if file is None:
            self._asked.clear()
            return []
        if self._asked:
            self._pause_ms = min(2 * self._pause_ms, RESEND_MS_MAX)
        ranges = chunks.missing_ranges(file, self._have[file.digest])
        self._asked = {(file.digest, r.first + i) for r in ranges for i in range(r.count)}
        self._ask_again_at_ms = now_ms + self._pause_ms
        return [Want(file.digest, ranges)]

    def ask_afresh(self) -> None:
        """The link was lost, or the coordinator is another: whatever was asked will not come."""
        self._asked.clear()
        self._pause_ms = RESEND_MS_MIN

    def _seal_if_full(self, file: File) -> list[Effect]:
        if len(self._have[file.digest]) < len(file.chunk_digests):
            return []
        seals = self._seals.get(file.digest, 0)
        if seals == SEALS_MAX:
            self.impossible = file.name
            return []
        self._seals[file.digest] = seals + 1
        return [SealFile(file)]

    def _first_incomplete(self) -> File | None:
        for digest, file in self._files.items():
            have = self._have.get(digest)
            if have is not None and digest not in self._ready and len(have) < len(file.chunk_digests):
                return file
        return None
