"""Log lines: how the orchestrator hears of what its processes do.

Every program writes one `key=value` line per event. The lines go to a file a program, so they outlive a SIGKILL of
the writer and of the reader; the reader polls the files' ends. A line counts once it ends with a newline.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def parse(line: str) -> dict[str, str]:
    """Give the pairs of one line, values unquoted as a shell would; {} for a line that is no event of a program."""
    if not line.startswith("event="):
        return {}
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that does not end
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


class Follower:
    """Reads what was added to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, str]]:
        """Give the pairs of each whole line added since the last call; nothing while the file is not there."""
        return [pairs for line in self.new_lines() if (pairs := parse(line))]

    def new_lines(self) -> list[str]:
        """The same as text, for who looks at few of very many lines."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace").splitlines()
