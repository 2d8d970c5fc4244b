"""What the coordinator of a swarm says in its log. Of very many lines only the few that matter are taken apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firmware_sim.lines import Follower, parse

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Closed:
    """A round that has closed."""

    round_id: int
    members: int
    seconds: float
    bytes_up: int
    bytes_down: int


class Watch:
    """Follows the log at `path` from its beginning."""

    def __init__(self, path: Path) -> None:
        self.births: set[str] = set()  # devices that were heard of
        self.counts: Counter[str] = Counter()  # lines, by event
        self.open_round = 0
        self.closed: list[Closed] = []
        self._log = Follower(path)

    def look(self) -> None:
        """Read what is new."""
        for line in self._log.new_lines():
            event = line[6 : line.find(" ")] if line.startswith("event=") else ""
            self.counts[event] += 1
            match event:
                case "birth":
                    self.births.add(line.rpartition("device=")[2])
                case "round-open":
                    self.open_round = int(parse(line)["round"])
                case "round-closed":
                    self.closed.append(_closed(parse(line)))


def _closed(pairs: dict[str, str]) -> Closed:
    return Closed(
        round_id=int(pairs["round"]),
        members=int(pairs["members"]),
        seconds=float(pairs["seconds"]),
        bytes_up=int(pairs["bytes_up"]),
        bytes_down=int(pairs["bytes_down"]),
    )
