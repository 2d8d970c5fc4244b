"""Features on flash: what the frozen part of a model makes of a window, so that it runs once for each window.

    header    96 bytes: magic "HFTC", format, bytes of a record, digest of the frozen part; CRC-32
    record    number u64, window u64, label i32, CRC-32 of all the rest; features

Everything is little-endian. A round trains on the features of windows that mostly were there in the round before; only
those of new windows are computed. `number` is the window's in the sample store, `window` the start of its SHA-256, so
that a store begun anew is not mistaken for the old one. The file never grows beyond its bound: when it is full, the
lowest number gives way. Features of another frozen part are forgotten as a whole, when the file is opened.

Features outlive their windows here, with their labels, and can be *replayed* beside new ones, so that a device does
not unlearn what it can no longer see (Rusci et al. 2020, latent replay in 8 bits). Like windows, they never leave the
device. Nothing waits for the card: what a power cut tore fails its CRC, counts as missing, and is computed again.
Only the training child opens this file, and one runs at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import math
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edge_agent import flash
from edge_agent.samples import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

CHUNK: Final = 64  # windows computed and kept at a time: what a power cut costs at most
_HEADER: Final = struct.Struct("<4sHxxI32s")
_HEADER_BYTES: Final = 96
_MAGIC: Final = b"HFTC"
_FORMAT: Final = 1
_RECORD: Final = struct.Struct("<QQiI")
_SIGNED: Final = struct.Struct("<QQi")  # what of a record's head its CRC covers


class Replayed(NamedTuple):
    """Features of windows seen before, ascending by number."""

    features: NDArray[Any]  # [n, *shape]
    labels: NDArray[np.int32]  # [n], none of them unknown
    numbers: NDArray[np.uint64]  # [n]


class FeatureCache:
    """The features of one frozen part, `digest` (32 bytes), for windows of one store, in at most `bytes_max` bytes.

    Each has `shape` and `dtype`, 'int8' or 'float32'. Opening reads and checks the whole file.
    """

    def __init__(self, path: Path, digest: bytes, shape: tuple[int, ...], dtype: str, bytes_max: int) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype).newbyteorder("<")
        self._path = path
        self._record_bytes = _RECORD.size + math.prod(shape) * self.dtype.itemsize
        self._capacity = max(0, bytes_max - _HEADER_BYTES) // self._record_bytes
        self._header = _header(self._record_bytes, digest)
        self._heads: dict[int, tuple[int, int, int]] = {}  # number: (slot, window, label)
        self._unused: list[int] = []
        self._slot_count = 0  # whole ones in the file
        self._load()
        self._oldest = sorted(self._heads)  # a heap; what it holds beyond the heads is passed over

    def fetch(self, number: int, window: int) -> bytes | None:
        """Return the features kept for this window, or None."""
        slot, kept, _ = self._heads.get(number, (-1, -1, UNKNOWN))
        return self._read(slot) if slot >= 0 and kept == window else None

    def keep(self, number: int, window: int, label: int, features: bytes) -> None:
        """Keep the features of one window; where the cache is full of newer ones, do nothing."""
        if self._heads.get(number, (0, -1, UNKNOWN))[1:] == (window, label):
            return
        slot = self._slot_for(number)
        if slot is None:
            return
        checksum = zlib.crc32(features, zlib.crc32(_SIGNED.pack(number, window, label)))
        try:
            with self._path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), _RECORD.pack(number, window, label, checksum) + features, self._offset(slot))
        except OSError:
            self._unused.append(slot)
            raise
        self._heads[number] = (slot, window, label)
        heapq.heappush(self._oldest, number)

    def replayed(self, count: int, seed: int, may: Callable[[int], bool]) -> Replayed:
        """Draw up to `count` labelled windows from those whose number `may` be replayed: the same for the same seed."""
        numbers = [number for number, (_, _, label) in self._heads.items() if label != UNKNOWN and may(number)]
        key = (seed & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
        numbers.sort(key=lambda number: hashlib.sha256(key + number.to_bytes(8, "little")).digest())
        chosen = sorted(numbers[:count])
        content = b"".join(self._read(self._heads[number][0]) for number in chosen)
        return Replayed(
            np.frombuffer(content, self.dtype).reshape(len(chosen), *self.shape).astype(self.dtype.newbyteorder("=")),
            np.array([self._heads[number][2] for number in chosen], np.int32),
            np.array(chosen, np.uint64),
        )

    def _slot_for(self, number: int) -> int | None:
        """Return where to write `number`, freeing the place of the lowest number where the cache is full."""
        if number in self._heads:
            return self._heads.pop(number)[0]
        if self._unused:
            return self._unused.pop()
        if self._slot_count < self._capacity:
            self._slot_count += 1
            return self._slot_count - 1
        while self._oldest and self._oldest[0] not in self._heads:
            heapq.heappop(self._oldest)
        if not self._oldest or self._oldest[0] > number:
            return None
        return self._heads.pop(heapq.heappop(self._oldest))[0]

    def _load(self) -> None:
        """Find what is whole in the file; begin it anew where it is another's, or damaged."""
        if not self._path.exists() or not self._is_ours():
            flash.write_file(self._path, self._header)
        with self._path.open("rb") as file:
            file.seek(_HEADER_BYTES)
            self._slot_count = (os.fstat(file.fileno()).st_size - _HEADER_BYTES) // self._record_bytes
            for slot in range(self._slot_count):
                record = file.read(self._record_bytes)
                number, window, label, checksum = _RECORD.unpack_from(record)
                is_new = number > 0 and number not in self._heads
                if is_new and checksum == zlib.crc32(record[_RECORD.size :], zlib.crc32(record[: _SIGNED.size])):
                    self._heads[number] = (slot, window, label)
                else:
                    self._unused.append(slot)
        self._unused.reverse()  # taken from the end: the file grows no more than it must

    def _is_ours(self) -> bool:
        with self._path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            return header == self._header and os.fstat(file.fileno()).st_size <= self._offset(self._capacity)

    def _read(self, slot: int) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), self._record_bytes, self._offset(slot))[_RECORD.size :]

    def _offset(self, slot: int) -> int:
        return _HEADER_BYTES + slot * self._record_bytes


def features_through_cache(
    cache: FeatureCache,
    numbers: NDArray[np.uint64],
    labels: NDArray[np.int32],
    windows: NDArray[Any],
    compute: Callable[[NDArray[Any]], NDArray[Any]],
) -> NDArray[Any]:
    """Return the features of `windows`, [n, *shape], of which `compute` makes only what the cache does not have.

    `compute` gets some of the windows and returns their features in the cache's shape and dtype. A card that is full
    or gone costs the keeping, not the training.
    """
    found = np.zeros((len(windows), *cache.shape), cache.dtype.newbyteorder("="))
    prints = [_print_of(window) for window in windows]
    missing = []
    for at, number in enumerate(numbers.tolist()):
        kept = cache.fetch(number, prints[at])
        if kept is None:
            missing.append(at)
        else:
            found[at] = np.frombuffer(kept, cache.dtype).reshape(cache.shape)
            with contextlib.suppress(OSError):  # a label may have come since
                cache.keep(number, prints[at], int(labels[at]), kept)
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        found[chunk] = compute(windows[chunk])
        with contextlib.suppress(OSError):
            for at in chunk:
                cache.keep(int(numbers[at]), prints[at], int(labels[at]), found[at].astype(cache.dtype).tobytes())
    return found


def _header(record_bytes: int, digest: bytes) -> bytes:
    head = _HEADER.pack(_MAGIC, _FORMAT, record_bytes, digest)
    return (head + zlib.crc32(head).to_bytes(4, "little")).ljust(_HEADER_BYTES, b"\0")


def _print_of(window: NDArray[Any]) -> int:
    return int.from_bytes(hashlib.sha256(window.tobytes()).digest()[:8], "little")
