"""Power cuts at random moments, and the books afterwards: what the device said to be finished is counted, once.

A cut hits the machine while it boots, while it works, or when an update is finished and its receipt is not there: for
that the coordinator is stopped (SIGSTOP) meanwhile. It then hears the update once from the MQTT server, which kept it,
and once more from the device that has booted.

A device says `event=outbox` once an update is on flash. The log leaves the machine line by line, so whatever was said
before a cut was heard. The coordinator's store has the other side: which update, by its digest, which version counts.
"""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING, Final

from broker.store import Store
from tests.real.test_broker_process import broker

if TYPE_CHECKING:
    from broker.rows import StoredUpdate, VersionRow
    from tests.real.farm import Farm
    from tests.targets.machine import Machine

ROUND_S: Final = 900.0  # with patience; under emulation a round takes a minute
MOMENTS: Final = ("booting", "working", "working", "finished")
UNHEARD_S: Final = 10.0  # so long at most a finished update is sent to a coordinator that does not answer
BOOTING_S: Final = 60.0
WRONG: Final = {"traffic-lost", "note-lost", "status-lost", "story-lost"}  # what no power cut may lead to


def cut(machine: Machine, farm: Farm, cuts: int, seed: int, round_s: float) -> None:
    """Cut the power `cuts` times, a line each; afterwards it runs again. `round_s`: what a round takes."""
    chance = random.Random(seed)
    for number in range(1, cuts + 1):
        before, began_s = newest(farm), time.monotonic()
        machine.power_on()
        came_back = "not yet up"
        if (moment := chance.choice(MOMENTS)) == "booting":
            time.sleep(chance.uniform(0.0, BOOTING_S))
        else:
            machine.wait_for("ready")
            came_back = f"ready after {time.monotonic() - began_s:3.0f} s"
            if moment == "finished":
                machine.wait_for("handled", ROUND_S, effect="StartTraining")
                farm.serve().process.send_signal(signal.SIGSTOP)
                machine.wait_for("outbox", ROUND_S)
            # the first round after a boot is a long one
            time.sleep(chance.uniform(0.0, UNHEARD_S if moment == "finished" else 3 * round_s))
        machine.cut()
        farm.serve().process.send_signal(signal.SIGCONT)
        after_s = time.monotonic() - began_s
        print(
            f"cut {number:3} {after_s:5.1f} s after power on: {came_back}, {_doing(machine)}; "
            f"version {before} before, {newest(farm)} after",
            flush=True,
        )
    machine.power_on()
    machine.wait_for("ready")


def settle(farm: Farm) -> None:
    """Let no other round open, and wait until the open one has closed."""
    broker("round", "pause", "--config", str(farm.home))
    until = time.monotonic() + ROUND_S
    while True:
        with Store(farm.home / "broker.db", read_only=True) as store:
            if not store.pending_count() and all(row.status != "open" for row in store.rounds()):
                return
        assert time.monotonic() < until, "the last round does not close"
        time.sleep(1)


def books(machine: Machine, farm: Farm) -> str:
    """Compare what the device said with what the store has. Every difference is a failure."""
    finished: dict[int, str] = {}
    for line in machine.lines_of_all_boots():
        assert line.event not in WRONG, line
        assert line.event != "end" or line.fields["reason"] == '"SIGTERM"', line
        if line.event == "outbox":
            round_id, digest = int(line.fields["round"]), line.fields["digest"]
            assert finished.setdefault(round_id, digest) == digest, f"two updates were finished for round {round_id}"
    with Store(farm.home / "broker.db", read_only=True) as store:
        updates, versions = store.updates(), store.versions()
    _compare(finished, updates, versions)
    found = len([line for line in machine.lines_of_all_boots() if line.event == "outbox-found"])
    return (
        f"{len(finished)} updates were said to be finished, {len(updates)} are counted, once each, in "
        f"{len(versions) - 1} versions; {found} boots found an update in the outbox"
    )


def newest(farm: Farm) -> int:
    """The newest model version."""
    with Store(farm.home / "broker.db", read_only=True) as store:
        return store.versions()[-1].model_version


def wait_for_version(farm: Farm, version: int) -> None:
    """Wait until a round has made it."""
    until = time.monotonic() + ROUND_S
    while newest(farm) < version:
        assert time.monotonic() < until, f"no version {version} within {ROUND_S:.0f} s"
        time.sleep(1)


def _compare(finished: dict[int, str], updates: list[StoredUpdate], versions: list[VersionRow]) -> None:
    counted = {update.round_id: update for update in updates if update.counted_in is not None}
    assert len(counted) == len(updates), "an update is stored twice, or not counted"
    for round_id, digest in finished.items():
        assert round_id in counted, f"the update of round {round_id} was finished, and is lost"
        assert counted[round_id].digest.hex() == digest, f"another update was counted for round {round_id}"
    for version in versions[1:]:
        members = sum(update.counted_in == version.model_version for update in updates)
        assert version.members == members, f"version {version.model_version} counts {version.members}, not {members}"
    assert [row.model_version for row in versions] == list(range(1, len(versions) + 1))


def _doing(machine: Machine) -> str:
    """What the agent was at, by the last line of its log that says so."""
    lines = machine.lines()
    for line in reversed(lines):
        if line.event == "handled":
            return line.fields.get("work", "")
    return lines[-1].event if lines else "silent"
