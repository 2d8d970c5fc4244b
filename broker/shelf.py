"""What devices ask for, at hand: the files of the newest version, and what leads to it from older ones.

A round leaves a patch from its parent in the store. From an older version it takes the sum of several, which is made
when the first device asks for it, and kept: whoever slept as long gets the same bytes, and a longer sum begins with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.codec import patch
from wire import chunks
from wire.limits import CHUNK_BYTES_MAX
from wire.messages import Patch

if TYPE_CHECKING:
    from broker.effects import SendChunk, SendPatch
    from broker.store import Store
    from engine.frame import Frame
    from wire.messages import Chunk

WAYS_MAX: Final = 64
SUMMED_BYTES_MAX: Final = 200_000  # what takes about a second to add up; who slept longer fetches the file


class Shelf:
    """Reads the store once for many devices. `forget` after each new version."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[bytes, bytes] = {}
        self._ways: dict[int, tuple[int, bytes]] = {}  # base version → the version it leads to, and the patch
        self._nothing = b""  # the patch to the version that one has, for whom the base file holds the wanted one

    def forget(self) -> None:
        """Let the files go that nobody will want any more. Patches stay true."""
        self._files.clear()

    def chunk(self, wanted: SendChunk) -> Chunk:
        """Read one chunk. Raises StoreError."""
        digest = wanted.file.digest
        if digest not in self._files:
            self._files[digest] = self._store.blob(digest)
        return chunks.chunk_at(self._files[digest], wanted.file, wanted.index)

    def patch(self, wanted: SendPatch, frame: Frame) -> Patch | None:
        """Make the patch; None where there is no way, or where it is no better than the chunks.

        `frame` is one of the model's: of any scale epoch. Raises StoreError.
        """
        base_digest = self._store.params_digest(wanted.base_version)
        way = self._way(wanted, frame)
        chunks_bytes = sum(chunks.chunk_size(part.file, part.index) for part in wanted.otherwise)
        if base_digest is None or way is None or len(way) >= min(chunks_bytes, CHUNK_BYTES_MAX + 1):
            return None
        return Patch(wanted.file.digest, wanted.base_version, base_digest, way)

    def _way(self, wanted: SendPatch, frame: Frame) -> bytes | None:
        """The sum of the patches between the two versions, of as few parts as are known."""
        if wanted.base_version == wanted.model_version:
            self._nothing = self._nothing or patch.merge(frame, [])
            return self._nothing
        single = self._store.patches(wanted.base_version, wanted.model_version)
        parts, at = [], wanted.base_version
        while single and at < wanted.model_version:
            to, known = self._ways.get(at, (at + 1, b""))
            if not known or to > wanted.model_version:
                to, known = at + 1, single[at - wanted.base_version]
            parts.append(known)
            at = to
        if not parts or sum(map(len, parts)) > SUMMED_BYTES_MAX:
            return None
        way = parts[0] if len(parts) == 1 else patch.merge(frame, parts)
        self._ways.pop(wanted.base_version, None)  # the newest at the end
        self._ways[wanted.base_version] = wanted.model_version, way
        for base_version in list(self._ways)[:-WAYS_MAX]:
            del self._ways[base_version]
        return way
