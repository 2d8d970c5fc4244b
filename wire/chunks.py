"""A large file as chunks that fit one MQTT payload, and what of it is still wanted.

A file is named by its SHA-256 and listed in a manifest with the SHA-256 of every chunk, so each chunk proves
itself when it arrives, in any order and over any number of connections. Which chunks a device has is the device's
business (its flash knows); these functions only compute.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from wire import limits
from wire.messages import Chunk, File, Range

if TYPE_CHECKING:
    from collections.abc import Collection


def split(name: str, data: bytes, chunk_bytes: int = limits.CHUNK_BYTES_MAX) -> File:
    """Describe `data` as the file `name` in chunks of `chunk_bytes`. Raises ValueError when it breaks a limit."""
    if not 1 <= len(data) <= limits.FILE_BYTES_MAX:
        raise ValueError(f"file {name} has {len(data)} bytes; 1 to {limits.FILE_BYTES_MAX} can be distributed")
    if not 1 <= chunk_bytes <= limits.CHUNK_BYTES_MAX or len(data) > chunk_bytes * limits.FILE_CHUNKS_MAX:
        raise ValueError(f"file {name} of {len(data)} bytes cannot be cut into chunks of {chunk_bytes} bytes")
    digests = tuple(
        hashlib.sha256(data[start : start + chunk_bytes]).digest() for start in range(0, len(data), chunk_bytes)
    )
    return File(name, hashlib.sha256(data).digest(), len(data), chunk_bytes, digests)


def chunk_at(data: bytes, file: File, index: int) -> Chunk:
    """Cut chunk `index` of `file`, whose whole content is `data`, out of it."""
    assert len(data) == file.size_bytes, f"{len(data)} bytes are not file {file.name} of {file.size_bytes}"
    start = index * file.chunk_bytes
    return Chunk(file.digest, index, data[start : start + file.chunk_bytes])


def chunk_size(file: File, index: int) -> int:
    """How many bytes chunk `index` of `file` has: all but the last are full."""
    return min(file.chunk_bytes, file.size_bytes - index * file.chunk_bytes)


def missing_ranges(file: File, have: Collection[int], limit: int = limits.WANT_CHUNKS_MAX) -> tuple[Range, ...]:
    """The first `limit` chunks of `file` that are not in `have`, as ranges for one want; () when none is missing.

    `limit` above WANT_CHUNKS_MAX counts as WANT_CHUNKS_MAX: one want may not ask for more.
    """
    ranges: list[Range] = []
    left = min(limit, limits.WANT_CHUNKS_MAX)
    for index in range(len(file.chunk_digests)):
        if left == 0:
            break
        if index in have:
            continue
        left -= 1
        if ranges and ranges[-1].first + ranges[-1].count == index:
            ranges[-1] = Range(ranges[-1].first, ranges[-1].count + 1)
        else:
            ranges.append(Range(index, 1))
    return tuple(ranges)


def accepts(file: File, chunk: Chunk) -> bool:
    """Whether `chunk` is one of `file`: its file, its place, its length and its SHA-256 all hold."""
    return (
        chunk.digest == file.digest
        and chunk.index < len(file.chunk_digests)
        and len(chunk.data) == chunk_size(file, chunk.index)
        and hashlib.sha256(chunk.data).digest() == file.chunk_digests[chunk.index]
    )
