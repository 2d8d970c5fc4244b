"""Speech: the clips are read with their speakers, and the front end is the one the keyword model was trained with."""

import io
import math
import os
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from firmware_sim import data, speech

DATA = Path(os.environ.get("FLEET_DATA", "/nowhere")) / "speech_commands_300"
KWS = Path(os.environ.get("FLEET_MODELS", "/nowhere")) / "mlperf_tiny/kws_ref_model.tflite"


def wav(samples, rate=16_000, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


def tone(hz, count=16_000):
    return (8000 * np.sin(2 * np.pi * hz * np.arange(count) / 16_000)).astype(np.int16)


def write_clips(tmp_path):
    with zipfile.ZipFile(tmp_path / "speech_commands_x.zip", "w") as archive:
        for at, (word, speaker) in enumerate(
            [("yes", "aa"), ("yes", "bb"), ("bird", "aa"), ("no", "cc"), ("up", "bb")]
        ):
            archive.writestr(f"{word}/{speaker}_nohash_{at}.wav", wav(tone(200 + 100 * at, 12_000)))
        archive.writestr("LICENSE", "CC BY")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    return write_clips(tmp_path)


def test_a_clip_is_a_second_knows_its_speaker_and_a_word_without_a_class_is_unknown(folder):
    clips = speech.read_clips(folder)
    assert clips.words.tolist() == ["bird", "no", "up", "yes", "yes"]
    assert clips.labels.tolist() == [11, 3, 8, 9, 9]
    assert clips.speakers.tolist() == ["aa", "cc", "bb", "aa", "bb"]
    assert clips.samples.shape == (5, 16_000)
    assert clips.samples.max(axis=1).tolist() == [1.0] * 5
    assert not clips.samples[:, 12_000:].any()


def test_the_folder_is_known_to_the_readers_as_a_set_with_people(folder):
    dataset = data.read(folder)
    assert (dataset.name, dataset.windows.shape) == ("speech-commands", (5, 49, 10, 1))
    assert data.share(dataset, 2, seed=1).devices.keys() == {"device-01", "device-02"}


@pytest.mark.parametrize(
    "content", [wav(tone(300), rate=8000), wav(tone(300), channels=2), wav([]), wav(np.zeros(9)), b"rubbish"]
)
def test_a_member_that_is_not_such_speech_is_one_sentence_that_names_it(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "speech_commands_x.zip", "w") as archive:
        archive.writestr("yes/aa_nohash_0.wav", content)
    with pytest.raises(data.DataError, match=r"yes/aa_nohash_0\.wav is not"):
        speech.read_clips(tmp_path)


def test_a_folder_without_the_zip_and_a_damaged_zip_are_one_sentence(tmp_path):
    with pytest.raises(data.DataError, match="holds no speech_commands"):
        speech.read_clips(tmp_path)
    (tmp_path / "speech_commands_x.zip").write_bytes(b"PK rubbish")
    with pytest.raises(data.DataError, match=r"cannot read .* fetch it again"):
        speech.read_clips(tmp_path)


def naive_frame(samples):
    """One frame of 480 samples, straight from the definitions, with sums."""
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 480) for n in range(480)]
    padded = [s * h for s, h in zip(samples, hann, strict=True)]
    magnitudes = []
    for k in range(257):
        angle = [2 * math.pi * k * n / 512 for n in range(480)]
        real = sum(p * math.cos(a) for p, a in zip(padded, angle, strict=True))
        magnitudes.append(math.hypot(real, sum(p * math.sin(a) for p, a in zip(padded, angle, strict=True))))

    def mel(hz):
        return 1127 * math.log(1 + hz / 700)

    edges = [mel(20) + (mel(4000) - mel(20)) * k / 41 for k in range(42)]
    bands = []
    for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
        total = 0.0
        for k in range(1, 257):
            place = mel(k * 16_000 / 512)
            total += magnitudes[k] * max(0.0, min((place - left) / (middle - left), (right - place) / (right - middle)))
        bands.append(math.log(total + 1e-6))
    return [
        2 * sum(b * math.cos(math.pi * c * (2 * n + 1) / 80) for n, b in enumerate(bands)) / math.sqrt(80)
        for c in range(10)
    ]


def test_the_front_end_is_what_its_definitions_say():
    chance = np.random.default_rng(5)
    clip = (tone(700) / 8000 + 0.1 * chance.standard_normal(16_000)).astype(np.float32)
    window = speech.front_end(clip[np.newaxis])
    assert window.shape == (1, 49, 10, 1)
    assert window.dtype == np.float32
    for frame in (0, 48):
        by_hand = naive_frame(clip[320 * frame : 320 * frame + 480].astype(float).tolist())
        assert window[0, frame, :, 0] == pytest.approx(by_hand, abs=1e-4)


def test_noise_is_as_loud_as_it_is_asked_for_and_another_seed_is_other_noise(folder):
    clips = speech.read_clips(folder)
    for snr_db in (0.0, 10.0):
        noisy = speech.add_noise(clips, snr_db, seed=3)
        assert noisy.samples.max(axis=1).tolist() == [1.0] * 5
        for before, after in zip(clips.samples.astype(float), noisy.samples.astype(float), strict=True):
            part = (before @ after) / (before @ before)  # how much of the word is left after it is made as loud again
            left = after - part * before
            measured = 10 * math.log10(np.mean((part * before) ** 2) / np.mean(left**2))
            assert measured == pytest.approx(snr_db, abs=0.3)
    assert np.array_equal(speech.add_noise(clips, 5.0, 3).samples, speech.add_noise(clips, 5.0, 3).samples)
    assert not np.array_equal(speech.add_noise(clips, 5.0, 3).samples, speech.add_noise(clips, 5.0, 4).samples)


def test_a_speaker_measures_with_all_clips_or_none(folder):
    clips = speech.read_clips(folder)
    for seed in range(5):
        measures = speech.measuring_speakers(clips, 2, seed)
        assert len(set(clips.speakers[measures])) == 2
        assert not set(clips.speakers[measures]) & set(clips.speakers[~measures])
    for count in (0, 3):
        with pytest.raises(data.DataError, match="the data has 3"):
            speech.measuring_speakers(clips, count, 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="FLEET_DATA names no folder with speech_commands_300")
@pytest.mark.skipif(not KWS.is_file(), reason="FLEET_MODELS names no folder with mlperf_tiny")
def test_the_reference_keyword_model_understands_what_this_front_end_hears():
    from engine.models.interpreter import open_model

    clips = speech.read_clips(DATA)
    assert (len(clips.labels), len(set(clips.speakers))) == (300, 41)
    right = open_model(KWS.read_bytes())(speech.front_end(clips.samples)).argmax(axis=1) == clips.labels
    command = clips.labels != speech.UNKNOWN
    assert (right[command].sum(), command.sum()) == (95, 100)
    assert (right[~command].sum(), (~command).sum()) == (198, 200)
