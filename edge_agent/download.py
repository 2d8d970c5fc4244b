"""Fetching a model version: what is on flash, what to ask for, what to believe.

    OpenFile → FileState → Want → Chunk … Chunk → SealFile → FileState(ready)
                         → Want(base_version) → Patch → WritePatch → FileState(patched)
                         → FetchRanges → Fetched … Fetched → SealFile → FileState(ready)

A chunk is believed when its SHA-256 stands in the signed manifest, a patch when what it makes has the right one, which
the training child finds out. What is on flash is asked of flash, never remembered, so that a power cut costs at most
the chunk that was being written. Who hears nothing asks again, and waits twice as long each time.

Of params.bin a patch is asked for: from an older version that flash holds whole, or else from the one that model.tflite
holds, as the manifest says. That file is fetched with it, so it need not be there yet. Other files of more than one
chunk come by HTTP where the manifest names a place; after one failure there, this download asks the coordinator.
"""

from typing import Final, TypeAlias

from msgspec import Struct, field

from edge_agent.effects import (
    Base,
    Effect,
    Fetched,
    FetchFailed,
    FetchRanges,
    FileState,
    OpenFile,
    SealFile,
    WriteChunk,
    WritePatch,
)
from wire import chunks
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN, WANT_CHUNKS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Chunk, File, Manifest, Patch, Want

SEALS_MAX: Final = 3  # a file whose chunks are all right and that still cannot be sealed so often never will be
HTTP_PATIENCE_MS: Final = 240_000  # since its last chunk; whoever fetches gives up earlier, and says so

Arrival: TypeAlias = FileState | Chunk | Patch | Fetched | FetchFailed


class DownloadCheckpoint(Struct, frozen=True):
    """What a download remembers beside its manifest. Files go by their digests."""

    impossible: str = ""  # name of a file whose chunks are all right and whose whole is not: a wrong manifest
    have: dict[bytes, frozenset[int]] = field(default_factory=dict)  # known after FileState
    seals: dict[bytes, int] = field(default_factory=dict)  # how often each file was to be sealed
    ready: frozenset[bytes] = frozenset()
    base: Base | None = None  # what a patch of params.bin may start from
    may_patch: bool = True  # until a patch came, or chunks in its place: one try a download
    http_failed: bool = False
    asked: frozenset[tuple[bytes, int]] = frozenset()
    by_http: bool = False  # what is asked for
    pause_ms: int = RESEND_MS_MIN
    ask_again_at_ms: int = 0


class Download:
    """The fetch of one manifest's files. Pure: time is an argument."""

    def __init__(self, manifest: Manifest, start: DownloadCheckpoint | None = None) -> None:
        start = start or DownloadCheckpoint()
        self.manifest = manifest
        self.impossible = start.impossible
        self._files = {file.digest: file for file in manifest.files}
        self._model = next((file.digest for file in manifest.files if file.name == MODEL_FILE), b"")
        self._have = {digest: set(have) for digest, have in start.have.items()}
        self._seals = dict(start.seals)
        self._ready = set(start.ready)
        self._base = start.base
        self._may_patch = start.may_patch
        self._url = "" if start.http_failed else manifest.url
        self._asked = set(start.asked)
        self._by_http = start.by_http
        self._pause_ms = start.pause_ms
        self._ask_again_at_ms = start.ask_again_at_ms

    def checkpoint(self) -> DownloadCheckpoint:
        """What it remembers now."""
        return DownloadCheckpoint(
            impossible=self.impossible,
            have={digest: frozenset(have) for digest, have in self._have.items()},
            seals=dict(self._seals),
            ready=frozenset(self._ready),
            base=self._base,
            may_patch=self._may_patch,
            http_failed=self._url != self.manifest.url,
            asked=frozenset(self._asked),
            by_http=self._by_http,
            pause_ms=self._pause_ms,
            ask_again_at_ms=self._ask_again_at_ms,
        )

    @property
    def complete(self) -> bool:
        """Every file is whole and on flash, or a patch that makes it."""
        return len(self._ready) == len(self._files)

    @property
    def wake_at_ms(self) -> int | None:
        """When `asks` has something to repeat."""
        return self._ask_again_at_ms if self._asked and not self.complete else None

    def start(self) -> list[Effect]:
        """Ask flash what it holds."""
        return [OpenFile(file) for file in self._files.values()]

    def handle(self, event: Arrival, now_ms: int) -> list[Effect]:
        """What follows from anything that a download waits for."""
        match event:
            case FileState():
                return self.on_file_state(event)
            case Chunk():
                return self.on_chunk(event, now_ms)
            case Patch():
                return self.on_patch(event)
            case Fetched(digest=digest, index=index, data=data):  # where it came from does not matter
                return self.on_chunk(Chunk(digest, index, data), now_ms)
            case FetchFailed():
                self.on_fetch_failed()
                return []

    def on_file_state(self, state: FileState) -> list[Effect]:
        """Flash answered. A file with all chunks is sealed; after a seal that failed, what is missing is fetched."""
        file = self._files.get(state.digest)
        if file is None or file.digest in self._ready:
            return []  # not ours, or an answer from before the file was whole
        self._have[file.digest] = set(state.have)
        self._forget_asked(file)
        if state.ready or state.patched:
            self._ready.add(file.digest)
            return []
        if file.name == PARAMS_FILE:
            self._base = None if state.patch_failed else self._base_of(state)
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
        if file.name == PARAMS_FILE:
            self._may_patch = False  # the coordinator has no patch, or none that is worth it
        # On a slow link eight chunks take longer than one pause: patience counts from the last one that came.
        self._pause_ms = RESEND_MS_MIN
        self._ask_again_at_ms = now_ms + (HTTP_PATIENCE_MS if self._by_http else self._pause_ms)
        return [WriteChunk(file, chunk.index, chunk.data), *self._seal_if_full(file)]

    def on_fetch_failed(self) -> None:
        """From now on everything is asked of the coordinator."""
        self._url = ""
        if self._by_http:
            self._asked.clear()

    def on_patch(self, patch: Patch) -> list[Effect]:
        """Keep the patch if it makes the file that is wanted from the base that was named."""
        file, base = self._files.get(patch.digest), self._base
        if file is None or file.name != PARAMS_FILE or file.digest in self._ready or not self._may_patch:
            return []
        if base is None or patch.base_version != base.version or base.params not in (b"", patch.base_digest):
            return []
        self._may_patch = False
        self._forget_asked(file)
        self._have.pop(file.digest, None)  # flash will say
        return [WritePatch(file, patch)]

    def asks(self, now_ms: int, bytes_left: int | None = None) -> list[Want | FetchRanges]:
        """What to ask for now: the next chunks once the last ones came, or the same again after a silence.

        No more of them than fit into `bytes_left`, but one. Nothing before flash has answered for every file: each has
        its room then, and no byte is fetched of a version of which a part would not fit.
        """
        if not self._asked and not self._files.keys() <= self._have.keys() | self._ready:
            return []
        if self._asked and now_ms < self._ask_again_at_ms:
            return []
        if self._asked and self._by_http:
            self.on_fetch_failed()
        file = self._first_incomplete()
        if file is None:
            self._asked.clear()
            return []
        if self._asked:
            self._pause_ms = min(2 * self._pause_ms, RESEND_MS_MAX)
        most = WANT_CHUNKS_MAX if bytes_left is None else max(1, bytes_left // file.chunk_bytes)
        ranges = chunks.missing_ranges(file, self._have[file.digest], most)
        self._asked = {(file.digest, r.first + i) for r in ranges for i in range(r.count)}
        base_version = self._base.version if self._base and self._may_patch and file.name == PARAMS_FILE else 0
        self._by_http = bool(self._url) and not base_version and len(file.chunk_digests) > 1
        if self._by_http:
            self._ask_again_at_ms = now_ms + HTTP_PATIENCE_MS
            return [FetchRanges(self._url, file, ranges)]
        self._ask_again_at_ms = now_ms + self._pause_ms
        return [Want(file.digest, ranges, base_version)]

    def ask_afresh(self) -> None:
        """The link was lost, or the coordinator is another: whatever was asked of it will not come."""
        if not self._by_http:
            self._asked.clear()
        self._pause_ms = RESEND_MS_MIN

    def pause(self) -> None:
        """Ask for nothing more until `asks` is called again. What was asked for, by HTTP too, may still come."""
        self._asked.clear()
        self._pause_ms = RESEND_MS_MIN

    def _base_of(self, state: FileState) -> Base | None:
        """What a patch may start from: the version on flash, if it is of the same base file, else that file's own."""
        if state.base is not None and state.base.model == self._model:
            return state.base
        own = self.manifest.base_version
        return Base(own, b"", self._model) if own and self._model else None

    def _forget_asked(self, file: File) -> None:
        self._asked = {(digest, index) for digest, index in self._asked if digest != file.digest}

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
