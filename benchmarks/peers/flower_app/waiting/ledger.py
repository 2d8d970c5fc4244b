"""One line for each thing that happened, on disk before anything follows from it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def note(directory: str, event: str, **fields: object) -> None:
    """Append a line to the ledger of this run, which all processes of it share."""
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    ledger = os.open(Path(directory) / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, f"event={event} at={time.time()} {words}\n".encode())
        os.fsync(ledger)
    finally:
        os.close(ledger)
