"""What the fleet's own logs and store say so far, read from outside while it runs.

Only what a line or a row says is believed to have been said; whether it is true is the audit's question.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firmware_sim.lineage import Finished
from firmware_sim.lines import Follower

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Watch:
    """Follows the coordinator's log and one log for each device."""

    coordinator: Follower
    agents: dict[str, Follower]
    open_round: int = 0
    births: Counter[str] = field(default_factory=Counter)  # how often the coordinator heard of each device
    accepted: dict[int, set[str]] = field(default_factory=dict)  # round → devices whose update is stored
    finished: dict[bytes, Finished] = field(default_factory=dict)  # outbox digests
    receipts: dict[bytes, str] = field(default_factory=dict)  # digest → the last verdict that the device read
    trainer_peaks_kb: list[int] = field(default_factory=list)
    trainer_cpu_s: list[float] = field(default_factory=list)  # as the kernel told the agent that waited for the child
    failures: list[str] = field(default_factory=list)  # trainers that ended without a result
    just_finished: list[str] = field(default_factory=list)  # devices whose outbox line came with the last `look`

    def look(self) -> bool:
        """Read what is new; return whether there was anything."""
        self.just_finished.clear()
        lines = self.coordinator.new()
        for pairs in lines:
            self._on_coordinator(pairs)
        some = bool(lines)
        for device_id, follower in self.agents.items():
            for pairs in follower.new():
                some = True
                self._on_agent(device_id, pairs)
        return some

    @property
    def waiting(self) -> list[Finished]:
        """Finished updates of which the device has read no receipt yet."""
        return [made for digest, made in self.finished.items() if digest not in self.receipts]

    @property
    def refused(self) -> list[bytes]:
        """Digests that the coordinator refused for the device's own fault, as the device read it."""
        return [digest for digest, verdict in self.receipts.items() if verdict == "refused"]

    def _on_coordinator(self, pairs: dict[str, str]) -> None:
        match pairs.get("event"):
            case "round-open":
                self.open_round = int(pairs["round"])
            case "accepted":
                self.accepted.setdefault(int(pairs["round"]), set()).add(pairs["device"])
            case "birth":
                self.births[pairs["device"]] += 1

    def _on_agent(self, device_id: str, pairs: dict[str, str]) -> None:
        match pairs.get("event"):
            case "outbox" | "outbox-found" as event:
                digest, size = bytes.fromhex(pairs["digest"]), int(pairs.get("bytes", 0))
                if digest not in self.finished:
                    self.finished[digest] = Finished(device_id, int(pairs["round"]), size)
                if event == "outbox":
                    self.just_finished.append(device_id)
            case "receipt" if pairs["verdict"] != "unknown":
                self.receipts[bytes.fromhex(pairs["digest"])] = pairs["verdict"]
            case "trainer":
                self.trainer_peaks_kb.append(int(float(pairs.get("peak_rss_kb", 0))))
                self.trainer_cpu_s.append(float(pairs.get("cpu_s", 0)))
                if pairs.get("ok", "") not in {"1", "true", "True", "yes"}:
                    self.failures.append(f"{device_id}, round {pairs.get('round')}: {pairs.get('reason', '')}")


def follow(coordinator: Path, agents: dict[str, Path]) -> Watch:
    """Watch these logs from their beginning."""
    return Watch(Follower(coordinator), {device_id: Follower(path) for device_id, path in agents.items()})
