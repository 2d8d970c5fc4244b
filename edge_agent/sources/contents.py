"""Numbers in a file that nobody vouches for: .npy, .npz (its array x) or .csv (a sample a line), read piece by piece.

Whatever the bytes, the answer is arrays of float32, or a reason under which the file, or a line of it, is counted.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES: Final = (".npy", ".npz", ".csv")
FILE_BYTES_MAX: Final = 16 << 20
LINE_BYTES_MAX: Final = 16_384
ROWS: Final = 256  # lines that make a piece
_SEPARATORS: Final = bytes.maketrans(b",;\t", b"   ")
# What NumPy and zipfile raise over bytes that are no array: found by feeding them damaged files.
_UNREADABLE: Final = (
    OSError, EOFError, LookupError, MemoryError, RuntimeError, SyntaxError, TypeError, ValueError, ArithmeticError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, struct.error,
)  # fmt: skip


def pieces_of(path: Path, drop: Callable[[str], None]) -> Iterator[NDArray[np.float32]]:
    """Give the numbers of one file: its array, or its lines as samples [n, width]. What is broken is counted."""
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            drop("too large")
        elif path.suffix == ".csv":
            yield from _rows(path, drop)
        else:
            yield as_float32(_array(path.read_bytes(), path.suffix))
    except _UNREADABLE:
        drop("unreadable")


def as_float32(numbers: Any) -> NDArray[np.float32]:
    """Give integers or real numbers as float32, too large ones as infinity. Raises ValueError for anything else."""
    array = np.atleast_1d(np.asarray(numbers))
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError(f"{array.dtype} {array.shape} are no numbers")
    with np.errstate(over="ignore"):
        real: NDArray[np.float32] = array.astype(np.float32)
    return real


def numbers_in(line: bytes) -> NDArray[np.float32] | None:
    """Give the numbers of one line, float32 [n], apart by comma, semicolon, tab or space; None where it has others."""
    try:
        return as_float32([float(word) for word in line.translate(_SEPARATORS).split()])
    except ValueError:
        return None


def lines_of(blocks: Iterable[bytes], drop: Callable[[str], None]) -> Iterator[bytes]:
    """Give the lines that these blocks of bytes make; of one that is too long nothing is given, and it is counted."""
    line, is_too_long = b"", False
    for block in blocks:
        *whole, line = (line + block).split(b"\n")
        for each in whole:
            if not is_too_long:
                yield each
            is_too_long = False
        if len(line) > LINE_BYTES_MAX:
            if not is_too_long:
                drop("too long")
            line, is_too_long = b"", True
    if line and not is_too_long:
        yield line


def _array(data: bytes, suffix: str) -> NDArray[Any]:
    if suffix == ".npy":
        return _loaded(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.getinfo("x.npy").file_size > FILE_BYTES_MAX:
            raise ValueError("it unpacks to more than is read")
        return _loaded(archive.read("x.npy"))


def _loaded(data: bytes) -> NDArray[Any]:
    loaded: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


def _rows(path: Path, drop: Callable[[str], None]) -> Iterator[NDArray[np.float32]]:
    rows: list[NDArray[np.float32]] = []
    with path.open("rb") as file:
        for at, line in enumerate(lines_of(iter(lambda: file.read(LINE_BYTES_MAX), b""), drop)):
            row = numbers_in(line)
            if row is None and line.strip() and at > 0:  # the first may name the columns
                drop("not numbers")
            if rows and row is not None and (len(rows) == ROWS or len(row) != len(rows[0])):
                yield np.stack(rows)
                rows = []
            if row is not None:
                rows.append(row)
    if rows:
        yield np.stack(rows)
