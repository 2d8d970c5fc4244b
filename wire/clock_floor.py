"""TLS on a device that wakes up in 1970: a Pi has no clock that outlives a power cut, and TLS believes the clock.

Whoever holds a certificate of its fleet knows more than its clock does: the authority would not have signed it before
its time had come, so the present is later than the newest "not before" at hand. That is the floor. While the clock
stands below it, the clock is wrong, and the times in certificates are compared with the floor instead: the server's
must not have ended by then. That it began "later" than now is no reproach, since nobody here knows what now is.

The floor is signed, and moves up with each renewal; a file's own time would not do, since a clock that once ran ahead
would lock the device out for ever. All else that TLS checks is checked: the chain, the server's name, the signatures.
"""

from __future__ import annotations

import binascii
import calendar
import re
import ssl
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h, for which ssl has no name
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


class Tls(NamedTuple):
    """How TLS with a server begins. `floor_unix_s`: judge its certificate by this time; 0: the clock was right."""

    context: ssl.SSLContext
    floor_unix_s: float = 0.0


def with_floor(context: ssl.SSLContext, *files: Path | None) -> Tls:
    """The context, made to forgive a clock that stands before one of the certificates in `files` (PEM) began."""
    floor = max(map(_newest_start, filter(None, files)), default=0.0)
    if time.time() >= floor:
        return Tls(context)
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | _NO_CHECK_TIME)
    return Tls(context, floor)


def check(sock: ssl.SSLSocket, floor_unix_s: float) -> None:
    """After the handshake: raise OSError where the server's certificate had ended by the floor."""
    shown = sock.getpeercert() or {}
    ends = shown.get("notAfter")
    if floor_unix_s and (not isinstance(ends, str) or ssl.cert_time_to_seconds(ends) < floor_unix_s):
        raise OSError(f"the server's certificate ended before {time.strftime('%F', time.gmtime(floor_unix_s))}")


def _newest_start(file: Path) -> float:
    """The newest "not before" in a file; 0 where nothing in it is read: whether it can be used is OpenSSL's to say."""
    try:
        found = _PEM.findall(file.read_bytes())
        return max((_start(binascii.a2b_base64(each)) for each in found), default=0.0)
    except (OSError, ValueError, IndexError):
        return 0.0


def _start(der: bytes) -> float:
    """When a certificate begins (RFC 5280, section 4.1). By hand, since a library for it would cost an agent 8 MB."""
    body, _ = _element(der, _element(der, 0)[0])
    at = _element(der, body)[1] if der[body] == 0xA0 else body  # [0]: the version
    for _ in ("serial number", "algorithm", "issuer"):
        at = _element(der, at)[1]
    first = _element(der, at)[0]
    start, end = _element(der, first)
    digits = der[start:end].decode("ascii")
    if der[first] == 0x17:  # UTCTime, with two digits of the year
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return float(calendar.timegm((int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2)))))


def _element(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins, and where it ends (X.690, section 8.1)."""
    length, content = der[at + 1], at + 2
    if length >= 0x80:
        content += length & 0x7F
        length = int.from_bytes(der[at + 2 : content], "big")
    return content, content + length
