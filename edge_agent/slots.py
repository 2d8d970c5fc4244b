"""The device's own tuned model on flash: the newest file and the one before it, and which of them to load.

    tuned/<sha-256>   a model file, named by its digest
    tuned/current     the digests of the newest file and of the one before it

A store writes the new file beside the old ones, then `current`, then deletes what `current` no longer names. Each file
comes by `flash.write_file`: whole on flash before its name is there. So wherever the power goes, `current` names files
that are whole, the old model or the new; and a file that the card spoils later is found out by its digest, and the one
before it is loaded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_agent.flash import read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

_DIGEST_BYTES = 32
_CURRENT = "current"


def store(root: Path, model: bytes) -> None:
    """Make `model` the newest tuned model under `root`; returns when it is on flash. OSError is the caller's."""
    directory = root / "tuned"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(model).digest()
    kept = [known for known in _named(directory) if known != digest and _whole(directory, known) is not None]
    write_file(directory / digest.hex(), model)
    _point_to(directory, [digest, *kept[:1]])


def load(root: Path) -> bytes | None:
    """Return the newest tuned model under `root` that is whole on flash; None where there is none."""
    directory = root / "tuned"
    whole = (_whole(directory, digest) for digest in _named(directory))
    return next((model for model in whole if model is not None), None)


def roll_back(root: Path) -> bytes | None:
    """Forget the newest tuned model (one that turned out worse) and return the one before it; None where none is left.

    What is forgotten is what `load` would have returned.
    """
    directory = root / "tuned"
    whole = [digest for digest in _named(directory) if _whole(directory, digest) is not None]
    if whole:
        _point_to(directory, whole[1:])
    return load(root)


def _named(directory: Path) -> list[bytes]:
    """Return the digests in `current`, newest first; none where it is absent or damaged."""
    data = read_file(directory / _CURRENT) or b""
    if len(data) % _DIGEST_BYTES:
        return []
    return [data[first : first + _DIGEST_BYTES] for first in range(0, len(data), _DIGEST_BYTES)]


def _whole(directory: Path, digest: bytes) -> bytes | None:
    model = read_file(directory / digest.hex())
    return model if model is not None and hashlib.sha256(model).digest() == digest else None


def _point_to(directory: Path, digests: list[bytes]) -> None:
    """Write `current`, then delete every other file: models no longer named, and what a cut left behind."""
    write_file(directory / _CURRENT, b"".join(digests))
    keep = {digest.hex() for digest in digests} | {_CURRENT}
    for path in directory.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)
