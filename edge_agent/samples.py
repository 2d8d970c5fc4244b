"""The device's own examples: a bounded store of windows in one file. They never leave the device.

    header    96 bytes: magic "HSMP", format, number of dimensions, capacity, the dimensions; CRC-32
    record    number u64, label i32 (-1: not known yet), CRC-32 of number, label and window; float32 window

Everything is little-endian. Windows are numbered from 1 and never renumbered: window n lies in record
(n - 1) % capacity, so a full store forgets its oldest. A record that a power cut tore fails its CRC and counts as
empty. Appending does not wait for the card; `sync` does.

The agent imports this module and must stay small, so NumPy is loaded in `read_arrays` only, for the children. Several
processes may write (`edge-agent samples add` beside a running agent): each takes a lock for the moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from edge_agent import flash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

CAPACITY_MAX: Final = 100_000
LABEL_MAX: Final = 65_535
UNKNOWN: Final = -1
_DIMENSIONS_MAX: Final = 8
_HEADER: Final = struct.Struct("<4sHHI8I")
_HEADER_BYTES: Final = 96
_MAGIC: Final = b"HSMP"
_FORMAT: Final = 1
_RECORD: Final = struct.Struct("<QiI")
_SIGNED: Final = struct.Struct("<Qi")  # what of a record's head its CRC covers


class SamplesError(Exception):
    """The store cannot be used; the sentence says why, and how to mend it."""


class Arrays(NamedTuple):
    """Every whole record, oldest first."""

    windows: NDArray[np.float32]  # [n, *shape]
    labels: NDArray[np.int32]  # [n]; -1 is unknown
    numbers: NDArray[np.uint64]  # [n]


class Samples:
    """The store in one existing file; `create` makes one. Raises SamplesError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape, self.capacity = _read_header(path)
        self.window_bytes = 4 * math.prod(self.shape)
        self._record_bytes = _RECORD.size + self.window_bytes
        self._counted: tuple[tuple[int, int], tuple[int, int]] | None = None
        self._newest = 0  # as we left it; others may have written since

    def append(self, window: bytes, label: int = UNKNOWN) -> int:
        """Keep one window of little-endian float32 and return its number, which a later label names."""
        if len(window) != self.window_bytes or not UNKNOWN <= label <= LABEL_MAX:
            raise SamplesError(
                f"{self.path} keeps windows of {self.window_bytes} bytes with labels up to {LABEL_MAX}, "
                f"not {len(window)} bytes with label {label}"
            )
        with self._locked() as descriptor:
            number = self._next(descriptor)
            self._write(descriptor, number, label, window)
            self._newest = number
        return number

    def extend(self, windows: Sequence[bytes], labels: Sequence[int]) -> range:
        """Keep many windows, oldest first, and return their numbers."""
        with self._locked() as descriptor:
            first = self._next(descriptor)
            for offset, (window, label) in enumerate(zip(windows, labels, strict=True)):
                assert len(window) == self.window_bytes, "one call brings windows of one shape"
                self._write(descriptor, first + offset, label, window)
        return range(first, first + len(windows))

    def set_label(self, number: int, label: int) -> bool:
        """Label the window with this number; False when it is not, or no longer, in the store."""
        with self._locked() as descriptor:
            record = os.pread(descriptor, self._record_bytes, self._offset(number)) if number > 0 else b""
            if not 0 <= label <= LABEL_MAX or not _is_whole(record, self._record_bytes):
                return False
            if _RECORD.unpack_from(record)[0] != number:
                return False
            self._write(descriptor, number, label, record[_RECORD.size :])
        return True

    def count_labelled(self) -> int:
        """How many windows have a label. Only heads are read, and only when the file changed."""
        return self._counts()[0]

    def count(self) -> int:
        """How many windows there are."""
        return self._counts()[1]

    def _counts(self) -> tuple[int, int]:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_mtime_ns, status.st_size)
            if self._counted is None or self._counted[0] != stamp:
                labels = [label for _, label in self._heads(file.fileno())]
                self._counted = (stamp, (sum(label != UNKNOWN for label in labels), len(labels)))
        return self._counted[1]

    def read(self, number: int) -> tuple[bytes, int] | None:
        """(the window with this number, its label); None when it is not, or no longer, in the store."""
        with self._locked() as descriptor:
            record = os.pread(descriptor, self._record_bytes, self._offset(number)) if number > 0 else b""
        if not _is_whole(record, self._record_bytes) or _number(record) != number:
            return None
        return record[_RECORD.size :], _RECORD.unpack_from(record)[1]

    def sync(self) -> None:
        """Return when all that was appended is on flash."""
        with self._locked() as descriptor:
            os.fsync(descriptor)

    def _next(self, descriptor: int) -> int:
        """The number of the next window. All heads are read only where somebody else may have written."""
        if self._newest and self._is_at(descriptor, self._newest) and not self._is_at(descriptor, self._newest + 1):
            return self._newest + 1
        return max((number for number, _ in self._heads(descriptor)), default=0) + 1

    def _is_at(self, descriptor: int, number: int) -> bool:
        head = os.pread(descriptor, _RECORD.size, self._offset(number))
        return len(head) == _RECORD.size and _number(head) == number

    def _heads(self, descriptor: int) -> Iterator[tuple[int, int]]:
        """(number, label) of every record that has the right place; the newest only if it is whole."""
        heads = []
        for index in range(self.capacity):
            data = os.pread(descriptor, _RECORD.size, _HEADER_BYTES + index * self._record_bytes)
            if len(data) < _RECORD.size:
                break
            number, label, _ = _RECORD.unpack(data)
            if number > 0 and (number - 1) % self.capacity == index and label >= UNKNOWN:
                heads.append((number, label))
        if heads:
            newest = max(heads)
            record = os.pread(descriptor, self._record_bytes, self._offset(newest[0]))
            if not _is_whole(record, self._record_bytes):
                heads.remove(newest)
        return iter(heads)

    def _write(self, descriptor: int, number: int, label: int, window: bytes) -> None:
        checksum = zlib.crc32(window, zlib.crc32(_SIGNED.pack(number, label)))
        os.pwrite(descriptor, _RECORD.pack(number, label, checksum) + window, self._offset(number))

    def _offset(self, number: int) -> int:
        return _HEADER_BYTES + (number - 1) % self.capacity * self._record_bytes

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        with self.path.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes
            yield file.fileno()


def create(path: Path, shape: tuple[int, ...], capacity: int) -> Samples:
    """Make an empty store for windows of `shape`, or open the one that is there if it has that shape."""
    if not 1 <= len(shape) <= _DIMENSIONS_MAX or not all(1 <= size < 2**20 for size in shape):
        raise SamplesError(
            f"windows of shape {shape} cannot be kept: 1 to {_DIMENSIONS_MAX} dimensions, none of them 0"
        )
    if not 1 <= capacity <= CAPACITY_MAX:
        raise SamplesError(f"a store of {capacity} windows cannot be made: 1 to {CAPACITY_MAX} are possible")
    if not path.exists():
        dimensions = shape + (0,) * (_DIMENSIONS_MAX - len(shape))
        header = _HEADER.pack(_MAGIC, _FORMAT, len(shape), capacity, *dimensions)
        header += zlib.crc32(header).to_bytes(4, "little")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flash.write_file(path, header.ljust(_HEADER_BYTES, b"\0"))
    samples = Samples(path)
    if samples.shape != shape:
        raise SamplesError(f"{path} keeps windows of shape {samples.shape}, not {shape}: use another state directory")
    return samples


def is_held_out(number: int, rate: float) -> bool:
    """Whether window `number` measures and never trains: by a hash of its number, so the same for ever."""
    digest = hashlib.sha256(number.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") < rate * 2.0**64


def read_arrays(path: Path) -> Arrays:
    """Read every whole record, oldest first. Imports NumPy: for children and commands, never for the agent."""
    import numpy as np

    store = Samples(path)
    records: list[bytes] = []
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(_HEADER_BYTES)
        while len(records) < store.capacity and (record := file.read(_RECORD.size + store.window_bytes)):
            if _is_whole(record, _RECORD.size + store.window_bytes):
                records.append(record)
    records.sort(key=_number)
    heads = [_RECORD.unpack_from(record) for record in records]
    windows = np.frombuffer(b"".join(record[_RECORD.size :] for record in records), dtype="<f4")
    return Arrays(
        windows.astype(np.float32).reshape(len(records), *store.shape),
        np.array([label for _, label, _ in heads], dtype=np.int32),
        np.array([number for number, _, _ in heads], dtype=np.uint64),
    )


def _number(record: bytes) -> int:
    number: int = _RECORD.unpack_from(record)[0]
    return number


def _is_whole(record: bytes, record_bytes: int) -> bool:
    if len(record) != record_bytes:
        return False
    number, label, checksum = _RECORD.unpack_from(record)
    intact: bool = checksum == zlib.crc32(record[_RECORD.size :], zlib.crc32(_SIGNED.pack(number, label)))
    return number > 0 and intact


def _read_header(path: Path) -> tuple[tuple[int, ...], int]:
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError as error:
        raise SamplesError(f"there are no samples in {path}: add some with edge-agent samples add") from error
    size = _HEADER.size
    if len(header) < _HEADER_BYTES or zlib.crc32(header[:size]) != int.from_bytes(header[size : size + 4], "little"):
        raise SamplesError(f"{path} is no store of samples, or its header is damaged: move it away, and add them again")
    magic, format_, ndim, capacity, *dimensions = _HEADER.unpack_from(header)
    if magic != _MAGIC or format_ != _FORMAT or not 1 <= ndim <= _DIMENSIONS_MAX:
        raise SamplesError(f"{path} is a store of samples of another program version (format {format_})")
    return tuple(dimensions[:ndim]), capacity
