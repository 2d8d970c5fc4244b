"""`edge-agent finetune`, `inspect`, `bench`: the figures are those of the written file, and a mistake is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent import measuring, modelfile, screen, standard, tuning
from edge_agent.cli import main
from engine import frozen
from engine.models import interpreter, scheme
from engine.models.inspect import inspect
from engine.program import memory_of
from firmware_sim import data

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "firmware_sim/models/digits.tflite"
REFERENCE = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny/pretrainedResnet_quant.tflite"


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout if code == 0 else done.output


def digits() -> dict[str, np.ndarray]:
    """Negatives of the fleet's digits, which the shipped model has never seen: there is something to learn."""
    dataset = data.digits()
    windows, labels = 1.0 - dataset.windows, dataset.labels
    return {
        "windows": windows[~dataset.is_test], "labels": labels[~dataset.is_test],
        "test_windows": windows[dataset.is_test], "test_labels": labels[dataset.is_test],
    }  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, **digits())
    return path


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """One fine-tuning, and what it told."""
    out = tmp_path_factory.mktemp("out") / "tuned.tflite"
    told = run("finetune", MODEL, source, "--epochs", 3, "--rate", 0.02, "--out", out, "--json")
    return out, json.loads(told)


def test_the_tuned_file_is_the_old_one_with_other_trained_constants_and_knows_more(tuned):
    out, told = tuned
    old, new = modelfile.read(MODEL), modelfile.read(out)
    assert len(old.data) == len(new.data) == told["file_bytes"]
    suffix = scheme.resolve(old.graph, "last-2")
    trained = {index for layer in suffix.layers for index in (layer.weights, layer.bias)}
    for before, after in zip(old.graph.tensors, new.graph.tensors, strict=True):
        if before.data is not None:
            assert np.array_equal(before.data, after.data) == (before.index not in trained), before.name
    moved = np.count_nonzero(scheme.params_of(old.graph, suffix) != scheme.params_of(new.graph, suffix))
    assert (told["params"], told["params_changed"]) == (suffix.num_params, moved)
    assert told["after"]["own"] > told["before"]["own"] + 0.05


def test_accuracy_is_that_of_the_two_files_on_the_windows_that_never_trained(tuned):
    out, told = tuned
    arrays = digits()
    for name, path in (("before", MODEL), ("after", out)):
        file = modelfile.read(path)
        own = frozen.predict(file.data, file.graph, arrays["test_windows"]) == arrays["test_labels"]
        assert told[name]["own"] == own.sum() / len(own)
        runtime = interpreter.open_model(file.data)(arrays["test_windows"]).argmax(axis=1) == arrays["test_labels"]
        assert told[name]["runtime"] == pytest.approx(runtime.sum() / len(runtime), abs=0.01)  # its fast kernels round
    assert [epoch["number"] for epoch in told["epochs"]] == [0, 1, 2, 3]
    assert (told["epochs"][0]["accuracy"], told["epochs"][-1]["accuracy"]) == (
        told["before"]["own"],
        told["after"]["own"],
    )
    losses = [epoch["loss"] for epoch in told["epochs"][1:]]
    assert losses == sorted(losses, reverse=True)


def test_memory_is_as_planned_and_saturation_and_dead_channels_are_those_of_the_file(tuned):
    out, told = tuned
    graph = modelfile.read(out).graph
    suffix = scheme.resolve(graph, "last-2")
    assert told["arena_bytes"] == told["arena_planned_bytes"] == memory_of(graph, suffix, 16)
    assert told["peak_rss_bytes"] > 30e6
    weights = np.concatenate([graph.tensors[layer.weights].data.ravel() for layer in suffix.layers])
    assert told["saturated_rate"] == pytest.approx((np.abs(weights.astype(int)) == 127).mean())
    told_of = [layer for layer in inspect(graph, 16).layers if layer.kind == "FULLY_CONNECTED"]
    assert told["channels"] == sum(layer.num_channels for layer in told_of) == 138
    assert told["channels_dead"] == sum(layer.num_dead for layer in told_of)
    assert told["steps"] == 3 * 45  # 719 windows, 16 a step


def test_a_plot_is_written_beside_the_file(tuned):
    out, told = tuned
    assert told["plot"] == str(out.with_suffix(".png"))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_and_without_a_runtime_there_is_one_figure_less(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(interpreter, "RUNTIMES", ())
    told = run("finetune", MODEL, source, "--epochs", 1, "--rate", 0.02, "--out", tmp_path / "t.tflite")
    assert "no model runtime here runs the file" in told
    assert told.splitlines()[-1] == f"wrote      {tmp_path / 't.tflite'}, {MODEL.stat().st_size} bytes"
    assert not (tmp_path / "t.png").exists()


def test_the_same_seed_gives_the_same_file_and_another_seed_another(source, tuned, tmp_path):
    out, _ = tuned
    for name, seed in (("same", 1), ("other", 2)):
        options = ("--epochs", 3, "--rate", 0.02, "--seed", seed, "--out", tmp_path / name)
        run("finetune", MODEL, source, *options)
    assert (tmp_path / "same").read_bytes() == out.read_bytes()
    assert (tmp_path / "other").read_bytes() != out.read_bytes()


def test_a_rate_is_chosen_on_windows_that_train_and_the_test_has_no_say_in_it(source, tmp_path):
    arrays = digits()
    np.savez(tmp_path / "twisted.npz", **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})
    options = ("--epochs", 1, "--json", "--out")
    told = json.loads(run("finetune", MODEL, source, *options, tmp_path / "a.tflite"))
    tried = {float(rate): accuracy for rate, accuracy in told["rates_tried"].items()}
    assert list(tried) == list(tuning.RATES)
    assert tried[told["rate"]] == max(tried.values())
    run("finetune", MODEL, tmp_path / "twisted.npz", *options, tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_the_model_itself_is_overwritten_only_when_asked(source, tmp_path):
    mine = tmp_path / "mine.tflite"
    mine.write_bytes(MODEL.read_bytes())
    (tmp_path / "link").symlink_to(mine)
    for out in (mine, tmp_path / "link"):
        told = run("finetune", mine, source, "--epochs", 1, "--rate", 0.02, "--out", out, code=1)
        assert told == f"Error: {out} is the model itself: name another file with --out, or say --overwrite\n"
    assert mine.read_bytes() == MODEL.read_bytes()
    run("finetune", mine, source, "--epochs", 1, "--rate", 0.02, "--out", mine, "--overwrite")
    assert mine.read_bytes() != MODEL.read_bytes()
    assert len(mine.read_bytes()) == len(MODEL.read_bytes())


WRONG = [
    ({}, ("--train", "lost-2"), "lost-2"),
    ({"labels": np.full(719, 10)}, ("--rate", "0.01"), r"A label lies outside 0 .. 9"),
    ({"labels": np.full(719, 10)}, (), r"A label lies outside 0 .. 9"),
    ({"test_labels": np.full(359, 10)}, ("--rate", "0.01"), r"A label lies outside 0 .. 9"),
    ({"labels": None}, (), "has no array labels"),
    ({"windows": np.zeros((719, 9, 8, 1), "f4"), "test_windows": np.zeros((359, 9, 8, 1), "f4")}, (), "a window in"),
    ({"windows": np.full((719, 8, 8, 1), np.nan)}, (), "window 0 of"),
]


@pytest.mark.parametrize(("changes", "options", "sentence"), WRONG)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, changes, options, sentence):
    arrays = {name: array for name, array in (digits() | changes).items() if array is not None}
    np.savez(tmp_path / "d.npz", **arrays)
    told = run("finetune", MODEL, tmp_path / "d.npz", "--out", tmp_path / "t.tflite", *options, code=1)
    last = told.splitlines()[-1]
    assert last.startswith("Error: ")
    assert sentence in last
    assert "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz"]


def test_what_is_no_model_and_a_place_that_is_none_are_one_line(source, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"rubbish")
    for command in (
        ("finetune", tmp_path / "m.tflite", source, "--out", tmp_path / "t"),
        ("inspect", tmp_path / "m.tflite"),
    ):
        assert run(*command, code=1).startswith(f"Error: {tmp_path / 'm.tflite'}: ")
    told = run("finetune", MODEL, source, "--out", tmp_path / "nowhere/t", code=1)
    assert told == f"Error: {tmp_path / 'nowhere'} is not a folder: make it, or name another --out\n"


def test_inspect_tells_layers_and_what_each_cut_costs():
    told = json.loads(run("inspect", MODEL, "--batch-size", 8, "--json"))
    assert [layer["kind"] for layer in told["facts"]["layers"]] == ["CONV_2D"] * 4 + ["FULLY_CONNECTED"] * 2
    graph = modelfile.read(MODEL).graph
    assert len(told["times"]) == len(told["facts"]["cuts"]) == 6
    for cut, times in zip(told["facts"]["cuts"], told["times"], strict=True):
        assert cut["memory_bytes"] == memory_of(graph, scheme.resolve(graph, cut["train"]), 8)
        assert times[1] > 0.0
    steps = [times[1] for times in told["times"]]
    assert steps[0] > steps[-1]  # everything costs more than the last layer
    frozen_ms = [times[0] for times in told["times"]]
    assert frozen_ms[0] == 0.0 < frozen_ms[-1]
    text = run("inspect", MODEL)
    assert "FULLY_CONNECTED" in text
    assert "last-6" in text
    assert "█" in text


def test_bench_measures_three_parts_of_a_model_and_says_which_kernels_ran():
    told = json.loads(run("bench", MODEL, "--batch-size", 4, "--json"))
    assert [pace["train"] for pace in told["paces"]] == ["last-1", "blocks-2", "full"]
    assert (told["model"], told["batch"]) == ("digits.tflite", 4)
    assert told["kernels"]
    for pace in told["paces"]:
        assert pace["images_per_s_cached"] == pytest.approx(4000.0 / pace["step_ms"])
        assert pace["images_per_s"] == pytest.approx(4000.0 / (pace["frozen_ms"] + pace["step_ms"]))
    assert told["kernels"] in "\n".join(measuring.bench_lines(measuring.pace(MODEL, 4, screen.Screen())))


def test_the_standard_model_trains_in_all_its_parts():
    graph = standard.resnet8()
    facts = inspect(graph, 16, memory_of)
    assert facts.num_params == 77_706
    assert [cut.refusal for cut in facts.cuts] == [""] * len(facts.cuts)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="FLEET_MODELS names no folder with mlperf_tiny")
def test_the_standard_model_is_the_reference_model_but_for_its_numbers():
    mine, reference = standard.resnet8(), modelfile.read(REFERENCE).graph

    def form(graph):
        shapes = [[graph.tensors[i].shape for i in (*op.inputs, *op.outputs)] for op in graph.operators]
        return [
            (op.kind, op.activation, sorted(op.options.items()), sorted(shape))
            for op, shape in zip(graph.operators, shapes, strict=True)
            if op.kind != "SOFTMAX"
        ]

    assert sorted(map(str, form(mine))) == sorted(map(str, form(reference)))
    for train in ("last-1", "blocks-2", "full"):
        sizes = [memory_of(graph, scheme.resolve(graph, train), 16) for graph in (mine, reference)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_the_bars_show_on_a_terminal_and_stay_silent_elsewhere():
    shown = "from edge_agent.screen import Screen; s = Screen(); s.begin('epoch 1 of 1', 4); s.reach(2); s.end()"
    command = [sys.executable, "-c", shown]
    silent = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (silent.stdout, silent.stderr) == ("", "")
    leader, follower = os.openpty()
    subprocess.run(command, cwd=ROOT, stderr=follower, check=True)
    os.close(follower)
    drawn = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "epoch 1 of 1" in drawn
    assert " 50%" in drawn


def test_bars_and_tables_are_as_long_as_they_say():
    assert [screen.bar(share, 4) for share in (0.0, 0.5, 1.0, 7.0, -1.0)] == ["    ", "██  ", "████", "████", "    "]
    assert screen.bar(0.125 / 4, 4) == "▏   "
    assert screen.table(("n", "name "), [("1", "a"), ("10", "bcd")]) == [" n  name", " 1  a", "10  bcd"]
