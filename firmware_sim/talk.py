"""How much the coordinator says, and why: an auditor's account of its words to each device.

Whoever may publish can make it speak: every update has a receipt, and a want of a hundred bytes is answered with
chunks of a hundred thousand. Memory and the line bear that as long as it is bounded by what was said before and by
time, whoever asks, enrolled or not.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from wire.messages import Manifest

WINDOW_MS: Final = 600_000
CHUNKS_MIN: Final = 64
TIMES: Final = 4  # a version's chunks, in one window


class Served(NamedTuple):
    """What one device was sent of one version by one run of the coordinator."""

    life: int
    model_version: int
    since_ms: int
    sent: int


class Talk:
    """One a world. What breaks a bound is answered with a sentence, all else with none."""

    def __init__(self) -> None:
        self._heard: collections.Counter[str] = collections.Counter()  # in a device's name, what may have a receipt
        self._receipts: collections.Counter[str] = collections.Counter()
        self._served: dict[str, Served] = {}

    def heard(self, device: str, kind: str, *, enrolled: bool) -> None:
        """A message in the name of this device has reached the coordinator."""
        # a stranger's birth is answered twice if it is enrolled afterwards
        self._heard[device] += 1 if kind == "update" else 2 if kind == "birth" and not enrolled else 0

    def receipt(self, device: str) -> str:
        """The coordinator sends a receipt."""
        self._receipts[device] += 1
        receipts, heard = self._receipts[device], self._heard[device]
        return f"{device} is sent {receipts} of them for {heard}" if receipts > heard else ""

    def served(self, device: str, life: int, manifest: Manifest, now_ms: int, shares: int = 1) -> str:
        """The coordinator, in this life of its, sends a chunk or a patch of its newest version, or of so many."""
        version, before = manifest.model_version, self._served.get(device)
        if before is None or (before.life, before.model_version) != (life, version):
            before = Served(life, version, now_ms, 0)
        now = self._served[device] = before._replace(sent=before.sent + 1)
        windows = 1 + (now_ms - now.since_ms) // WINDOW_MS
        most = shares * windows * max(CHUNKS_MIN, TIMES * sum(len(file.chunk_digests) for file in manifest.files))
        return f"{device} is sent {now.sent} of version {version} in {windows} windows" if now.sent > most else ""
