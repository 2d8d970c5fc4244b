"""Export: one .npz that `edge-agent finetune` takes, with the same change of scene in both of its parts."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_agent import datafile
from firmware_sim import data, export, speech
from firmware_sim.cli import main
from tests.sim.test_speech import write_clips


@pytest.fixture
def cifar(tmp_path):
    chance = np.random.default_rng(1)
    (tmp_path / data.CIFAR_LABELS).write_text(f"var labels={chance.integers(0, 10, 51_000).tolist()};\n")
    for number in (0, 50):
        rows = chance.integers(0, 256, (20, 1024, 3)).astype(np.uint8)
        Image.fromarray(rows).save(tmp_path / f"cifar10_batch_{number}.png")
    return tmp_path


def test_pictures_train_on_the_first_batches_and_are_measured_on_the_last(cifar):
    whole = data.read(cifar)
    arrays = export.cifar10(cifar, None, seed=1)
    assert arrays["windows"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["windows"], whole.windows[~whole.is_test])
    np.testing.assert_array_equal(arrays["test_windows"], whole.windows[whole.is_test])
    np.testing.assert_array_equal(arrays["test_labels"], whole.labels[whole.is_test])


def test_a_shift_changes_both_parts_and_no_label(cifar):
    plain = export.cifar10(cifar, None, seed=1)
    inverted, turned = (export.cifar10(cifar, shift, seed=1) for shift in ("invert", "rot90"))
    for part in ("windows", "test_windows"):
        np.testing.assert_array_equal(inverted[part], 255 - plain[part])
        np.testing.assert_array_equal(turned[part][:, 0, 0], plain[part][:, 0, -1])  # right upper corner to the left
    for part in ("labels", "test_labels"):
        np.testing.assert_array_equal(inverted[part], plain[part])


def test_contrast_flattens_and_brightens_and_its_noise_comes_from_the_seed():
    pictures = np.full((2, 64, 64, 3), 228, np.uint8)
    changed = export.shift_pictures(pictures, "contrast", seed=4)
    assert changed.mean() == pytest.approx((228 - 128) * 0.6 + 100, abs=0.5)
    assert changed.std() == pytest.approx(8.0, abs=0.3)
    np.testing.assert_array_equal(changed, export.shift_pictures(pictures, "contrast", seed=4))
    assert (changed != export.shift_pictures(pictures, "contrast", seed=5)).any()


def test_speech_is_measured_by_voices_that_training_never_hears(tmp_path):
    folder = write_clips(tmp_path)
    clips = speech.read_clips(folder)
    arrays = export.speech_commands(folder, None, 1, seed=2)
    measures = speech.measuring_speakers(clips, 1, 2)
    np.testing.assert_array_equal(arrays["test_labels"], clips.labels[measures])
    np.testing.assert_array_equal(arrays["windows"], speech.front_end(clips.samples[~measures]))
    noisy = export.speech_commands(folder, "noise", 1, seed=2)
    assert len(noisy["labels"]) == export.NOISE_COPIES * len(arrays["labels"])
    assert noisy["labels"].tolist() == arrays["labels"].tolist() * export.NOISE_COPIES
    assert len({window.tobytes() for window in noisy["windows"]}) == len(noisy["windows"])
    assert not np.array_equal(noisy["test_windows"], arrays["test_windows"])


def test_the_command_writes_what_the_agent_reads(cifar, tmp_path):
    out = tmp_path / "shifted.npz"
    done = CliRunner().invoke(main, ["export", "cifar10", str(out), "--data", str(cifar), "--shift", "rot90"])
    assert done.exit_code == 0, done.output
    found = datafile.read(out)
    assert f"{len(found.mine.labels)} windows of 32x32x3 to train on, {len(found.test.labels)} to measure with" in (
        done.output
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cifar10", "--shift", "noise"), "pictures cannot be shifted by noise: choose contrast, rot90, invert"),
        (("speech",), "holds no speech_commands_"),
        (("speech", "--shift", "invert"), "speech cannot be shifted by invert: choose noise"),
    ],
)
def test_a_mistake_is_one_line(cifar, tmp_path, arguments, sentence):
    done = CliRunner().invoke(main, ["export", *arguments, str(tmp_path / "o.npz"), "--data", str(cifar)])
    assert done.exit_code == 1
    assert sentence in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "o.npz").exists()


def test_a_place_that_cannot_be_written_is_one_line(cifar, tmp_path):
    out = str(tmp_path / "nowhere/o.npz")
    done = CliRunner().invoke(main, ["export", "cifar10", out, "--data", str(cifar)])
    assert (done.exit_code, done.output) == (1, f"Error: cannot write {out}: No such file or directory\n")
