"""Fetching chunks of a file by HTTP: a thread that asks for one range after the other, and posts what it gets.

    GET {path of the manifest's url}/{digest in hex}
    Range: bytes=first-last                              206 with exactly these bytes, or it has failed

A chunk is posted only when its SHA-256 stands in the manifest, so any server will do: a file server, a cache, a bucket.
A server that knows no ranges answers 200 with the whole file, which is taken where it is small. There is no patience
here: one failure ends the thread and is posted, and the agent asks its coordinator instead.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edge_agent.effects import Fetched, FetchFailed, FetchRanges
from wire import chunks
from wire.limits import WANT_CHUNKS_MAX
from wire.messages import Chunk

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from wire.messages import File

SILENCE_S: Final = 20.0  # for a connection, and for any one read
CHUNK_S: Final = 100.0  # for one chunk, however it trickles: less than the agent's patience
_PIECE_BYTES: Final = 16 * 1024


class FetchError(Exception):
    """The server does not give what was asked for; the sentence says what it did."""


class Fetcher:
    """Fetches in one thread at a time. `post` takes the events and `count` numbers of bytes, both in that thread.

    `ca_file` is believed beside the system's authorities, as the MQTT server's own authority is.
    """

    def __init__(
        self,
        post: Callable[[Fetched | FetchFailed], None],
        count: Callable[[int], None],
        ca_file: Path | None = None,
    ) -> None:
        self._post = post
        self._count = count
        self._ca_file = ca_file
        self._newest: FetchRanges | None = None

    def fetch(self, wanted: FetchRanges) -> None:
        """Start to fetch these chunks. What was asked for before ends with the chunk that it is at."""
        self._newest = wanted
        threading.Thread(target=self._run, args=(wanted,), name="ranges", daemon=True).start()

    def stop(self) -> None:
        """Post nothing more."""
        self._newest = None

    def _run(self, wanted: FetchRanges) -> None:
        import http.client

        try:
            for chunk in self._chunks(wanted):
                if self._newest is not wanted:
                    return
                self._post(Fetched(chunk.digest, chunk.index, chunk.data))
        except (OSError, ValueError, FetchError, http.client.HTTPException) as error:  # TLS errors are OSErrors
            if self._newest is wanted:
                self._post(FetchFailed(wanted.file.digest, f"{type(error).__name__}: {error}"))

    def _chunks(self, wanted: FetchRanges) -> Iterator[Chunk]:
        file, path = wanted.file, f"{urlsplit(wanted.url).path.rstrip('/')}/{wanted.file.digest.hex()}"
        connection = self._connect(wanted.url)
        try:
            for index in (index for r in wanted.ranges for index in range(r.first, r.first + r.count)):
                first, size = index * file.chunk_bytes, chunks.chunk_size(file, index)
                connection.request("GET", path, headers={"Range": f"bytes={first}-{first + size - 1}"})
                response = connection.getresponse()
                if response.status == 200 and len(file.chunk_digests) <= WANT_CHUNKS_MAX:
                    yield from self._whole(response, file)
                    return
                if response.status != 206:
                    raise FetchError(f"{wanted.url} answers {response.status} to a range of {file.name}")
                yield self._true(file, index, self._read(response, size))
        finally:
            connection.close()

    def _whole(self, response: http.client.HTTPResponse, file: File) -> Iterator[Chunk]:
        """All chunks of a file from one answer: the agent takes those that it lacks."""
        content = self._read(response, file.size_bytes)
        for index in range(len(file.chunk_digests)):
            first = index * file.chunk_bytes
            yield self._true(file, index, content[first : first + file.chunk_bytes])

    def _true(self, file: File, index: int, data: bytes) -> Chunk:
        chunk = Chunk(file.digest, index, data)
        if not chunks.accepts(file, chunk):
            raise FetchError(f"chunk {index} of {file.name} is not what the manifest says")
        return chunk

    def _read(self, response: http.client.HTTPResponse, size: int) -> bytes:
        """Exactly `size` bytes of body, and not more: the length is checked before anything is read."""
        if response.length != size:
            raise FetchError(f"the answer has {response.length} bytes where {size} were asked for")
        until, content = time.monotonic() + CHUNK_S, bytearray()
        while len(content) < size:
            piece = response.read1(_PIECE_BYTES)
            self._count(len(piece))
            content += piece
            if not piece or time.monotonic() > until:
                raise FetchError(f"only {len(content)} of {size} bytes came")
        response.read()  # nothing more, and only now http.client takes the next request
        return bytes(content)

    def _connect(self, url: str) -> http.client.HTTPConnection:
        import http.client
        import ssl

        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "https":
            return http.client.HTTPConnection(host, parts.port, timeout=SILENCE_S)
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._ca_file is not None:
            context.load_verify_locations(self._ca_file)
        return http.client.HTTPSConnection(host, parts.port, timeout=SILENCE_S, context=context)
