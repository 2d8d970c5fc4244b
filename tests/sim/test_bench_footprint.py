"""The footprint benchmark: what is counted is what was there, limits are halved rightly, and null stays null."""

import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from benchmarks import footprint, footprint_disk, footprint_fleet, footprint_flower, footprint_idle, footprint_rounds
from benchmarks.environments import NotToBeHadError
from benchmarks.gate import Gate
from engine.frame import frame_of
from firmware_sim.fleet import FleetError


def test_a_target_is_what_was_measured_of_ours_and_null_with_a_reason_where_it_could_not_be() -> None:
    rows = footprint.Rows()
    rows.measure(["idle_rss_mb"], lambda: rows.add({"idle_rss_mb": 34.5}, "a note"))
    rows.add({"idle_rss_mb": 263.0, "death_seen_s": 60.0}, side=footprint_flower.NAME)

    def fail() -> None:
        raise FleetError("nobody came")

    rows.measure(["death_seen_s"], fail)
    found = footprint.targets(rows.all)
    assert set(found) == set(footprint.TARGETS)
    assert {name: value for name, value in found.items() if value is not None} == {"idle_rss_mb": 34.5}
    lines = footprint.table({"machine": "m", "date": "d", "rows": rows.all})
    assert "| idle_rss_mb | hedgerow | 34.5 | a note |" in lines
    assert "| death_seen_s | hedgerow |  | nobody came |" in lines


@pytest.mark.parametrize("enough_mb", [40, 96, 104, 288])
def test_the_smallest_limit_is_the_one_below_which_it_fails(enough_mb: int) -> None:
    tried: list[int] = []

    def shortage(limit_mb: int) -> str:
        tried.append(limit_mb)
        return "" if limit_mb >= enough_mb else f"{limit_mb} MB: killed"

    found = footprint_rounds.smallest(footprint_rounds.LIMITS_MB, shortage)
    assert found.limit_mb == enough_mb
    assert found.why == ("" if enough_mb == footprint_rounds.LIMITS_MB[0] else f"{enough_mb - 8} MB: killed")
    assert len(tried) <= 6
    with pytest.raises(NotToBeHadError, match="288 MB: killed"):
        footprint_rounds.smallest(footprint_rounds.LIMITS_MB, lambda limit_mb: f"{limit_mb} MB: killed")


def test_requirements_are_those_of_the_python_asked_for_and_not_of_this_one() -> None:
    old, new = (" ".join(footprint_disk.requirements(python)) for python in ("3.11", "3.13"))
    assert "tflite-runtime==2.14.0" in old
    assert "litert" not in old
    assert "ai-edge-litert" in new
    assert "tflite-runtime" not in new
    assert "paho-mqtt" in old
    assert "paho-mqtt" in new


def test_what_is_installed_has_the_kernels_of_this_machine_and_no_others(tmp_path, monkeypatch) -> None:
    mine, native = tmp_path / "x86-64-v4-0.so", tmp_path / "tree/engine/kernels/native"
    mine.write_text("mine")
    monkeypatch.setattr(footprint_disk, "kernels", lambda: mine)
    for left_over in ([], ["aarch64-0.so"]):
        native.mkdir(parents=True, exist_ok=True)
        for name in left_over:
            (native / name).touch()
        footprint_disk._add_kernels(tmp_path / "tree")
        assert [file.name for file in native.iterdir()] == [mine.name]


def test_the_models_have_the_parameters_that_their_rows_name() -> None:
    models = (footprint_rounds.small(), footprint_rounds.large(), footprint_rounds.convolution())
    sizes = [frame_of(model.file, model.train).suffix.num_params for model in models]
    assert sizes == [1_290, 1_001_877, 979_306]


def test_a_cgroup_ends_who_takes_more_and_lets_live_who_takes_less() -> None:
    code = "import sys; len(bytes(int(sys.argv[1]) << 20).replace(bytes(1), b'x'))"

    def status(taken_mb: int) -> int:
        with footprint_rounds.cgroup(64) as before:
            return subprocess.run([*before, sys.executable, "-S", "-c", code, str(taken_mb)], check=False).returncode

    try:
        assert status(8) == 0
    except NotToBeHadError as error:
        pytest.skip(str(error))
    assert status(200) != 0
    assert not footprint_rounds._place()[0].exists()


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    code = "import subprocess, sys; x = bytes(30 << 20).replace(bytes(1), b'x'); print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {code!r}])"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    rss, pss = footprint_fleet.memory_of(process.pid)
    process.communicate("\n")
    assert 30 < pss <= rss < 100
    assert footprint_fleet.memory_of(process.pid) == (0, 0), "it is gone"


def test_a_vigil_counts_what_passes_the_gate_in_its_window_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint_idle, "SETTLE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        gate = Gate(server.getsockname()[1])
        device = socket.create_connection(("127.0.0.1", gate.port), timeout=5)
        peer, _ = server.accept()
        device.sendall(b"before the window")
        agent = SimpleNamespace(pid=os.getpid(), is_running=True, tail=lambda _lines: "")
        vigil = footprint_idle.Vigil(agent, gate, None, 0.6)
        timer = threading.Timer(0.6, lambda: (device.sendall(b"ping"), peer.sendall(b"pong!")))
        timer.start()
        found = vigil.idle()
        device.close()
        peer.close()
        gate.close()
    assert found.tcp_bytes == len("ping") + len("pong!")
    assert found.tcp_bytes_per_min == pytest.approx(9 / found.seconds * 60)
    assert found.flash_bytes_per_day is None
    assert found.rss_mb > 10
    agent.is_running = False
    with pytest.raises(FleetError, match="did not live"):
        vigil.idle()


def test_a_death_is_counted_from_the_silence_to_the_line_about_that_device(tmp_path) -> None:
    log = tmp_path / "log"
    log.write_text("event=death device=elm\n")
    shut: list[float] = []
    gate = SimpleNamespace(shut=lambda: shut.append(time.monotonic()))
    farm = SimpleNamespace(coordinator=SimpleNamespace(log=log))

    def say() -> None:
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("event=death device=dune\n")
            file.flush()
            time.sleep(0.2)
            file.write("event=death device=elm\n")

    threading.Thread(target=say).start()
    assert 0.3 < footprint_idle.death_seen_s(farm, gate, "elm") < 5
    assert len(shut) == 1
