"""Ed25519 keys (RFC 8032): how a device and a coordinator sign, and how each names the other's key.

A private key is its 32-byte seed, kept in a one-line text file that nobody else may read. A public key travels as
text, `ed25519:` and 43 letters of base64url, so that it can be read over the phone, pasted into an enrolment
command and compared by eye. One key has one text.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from typing import TYPE_CHECKING, Final

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from wire.envelope import SIGNATURE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from wire.envelope import Sign, Verify

SEED_BYTES: Final = 32
_PUBLIC_PREFIX: Final = "ed25519:"
_PRIVATE_PREFIX: Final = "ed25519-private:"
_FILE_BYTES_MAX: Final = 256


class KeyTextError(ValueError):
    """Not the text of a key, or not a private file. The sentence says which, and how to mend it."""


def generate() -> bytes:
    """Return a new private key: a 32-byte seed from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def save_private(path: Path, seed: bytes) -> None:
    """Write `seed` to a new file with mode 0600, and through to the disk.

    Raises KeyTextError when the file exists: a device that loses its key loses its place in the fleet.
    """
    text = _PRIVATE_PREFIX + _to_text(seed) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise KeyTextError(f"{path} exists: a private key is never overwritten; move it away first") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_seed(path: Path) -> bytes:
    """Read what `save_private` wrote. Raises KeyTextError for a file that others may read, or that is no key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise KeyTextError(f"cannot read the private key {path}: {error.strerror}") from error
    if mode & _too_open(path):
        raise KeyTextError(f"{path} is a private key that others may read (mode {mode:04o}): run chmod 600 {path}")
    return _from_text(content.decode("ascii", "replace").removesuffix("\n"), _PRIVATE_PREFIX, f"the content of {path}")


def _too_open(path: Path) -> int:
    """The mode bits that a private key may not have.

    systemd 254 and newer gives a unit its credentials by an access list, which shows as r--r-----, in a directory that
    nobody else may enter: there, and only there, the bit of the group means nothing.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return 0o037 if directory and str(path.absolute().parent) == directory.rstrip("/") else 0o077


def load_signer(path: Path) -> Sign:
    """Return the signing function of the key in `path`; errors as `load_seed`."""
    return signer(load_seed(path))


def signer(seed: bytes) -> Sign:
    """Return a function that signs with `seed`: bytes → 64 bytes, always the same for the same bytes."""
    _, private = crypto_sign_seed_keypair(seed)
    return lambda message: crypto_sign(message, private)[:SIGNATURE_BYTES]


def public_text(seed: bytes) -> str:
    """Return the text of the public key that belongs to `seed`."""
    public, _ = crypto_sign_seed_keypair(seed)
    return _PUBLIC_PREFIX + _to_text(public)


def verifier(public_text: str) -> Verify:
    """Return a function (message, signature) → bool for the key that `public_text` names; KeyTextError if none.

    Nothing verifies under a key of small order, which is none that anybody generates.
    """
    raw = _from_text(public_text, _PUBLIC_PREFIX, f"{public_text[:80]!r}")

    def holds(message: bytes, signature: bytes) -> bool:
        if len(signature) != SIGNATURE_BYTES:  # signature and message are checked as one string
            return False
        try:
            crypto_sign_open(signature + message, raw)
        except BadSignatureError:
            return False
        return True

    return holds


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _from_text(text: str, prefix: str, what: str) -> bytes:
    encoded = text.removeprefix(prefix)
    try:
        raw = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(prefix) or len(raw) != SEED_BYTES or _to_text(raw) != encoded:
        raise KeyTextError(f"{what} is not a key: expected {prefix} and 43 letters, digits, '-' or '_'")
    return raw
