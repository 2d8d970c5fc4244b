"""A soak: a small fleet at work for twenty minutes or more, and whether anything of it grows.

    python -m tests.real.soak --minutes 24      one line a minute; then a verdict, soak.png; status 1 if something grows

Real agents that predict five windows a second and train, a real coordinator, a real mosquitto. For four minutes before
the others one round follows another, so that whatever is kept up to a bound is full: an agent's story of its last
thousand events is half a megabyte. Then there is a round every few seconds; the devices' links are cut, or fall silent,
once a minute. Every ten seconds: resident and proportional memory and open files of each agent, of its child that
predicts and of the coordinator, and the bytes in each device's state. Memory may not grow (tests.slope; MOST_BYTES says
what is allowed, and why), the files that an idle program holds open are as many in the last third as in the first, and
a state is at no time larger than it was then.

The coordinator's store keeps every version on purpose: its bytes a round are told and not judged. With root the states
lie on an ext4 of their own, and what truly reached it is told beside what the agents count as written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from benchmarks import footprint_disk
from benchmarks.environments import NotToBeHadError
from benchmarks.footprint_fleet import pss_bytes
from benchmarks.gate import Gate
from broker import mqtt_server
from edge_agent import status
from firmware_sim import data, fleet
from firmware_sim.demo import DIGITS, MODELS_DIR
from firmware_sim.fleet import Scene
from firmware_sim.processes import rss_bytes
from firmware_sim.screen import Lines
from firmware_sim.site import Wish
from tests.slope import BLOCKS, Slope, slope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from firmware_sim.chaos import Blow, Crew
    from firmware_sim.fleet import Outcome
    from firmware_sim.watch import Watch

DEVICES: Final = 2
COORDINATOR: Final = "coordinator"
SAMPLE_S: Final = 10.0
ROUND_S: Final = 15.0  # from one round to the next, if it is over by then
CUT_S: Final = 60.0
SILENT_S: Final = 5.0
WARM_UP_S: Final = 240.0
PER_S: Final = 5
SOURCE: Final = '\n[source]\nkind = "replay"\npath = "stream.npy"\nwindow = [8, 8, 1]\nevery_ms = 200\n'
# How much the line may rise from its begin to its end, however long that is: a longer soak is a harder one. Of what an
# agent gives back, malloc keeps a bit more for its first thousand rounds; tflite-runtime 2.14 keeps 750 bytes of each
# version that a predictor opens (LiteRT does not); of the coordinator's largest arrays malloc keeps one block or none.
MOST_BYTES: Final = {"agent": 0.3e6, "predictor": 0.3e6, COORDINATOR: 5e6}
STATE_BYTES: Final = 16_384


class Sample(NamedTuple):
    """One program, or one device's state, at one moment. What is not measured of it is 0."""

    at_s: float
    rss: int = 0
    pss: int = 0
    files: int = 0  # 0 too where it does something: a child that trains, a link that is made
    state: int = 0


class Soak:
    """Watches, asks for rounds and cuts links for so many seconds: a `Trouble` as firmware_sim.chaos has it."""

    def __init__(self, crew: Crew, gate: Gate, seconds: float, tell: Callable[[str], None]) -> None:
        self.blows: list[Blow] = []
        self.down: frozenset[str] = frozenset()
        self.goes_on = self.is_settled = False
        self.samples: dict[str, list[Sample]] = {}  # by "agent device-01", "predictor device-01", "state device-01" ...
        self.cuts = 0
        self._crew, self._gate, self._seconds, self._tell = crew, gate, seconds, tell
        self.states: dict[str, Path] = {}  # where each device's lies
        self._began_s = 0.0
        self._next_s = dict.fromkeys((self._sample, self._cut, self._report), 0.0)
        self._round, self._round_s, self._open_s = 0, 0.0, 0.0

    def tick(self, watch: Watch, now_s: float) -> str:
        """Do what is due."""
        self._began_s = self._began_s or now_s
        passed_s = now_s - self._began_s
        if watch.open_round != self._round:
            self._round, self._round_s = watch.open_round, now_s
        self.is_settled = passed_s >= self._seconds
        self.goes_on = not self.is_settled and (passed_s < WARM_UP_S or now_s >= self._round_s + ROUND_S)
        if self._open_s and now_s >= self._open_s:
            self._open_s = 0.0
            self._gate.open()
        for work, every_s in ((self._sample, SAMPLE_S), (self._cut, CUT_S), (self._report, 60.0)):
            if passed_s >= self._next_s[work]:
                self._next_s[work] = passed_s + every_s
                work(passed_s)
        return ""

    def _cut(self, passed_s: float) -> None:
        if passed_s < CUT_S or self.is_settled:
            return
        self.cuts += 1
        if self.cuts % 2:
            self._gate.drop()
        else:
            self._gate.shut()
            self._open_s = time.monotonic() + SILENT_S

    def _sample(self, passed_s: float) -> None:
        self._add(COORDINATOR, passed_s, self._crew.coordinator.pid, idle=True)
        for device, program in self._crew.agents.items():
            children = {pid: _module(pid) for pid in _children(program.pid)}
            watching = [pid for pid, module in children.items() if module == "edge_agent.watching"]
            self._add(f"agent {device}", passed_s, program.pid, idle=len(children) == len(watching) == 1)
            for pid in watching:
                self._add(f"predictor {device}", passed_s, pid, idle=True)
            state = _tree_bytes(self.states[device])
            self.samples.setdefault(f"state {device}", []).append(Sample(passed_s, state=state))

    def _add(self, name: str, passed_s: float, pid: int, *, idle: bool) -> None:
        with contextlib.suppress(OSError):  # it has ended
            files = len(list(Path(f"/proc/{pid}/fd").iterdir())) if idle else 0
            self.samples.setdefault(name, []).append(Sample(passed_s, rss_bytes(pid), pss_bytes(pid), files))

    def _report(self, passed_s: float) -> None:
        last = {name: samples[-1] for name, samples in self.samples.items() if samples}
        memory = ", ".join(f"{name} {one.rss / 1e6:.1f}" for name, one in last.items() if one.rss)
        states = ", ".join(f"{one.state / 1e3:.0f}" for one in last.values() if one.state)
        files = ", ".join(f"{one.files or '-'}" for one in last.values() if one.rss)
        done = f"minute {passed_s / 60:.0f}: round {self._round}, {self.cuts} cuts"
        self._tell(f"{done}; MB {memory}; files {files}; kB of state {states}")


def run(minutes: float, seed: int, directory: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """One soak in `directory` (empty); what was found. Raises FleetError, MqttServerError."""
    shares = data.share(data.digits(), DEVICES, seed)
    model = (MODELS_DIR / "digits.tflite").read_bytes()
    wish = Wish("soak", "digits", model, shares, DIGITS, 1, seed, "last-3", chaos=False)
    soaks: list[Soak] = []
    with contextlib.ExitStack() as stack:
        try:
            card: footprint_disk.Card | None = stack.enter_context(footprint_disk.card(directory))
            before = card.written_bytes()
        except NotToBeHadError as error:
            card, before = None, 0
            tell(f"the states lie with everything else: {error}")
        server = mqtt_server.start(directory / "mqtt", kind="mosquitto")
        gate = Gate(int(server.url.rpartition(":")[2]))
        stack.callback(gate.close)

        def trouble(crew: Crew) -> Soak:
            soaks.append(Soak(crew, gate, minutes * 60, tell))
            soaks[0].states = {device: _furnish(directory / device, card, minutes, seed) for device in crew.agents}
            return soaks[0]

        outcome = fleet.run_in(
            Scene(f"mqtt://127.0.0.1:{gate.port}", trouble=trouble), server, wish, directory, Lines(_quiet)
        )
        reached = 0 if card is None else card.written_bytes() - before
        return _found(outcome, soaks[0], reached, directory)


def _furnish(home: Path, card: footprint_disk.Card | None, minutes: float, seed: int) -> Path:
    """Give a device a source, and put its state on the card; where that is."""
    config, state = home / "agent.toml", home / "state"
    text = config.read_text("utf-8") + SOURCE
    if card is not None:
        state = Path(shutil.move(state, card.place / home.name))
        text = text.replace('state = "state"', f'state = "{state}"')
    config.write_text(text, "utf-8")
    digits = data.digits().windows
    rows = Random(seed).choices(range(len(digits)), k=int(minutes * 60 * PER_S * 1.5) + 1000)
    np.save(home / "stream.npy", digits[rows].astype(np.float32))
    return state


def _found(outcome: Outcome, soak: Soak, reached: int, directory: Path) -> dict[str, Any]:
    slopes, complaints = judge(soak.samples)
    found: dict[str, Any] = {
        "rounds": len(outcome.rows),
        "cuts": soak.cuts,
        "lost": outcome.verdict.lost,
        "double_counted": outcome.verdict.double_counted,
        "finished": outcome.verdict.finished,
        "slopes_mb_per_hour": {
            name: {"slope": one.per_hour / 1e6, "error": one.error / 1e6, "mean_mb": one.mean / 1e6}
            for name, one in slopes.items()
        },
        "files": {name: sorted({one.files for one in ones if one.files}) for name, ones in soak.samples.items()},
        "coordinator_bytes_per_round": _tree_bytes(directory / "broker") // max(1, len(outcome.rows)),
        "complaints": complaints,
        "samples": soak.samples,
    }
    told = [status.read(where)[0] for where in soak.states.values()]
    found["windows"] = sum(one.watching.windows for one in told)
    found["written_bytes"] = sum(one.account.card.total for one in told if one.account.card)
    found["card_bytes"] = reached or None
    return found


def judge(samples: dict[str, list[Sample]]) -> tuple[dict[str, Slope], list[str]]:
    """The slope of each, and what speaks against it, one line each. Too few samples have no slope."""
    slopes: dict[str, Slope] = {}
    complaints: list[str] = []
    for name, ones in samples.items():
        late = [one for one in ones if one.at_s >= WARM_UP_S]
        if len(late) < 2 * BLOCKS:
            continue
        slopes[name] = slope([one.at_s for one in late], [one.rss or one.state for one in late])
        if name.startswith("state"):
            # a patch or a version comes and goes: the most that there ever was may not grow
            first, last = (max(part) for part in _thirds([one.state for one in late]))
            if last > first + STATE_BYTES:
                complaints.append(f"{name}: {first:,} bytes at most at first, {last:,} in the end")
            continue
        hours = (late[-1].at_s - late[0].at_s) / 3600
        if why := slopes[name].complaint(MOST_BYTES[name.split()[0]] / hours):
            complaints.append(f"{name}, bytes: {why}")
        # the usual, not the most: a link that is made, or a file that is written, is one more for a moment
        first, last = (median(part) for part in _thirds([one.files for one in late if one.files] or [0]))
        if first != last:
            complaints.append(f"{name}: {first:g} open files at first, {last:g} in the end")
    return slopes, complaints


def _thirds(values: list[int]) -> tuple[list[int], list[int]]:
    """The first and the last."""
    third = max(1, len(values) // 3)
    return values[:third], values[-third:]


def draw(samples: dict[str, list[Sample]], path: Path) -> None:
    """Three plots, one above the other: memory, open files, bytes on flash."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(10, 11), sharex=True, layout="constrained")
    for name, ones in samples.items():
        minutes = [one.at_s / 60 for one in ones]
        if name.startswith("state"):
            axes[2].plot(minutes, [one.state / 1e3 for one in ones], label=name)
            continue
        (line,) = axes[0].plot(minutes, [one.rss / 1e6 for one in ones], label=name)
        axes[0].plot(minutes, [one.pss / 1e6 for one in ones], ":", color=line.get_color())
        idle = [(one.at_s / 60, one.files) for one in ones if one.files]
        axes[1].plot(*zip(*idle, strict=True), ".", label=name)
    for axis, label in zip(
        axes, ("MB: resident (line), proportional (dots)", "open files", "kB of state"), strict=True
    ):
        axis.set_ylabel(label)
        axis.axvline(WARM_UP_S / 60, color="grey", linewidth=0.5)
        axis.legend(fontsize="small", loc="lower right")
        axis.set_ylim(bottom=0)
    axes[2].set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(child) for task in _listed(tasks) for child in _text(task / "children").split()]


def _module(pid: int) -> str:
    words = _text(Path(f"/proc/{pid}/cmdline")).split("\0")
    return words[words.index("-m") + 1] if "-m" in words else ""


def _listed(folder: Path) -> Iterable[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("ascii", "replace")
    return ""


def _tree_bytes(root: Path) -> int:
    """What the files below take of the disk."""
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):  # it is gone, or has another name by now
            total += path.stat().st_blocks * 512
    return total


def _quiet(_text: str) -> None:
    """A round in a soak is no news."""


def main() -> None:
    """Soak, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("soak.png"), help="where the plots go")
    arguments = parser.parse_args()
    if mqtt_server.find_mosquitto() is None:
        print("skipped: needs mosquitto: this machine has only amqtt", file=sys.stderr)
        return
    directory = Path(tempfile.mkdtemp(prefix="hedgerow-soak-"))
    try:
        found = run(arguments.minutes, arguments.seed, directory, lambda text: print(text, file=sys.stderr, flush=True))
    except (fleet.FleetError, mqtt_server.MqttServerError) as error:
        sys.exit(f"{error}\nEverything of this run is in {directory}")
    draw(found.pop("samples"), arguments.out)
    print(json.dumps(found))
    if found["complaints"] or found["lost"] or found["double_counted"]:
        sys.exit(f"Everything of this run is in {directory}, its plots in {arguments.out}")
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
