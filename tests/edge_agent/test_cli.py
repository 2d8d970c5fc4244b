"""The command: instant help, one answer, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent import config, flash, samples
from edge_agent.cli import main
from edge_agent.disk import Directory
from edge_agent.sources import files
from edge_agent.sources.files import read_npz
from edge_agent.sources.settings import SourceError
from tests.real.scripted_coordinator import FRAME, MODEL, PARAMS, write_digits
from wire import chunks, keys

COORDINATOR = keys.public_text(keys.generate())


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def device(tmp_path) -> config.Config:
    run(
        "keygen",
        "--id",
        "dev-1",
        "--fleet",
        "f",
        "--mqtt",
        "mqtt://127.0.0.1:9",
        "--coordinator",
        COORDINATOR,
        "--dir",
        tmp_path,
    )
    return config.load(tmp_path / "dev-1.toml")


@pytest.fixture
def path(device):
    return device.device.key.with_name("dev-1.toml")


def test_help_is_instant():
    times = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", "from edge_agent.cli import main; main()", "--help"], check=True, capture_output=True
        )
        times.append(time.monotonic() - began)
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import edge_agent.cli"], check=True, capture_output=True, text=True
    ).stderr
    assert not [name for name in ("paho", "cryptography", "msgspec", "cbor2", "numpy") if f"| {name}" in loaded]
    assert min(times) < 1.0  # 0.1 s on a quiet machine; this one may be busy


def test_every_command_tells_its_exit_status():
    for command in ("keygen", "run", "status", "doctor", "warm", "predict", "finetune", "inspect", "bench"):
        assert "Exit status" in run(command, "--help")
    for command in ("add", "count", "label"):
        assert "Exit status" in run("samples", command, "--help")


def test_keygen_prints_the_line_that_enrols_the_device(tmp_path):
    options = ("--id", "dev-1", "--fleet", "f", "--mqtt", "mqtt://h", "--coordinator", COORDINATOR, "--dir", tmp_path)
    output = run("keygen", *options)
    public = keys.public_text(keys.load_seed(tmp_path / "dev-1.key"))
    assert f"broker fleet add dev-1 {public}" in output
    assert "never overwritten" in run("keygen", *options, code=1)
    wrong = run("keygen", "--id", "dev/1", *options[2:], code=1)
    assert wrong.startswith("Error: the command line, [device] id: device 'dev/1' cannot be used")
    assert wrong.count("\n") == 1


def test_samples_are_added_and_counted(tmp_path, path):
    source = write_digits(tmp_path / "d.npz", 20)
    assert "there are no samples" in run("samples", "count", "--config", path, code=1)
    assert "added 20 windows, numbers 1 to 20; 20 labelled in all" in run("samples", "add", source, "--config", path)
    added = json.loads(run("samples", "add", source, "--config", path, "--json"))
    assert added == {"added": 20, "first": 21, "last": 40, "labelled": 40}
    counted = json.loads(run("samples", "count", "--config", path, "--json"))
    assert counted == {"labelled": 40, "shape": [8, 8, 1], "capacity": 2000}


def test_a_window_that_waits_is_labelled(path, device):
    waiting = samples.create(device.waiting_path, (2,), 5)
    waiting.append(np.ones(2, "<f4").tobytes())
    assert run("samples", "label", 1, 7, "--config", path) == ""
    assert samples.read_arrays(device.samples_path).labels.tolist() == [7]
    assert "window 1 has a label already: 7" in run("samples", "label", 1, 8, "--config", path, code=1)
    assert "window 2 does not wait for a label" in run("samples", "label", 2, 8, "--config", path, code=1)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"y": np.zeros(2, int)}, "has no array x"),
        ({"x": np.zeros((2, 3), int), "y": np.zeros(2, int)}, "float32 windows"),
        ({"x": np.zeros((0, 3), "f4"), "y": np.zeros(0, int)}, "float32 windows"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(3, int)}, "2 integers are needed"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(2, "f4")}, "2 integers are needed"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.array([0, -2])}, "lies outside -1"),
        ({"x": np.array([[0, 1], [2, np.nan]], "f4"), "y": np.zeros(2, int)}, "window 1 .* NaN"),
        ({"x": np.array([[object()], [1]], object), "y": np.zeros(2, int)}, "cannot read"),
    ],
)
def test_a_file_that_brings_no_samples_says_why(tmp_path, arrays, sentence):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(SourceError, match=sentence):
        read_npz(tmp_path / "x.npz")


def test_a_file_of_something_else_says_why(tmp_path, path):
    (tmp_path / "x.npz").write_bytes(b"rubbish")
    assert "cannot read" in run("samples", "add", tmp_path / "x.npz", "--config", path, code=1)


def test_windows_of_another_shape_are_refused(tmp_path, device):
    files.add_npz(write_digits(tmp_path / "d.npz", 3), device.samples_path, 10)
    np.savez(tmp_path / "other.npz", x=np.zeros((2, 5), "f4"), y=np.zeros(2, int))
    with pytest.raises(samples.SamplesError, match="keeps windows of shape"):
        files.add_npz(tmp_path / "other.npz", device.samples_path, 10)


def test_predict_runs_the_newest_model_on_flash_in_a_child(tmp_path, path, device):
    source = write_digits(tmp_path / "d.npz", 30)
    assert "no model is on flash" in run("predict", source, "--config", path, code=1)
    store = flash.Flash(Directory(device.device.state))
    described = tuple(chunks.split(name, data) for name, data in (("model.tflite", MODEL), ("params.bin", PARAMS)))
    for file, data in zip(described, (MODEL, PARAMS), strict=True):
        store.open_file(file)
        for index in range(len(file.chunk_digests)):
            store.write_chunk(file, index, chunks.chunk_at(data, file, index).data)
        store.seal_file(file)
    store.note_model(flash.Model(5, "last-2", described))
    found = json.loads(run("predict", source, "--config", path, "--json"))
    assert (found["model_version"], len(found["labels"]), found["known"]) == (5, 30, 30)
    assert found["labels"] == expected_labels(source)
    (device.device.state / flash.file_name(described[1].digest)).write_bytes(b"!" * len(PARAMS))
    assert "params.bin of version 5 is not whole" in run("predict", source, "--config", path, code=1)


def expected_labels(source) -> list[int]:
    """By the model runtime, of the file that the coordinator would export."""
    from engine.models import interpreter

    raw = interpreter.open_model(FRAME.file_with(PARAMS))(read_npz(source).windows)
    return np.argmax(raw, axis=1).tolist()


def test_the_doctor_finds_what_is_wrong_and_says_how_to_mend_it(tmp_path, path, device):
    device.device.key.chmod(0o644)
    found = json.loads(run("doctor", "--config", path, "--json", code=1))
    findings = {finding["name"]: finding for finding in found["findings"]}
    assert not found["fit"]
    assert findings["python"]["ok"]
    assert findings["interpreter"]["ok"], findings["interpreter"]
    assert findings["state"]["ok"]
    assert "chmod 600" in findings["key"]["text"]
    assert "Connection refused" in findings["mqtt"]["text"]
    assert "samples add" in findings["samples"]["text"]


def test_the_doctor_tells_a_clock_of_1970_and_a_limit_that_nothing_measures(path, monkeypatch):
    from edge_agent import doctor, host

    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    monkeypatch.setattr(doctor, "CHECKS", [check for check in doctor.CHECKS if check[0] in {"clock", "budget"}])
    monkeypatch.setattr(host.Sensors, "read", lambda _self: host.Host())
    monkeypatch.setattr(doctor, "_on_the_link", lambda _config: iter(()))
    monkeypatch.setattr(doctor, "LOAD_S", 0.0)
    path.write_text(path.read_text().replace("# mains_only", "mains_only"))
    clock, budget = run("doctor", "--config", path, code=1).splitlines()
    assert clock.startswith("mind  clock: the clock stands before 2024")
    assert budget.startswith("wrong budget: this host cannot tell what mains_only limits")


@pytest.mark.parametrize(
    ("in_use", "is_wrong"), [("aarch64, compiled ahead of time", False), ("Numba 0.68.1, compiled here", True)]
)
def test_a_slow_first_kernel_is_wrong_only_where_kernels_are_compiled_on_the_device(monkeypatch, in_use, is_wrong):
    from edge_agent import doctor

    monkeypatch.setattr(doctor, "_in_child", lambda *_: f"10.1\n{in_use}")
    monkeypatch.setattr(doctor, "CHECKS", [check for check in doctor.CHECKS if check[0] == "kernels"])
    monkeypatch.setattr(doctor, "_on_the_link", lambda _config: iter(()))
    (found,) = doctor.examine(None)
    assert found.ok is not is_wrong
    assert ("edge-agent warm" in found.text) is is_wrong


def test_a_check_that_takes_for_ever_is_a_finding(monkeypatch):
    from edge_agent import doctor

    monkeypatch.setattr(doctor, "CHILD_S", 0.1)
    with pytest.raises(doctor.Wrong, match="no answer within 0 s"):
        doctor._in_child("import time; time.sleep(30)", "")


def test_a_status_that_may_not_be_read_is_one_line(path, device, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied", str(device.device.state / "status.json"))

    monkeypatch.setattr(flash, "read_file", refuse)
    output = run("status", "--config", path, code=1)
    assert "Permission denied" in output
    assert output.count("\n") == 1


def test_a_config_mistake_is_one_line_of_any_command(tmp_path):
    (tmp_path / "c.toml").write_text("[devise]\n")
    for command in (["run"], ["status"], ["doctor"], ["samples", "count"]):
        output = run(*command, "--config", tmp_path / "c.toml", code=1)
        assert output.startswith("Error: ")
        assert "unknown key 'devise'" in output
        assert output.count("\n") == 1
