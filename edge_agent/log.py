"""The agent's log: one line per event that had effects, on stdout, for journald. Its form is `wire.log_line`."""

import sys

from wire.log_line import line


def log(event: str, **fields: object) -> None:
    """Write one line to stdout, through to whoever reads."""
    sys.stdout.write(line(event, **fields) + "\n")
    sys.stdout.flush()
