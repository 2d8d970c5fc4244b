"""The agent as its owner runs it: a real process, a real MQTT server, a training child that really trains."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from broker.file_server import FileServer
from broker.store import Store
from edge_agent import config, flash, samples, storyfile
from edge_agent.disk import Directory
from edge_agent.sources import files
from engine.codec import patch as patches
from engine.codec import payload
from tests.real.scripted_coordinator import (
    ENDLESS,
    FRAME,
    MODEL,
    PARAMS,
    QUICK,
    SIZE,
    AgentProcess,
    Coordinator,
    is_alive,
    moved,
    write_digits,
)
from wire import keys
from wire.messages import Manifest

pytestmark = pytest.mark.real
_fleets = itertools.count(1)
EXAMPLES = 120
IDLE_MB_MAX = 45


class Site(NamedTuple):
    """One device on disk, and the coordinator that it believes."""

    config: Path
    state: Path
    coordinator: Coordinator


@pytest.fixture
def site(mqtt_server, tmp_path) -> Site:
    return make_site(mqtt_server.url, tmp_path)


def make_site(url: str, directory: Path) -> Site:
    fleet, seed = f"agent-process-{next(_fleets)}-{time.monotonic_ns()}", keys.generate()
    made = config.make(directory, "dev-1", fleet, url, keys.public_text(seed))
    settings = config.load(made.path)
    files.add_npz(write_digits(directory / "digits.npz", EXAMPLES), settings.samples_path, 2000)
    coordinator = Coordinator(url, fleet, seed, "dev-1", made.public_key)
    return Site(made.path, settings.device.state, coordinator)


def test_an_update_survives_a_kill_and_is_resent_to_the_byte_until_its_receipt(site):
    with site.coordinator as coordinator:
        coordinator.announce(QUICK)
        with AgentProcess(site.config) as agent:
            birth, _ = coordinator.wait_for("birth")
            coordinator.offer(1, QUICK)
            outbox = agent.wait_for(r"event=outbox round=1 digest=([0-9a-f]{64}) bytes=(\d+)$")
            agent.kill()
            trained = agent.wait_for(
                r'event=trainer round=1 ok=1 peak_rss_kb=(\d+) cpu_s=([\d.]+) wall_s=([\d.]+) reason=""$'
            )
        with AgentProcess(site.config) as agent:
            found = agent.wait_for(r"event=outbox-found round=1 digest=([0-9a-f]{64})$")
            coordinator.wait_for("birth", boot=birth.boot + 1)
            update, sealed = coordinator.wait_for("update")
            coordinator.receipt(sealed, 1)
            receipt = agent.wait_for(r"event=receipt round=1 verdict=accepted digest=([0-9a-f]{64})$")
            agent.terminate()
            assert agent.wait() == 0
    assert set(coordinator.updates) == {sealed}  # whatever the first life still sent was the same
    assert {outbox[1], found[1], receipt[1]} == {hashlib.sha256(sealed).hexdigest()}
    assert int(outbox[2]) == len(sealed)
    assert int(trained[1]) < 256 * 1024
    decoded = payload.decode(update.payload, FRAME.shapes, lane=FRAME.lane, k_max=QUICK.keep_count, coding=QUICK.coding)
    assert len(decoded.indices) == QUICK.keep_count
    assert update.num_examples + update.held_out_count == EXAMPLES
    assert 0 < update.held_out_count < EXAMPLES / 2
    kept = flash.Flash(Directory(site.state)).load()
    assert (kept.outbox, kept.last_round_id, kept.residual_round_id, kept.boot) == (b"", 1, 1, birth.boot + 1)
    assert (site.state / flash.residual_name(1)).exists()
    assert len(flash.load_model(Directory(site.state)).files) == 2


def test_the_next_round_starts_from_the_residual_that_the_accepted_update_left(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        first, sealed = coordinator.wait_for("update")
        coordinator.receipt(sealed, 1)
        coordinator.offer(2, QUICK)
        second, sealed = coordinator.wait_for("update")
        coordinator.receipt(sealed, 2, "stale")
        agent.wait_for(r"event=receipt round=2 verdict=stale")
        agent.wait_for(r'event=handled what=received-receipt effects=Persist,Forget work=idle why="round 2 stale')
        assert (first.round_id, second.round_id) == (1, 2)
        assert first.payload != second.payload
        assert flash.Flash(Directory(site.state)).load().residual_round_id == 1  # a stale update leaves no debt paid
        wanted = [want.digest for want in coordinator.wants]
        assert len(wanted) == len(set(wanted))  # nothing was fetched twice
        assert not (site.state / flash.residual_name(2)).exists()


NEXT = moved(range(0, SIZE, 1000), 1)


def live_through_round_1(coordinator: Coordinator, plan=QUICK) -> None:
    coordinator.announce(plan)
    coordinator.wait_for("birth")
    coordinator.offer(1, plan)
    _, sealed = coordinator.wait_for("update")
    coordinator.receipt(sealed, 1)
    coordinator.wants.clear()


def test_the_next_version_comes_as_a_patch_of_which_the_child_makes_it(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        live_through_round_1(coordinator)
        patch = patches.make(FRAME, PARAMS, NEXT)
        file = coordinator.publish(QUICK, 2, NEXT, patch)
        coordinator.offer(2, QUICK, 2)
        update, _ = coordinator.wait_for("update", round_id=2)
        agent.wait_for(r"event=handled what=received-patch effects=WritePatch ")
    assert update.base_version == 2
    assert [(want.digest, want.base_version) for want in coordinator.wants] == [(file.digest, 1)]
    assert flash.read_whole(Directory(site.state), file.digest) == NEXT
    assert flash.load_model(Directory(site.state)).version == 2
    assert len(patch) < len(NEXT) / 100


def test_a_patch_survives_a_kill_and_is_not_fetched_again(site):
    plan = msgspec.structs.replace(QUICK, num_examples_min=EXAMPLES // 2)
    with site.coordinator as coordinator:
        with AgentProcess(site.config) as agent:
            live_through_round_1(coordinator)
            file = coordinator.publish(plan, 2, NEXT, patches.make(FRAME, PARAMS, NEXT))
            coordinator.offer(2, plan, 2)
            agent.wait_for(r"event=handled what=received-patch effects=WritePatch ")
            agent.kill()
        assert flash.load_model(Directory(site.state)).version == 1  # a half version is none
        boot = flash.Flash(Directory(site.state)).load().boot
        with AgentProcess(site.config):
            coordinator.wait_for("birth", boot=boot + 1)
            coordinator.wants.clear()
            coordinator.offer(2, plan, 2)
            coordinator.wait_for("update", round_id=2)
    assert coordinator.wants == []
    assert flash.read_whole(Directory(site.state), file.digest) == NEXT


def test_a_wrong_patch_costs_one_whole_download(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        live_through_round_1(coordinator)
        file = coordinator.publish(QUICK, 2, NEXT, patches.make(FRAME, PARAMS, moved(range(0, SIZE, 1000), 2)))
        coordinator.offer(2, QUICK, 2)
        coordinator.wait_for("update", round_id=2)
        agent.wait_for(r'event=trainer round=2 ok=0 .*reason="the patch from version 1 makes something else than its')
        agent.wait_for(r"event=handled what=patchfailed effects=DropPatch,Forget,OpenFile,OpenFile ")
    assert [(want.digest, want.base_version) for want in coordinator.wants] == [(file.digest, 1), (file.digest, 0)]
    assert flash.read_whole(Directory(site.state), file.digest) == NEXT
    assert flash.load_model(Directory(site.state)).version == 2


def test_what_is_large_comes_by_http_and_what_is_not_there_over_mqtt(site, tmp_path):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        model, params = coordinator.described.values()
        manifest = Manifest("digits", 1, 0, QUICK.num_params, (model, params))
        with Store(tmp_path / "broker.db") as store:
            store.put_first_version(manifest, {model.digest: MODEL}, b"")
        server = FileServer(tmp_path / "broker.db", "127.0.0.1", 0)
        coordinator.url = f"http://127.0.0.1:{server.port}"
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        coordinator.wait_for("update")
        server.stop()
        assert [want.digest for want in coordinator.wants] == [params.digest]
        assert len([line for line in agent.lines if "what=fetched " in line]) == len(model.chunk_digests)
        agent.wait_for(r"event=handled what=fetchfailed .*HTTP failed: FetchError: http://127.0.0.1:\d+ answers 404")
        assert agent.memory_mb() <= IDLE_MB_MAX


def test_the_idle_agent_is_small_and_never_loads_numbers(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(QUICK)
        coordinator.wait_for("birth")
        coordinator.offer(1, QUICK)
        _, sealed = coordinator.wait_for("update")
        coordinator.receipt(sealed, 1)
        agent.wait_for(r"event=receipt round=1")
        loaded = Path(f"/proc/{agent.pid}/maps").read_text()
        assert not [name for name in ("numpy", "numba", "llvm", "tflite", "litert", "openblas") if name in loaded]
        assert agent.memory_mb() <= IDLE_MB_MAX
        ready = agent.wait_for(r"event=ready pid=(\d+) device=dev-1 rss_kb=(\d+)$")
        assert int(ready[1]) == agent.pid
        assert int(ready[2]) <= IDLE_MB_MAX * 1024


def test_the_trainer_dies_with_its_agent(site):
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(ENDLESS)
        coordinator.wait_for("birth")
        coordinator.offer(1, ENDLESS)
        agent.wait_for(r"event=handled .*StartTraining")
        (trainer,) = agent.children()
        assert is_alive(trainer)
        agent.kill()
        until = time.monotonic() + 2.0
        while is_alive(trainer) and time.monotonic() < until:
            time.sleep(0.02)
        assert not is_alive(trainer)


def test_the_deadline_of_the_plan_ends_the_trainer(site):
    plan = msgspec.structs.replace(ENDLESS, trainer_ms_max=1500)
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(plan)
        coordinator.wait_for("birth")
        coordinator.offer(1, plan)
        agent.wait_for(r'event=trainer round=1 ok=0 .*reason="stopped: deadline"$')
        assert agent.children() == []
        telemetry, _ = coordinator.wait_for("telemetry")
        assert "longer than the plan allows" in telemetry.reason


def test_the_memory_limit_of_the_plan_is_one_sentence_and_no_update(site):
    plan = msgspec.structs.replace(QUICK, trainer_memory_bytes_max=32 << 20)
    with site.coordinator as coordinator, AgentProcess(site.config) as agent:
        coordinator.announce(plan)
        coordinator.wait_for("birth")
        coordinator.offer(1, plan)
        agent.wait_for(
            r'event=trainer round=1 ok=0 .*reason="out of memory: the plan allows 32 MB, '
            r'libraries take \d+ and training \d+"$'
        )
        telemetry, _ = coordinator.wait_for("telemetry")
        assert "out of memory" in telemetry.reason


def test_goodbye_is_a_death_with_the_numbers_of_the_birth_and_so_is_a_crash(site):
    with site.coordinator as coordinator:
        coordinator.announce(QUICK)
        boots = []
        for end in (AgentProcess.terminate, AgentProcess.kill):
            with AgentProcess(site.config) as agent:
                birth, _ = coordinator.wait_for("birth")
                assert birth.num_examples == EXAMPLES
                boots.append(birth.boot)
                end(agent)
                death, _ = coordinator.wait_for("death")
                assert (death.boot, death.connection) == (birth.boot, birth.connection)
                agent.wait()
    assert boots[1] == boots[0] + 1
    record = storyfile.load(site.state / "story")
    assert record.ending == "SIGTERM"  # the crash had no time to tell
    assert record.entries[0].event == "booted"


def test_one_state_directory_one_agent(site):
    with AgentProcess(site.config) as first:
        first.wait_for("event=ready")
        with AgentProcess(site.config) as second:
            second.wait_for(r"Error: another agent runs with .*-state: one state directory, one agent$")
            assert second.wait() == 1
        assert is_alive(first.pid)


def test_status_tells_what_it_does_and_whether_it_still_does(site):
    command = [sys.executable, "-c", "from edge_agent.cli import main; main()", "status", "--config", site.config]
    with AgentProcess(site.config) as agent:
        agent.wait_for(r"event=ready")
        running = subprocess.run(command, capture_output=True, text=True, check=False)
        agent.terminate()
        assert agent.wait() == 0
    ended = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert running.returncode == 0, running.stderr
    assert running.stdout.splitlines()[0].endswith(": idle")
    assert f"{EXAMPLES} examples to learn from" in running.stdout
    assert ended.returncode == 1
    assert msgspec.json.decode(ended.stdout)["running"] is False


def test_a_wrong_port_is_told_and_the_agent_goes_on(tmp_path):
    site = make_site("mqtt://127.0.0.1:9", tmp_path)
    with AgentProcess(site.config) as agent:
        agent.wait_for(r'event=link up=0 reason="cannot connect to 127.0.0.1:9: Connection refused"$')
        agent.terminate()
        assert agent.wait() == 0


def test_a_full_disk_ends_the_agent_with_one_sentence_and_the_old_state_stands(site):
    with AgentProcess(site.config) as agent:
        agent.wait_for(r"event=ready")
        agent.terminate()
        assert agent.wait() == 0
    before = flash.Flash(Directory(site.state)).load()
    # A file-size limit is a full disk for whoever has no disk to fill: EFBIG in place of ENOSPC.
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))"
    with AgentProcess(site.config, before=full) as agent:
        agent.wait_for(r"Error: cannot use .*: File too large; free some space on the disk of .*, at least 1 MB")
        assert agent.wait() == 1
    assert flash.Flash(Directory(site.state)).load() == before
    assert samples.Samples(site.state / "samples").count_labelled() == EXAMPLES
