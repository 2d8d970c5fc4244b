"""Spoken words as a keyword model hears them: Google's Speech Commands, with the reference model's own front end.

    zip of 1 s wav files  --read_clips-->  Clips  --add_noise-->  Clips  --front_end-->  windows [n, 49, 10, 1]

The front end is that of MLPerf Tiny's keyword spotting model (mlcommons/tiny, keyword_spotting/get_dataset.py): mel
frequency cepstral coefficients of 49 overlapping frames. It runs in float64 on this side of the model; what a device
trains on are its windows. A clip knows its speaker, so that a test can hold voices that no training has heard.
"""

from __future__ import annotations

import io
import wave
import zipfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from firmware_sim.data import DataError, Dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES: Final = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
UNKNOWN: Final = CLASSES.index("unknown")  # the label of every word that is not a class of its own
SPEECH_FILES: Final = "speech_commands_*.zip"
RATE_HZ: Final = 16_000
CLIP_SAMPLES: Final = 16_000  # one second
FRAMES: Final = 49
FRAME_SAMPLES: Final = 480  # 30 ms
STEP_SAMPLES: Final = 320  # 20 ms
SPECTRUM: Final = 512
MEL_BANDS: Final = 40
MEL_HZ: Final = (20.0, 4000.0)
COEFFICIENTS: Final = 10
LOG_FLOOR: Final = 1e-6


@dataclass(frozen=True)
class Clips:
    """Recorded words: `samples` float32 [n, 16000] with the loudest at 1.0, `labels` int32 [n] into CLASSES."""

    samples: NDArray[np.float32]
    labels: NDArray[np.int32]
    words: NDArray[np.str_]
    speakers: NDArray[np.str_]

    def take(self, rows: NDArray[Any]) -> Clips:
        """Return the clips at `rows`, indices or booleans."""
        return Clips(self.samples[rows], self.labels[rows], self.words[rows], self.speakers[rows])


def read_clips(directory: Path) -> Clips:
    """Read every `<word>/<speaker>_nohash_<n>.wav` of the zip in `directory`, in the order of their names.

    Raises DataError, one line, when there is no such zip or a member is not one second of 16 kHz mono speech.
    """
    path = min(directory.glob(SPEECH_FILES), default=None)
    if path is None:
        raise DataError(f"{directory} holds no {SPEECH_FILES}: name the folder with the Speech Commands sample")
    samples, words, speakers = [], [], []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".wav")):
                word, file = name.split("/")[-2:]
                samples.append(_clip(archive.read(name), f"{path}, {name}"))
                words.append(word)
                speakers.append(file.partition("_nohash_")[0])
    except DataError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path} ({error}); fetch it again") from error
    if not samples:
        raise DataError(f"{path} holds no wav file; fetch it again")
    labels = [CLASSES.index(word) if word in CLASSES else UNKNOWN for word in words]
    return Clips(np.stack(samples), np.array(labels, np.int32), np.array(words), np.array(speakers))


def read_speech(directory: Path) -> Dataset:
    """The clips of `directory` as windows that know their speaker; who measures is for `share` to choose."""
    clips = read_clips(directory)
    return Dataset("speech-commands", front_end(clips.samples), clips.labels, clips.speakers)


def measuring_speakers(clips: Clips, count: int, seed: int) -> NDArray[np.bool_]:
    """Mark the clips of `count` speakers drawn by `seed`: those who measure, and whom training never hears.

    Raises DataError unless at least one speaker is left on either side.
    """
    people = np.unique(clips.speakers)
    if not 0 < count < len(people):
        raise DataError(f"{count} speakers cannot measure: the data has {len(people)}; leave some on either side")
    return np.isin(clips.speakers, np.random.default_rng(seed).permutation(people)[:count])


def add_noise(clips: Clips, snr_db: float, seed: int) -> Clips:
    """The same clips with white noise `snr_db` below the loudness (root mean square) of each, and as loud again."""
    chance = np.random.default_rng(seed)
    loudness = np.sqrt(np.mean(np.square(clips.samples, dtype=np.float64), axis=1, keepdims=True))
    noisy = clips.samples + chance.standard_normal(clips.samples.shape) * loudness * 10.0 ** (-snr_db / 20.0)
    return replace(clips, samples=(noisy / noisy.max(axis=1, keepdims=True)).astype(np.float32))


def front_end(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows float32 [n, 49, 10, 1] of `samples` [n, 16000]: per frame the logarithm of 40 mel bands, transformed.

    Frames of 480 samples every 320 under a periodic Hann window; magnitudes of a 512-point Fourier transform; 40
    triangular mel bands from 20 to 4000 Hz; logarithm of the band + 1e-6; discrete cosine transform II divided by
    sqrt(80), the first ten. The constants and conventions are those of tf.signal, which trained the model.
    """
    rows = STEP_SAMPLES * np.arange(FRAMES)[:, np.newaxis] + np.arange(FRAME_SAMPLES)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES)
    bands, cosines = _mel_bands(), _cosines()
    windows = np.empty((len(samples), FRAMES, COEFFICIENTS, 1), np.float32)
    for window, clip in zip(windows, samples, strict=True):  # clip by clip: all frames at once would take 400 MB
        magnitudes = np.abs(np.fft.rfft(clip[rows] * hann, SPECTRUM))
        window[..., 0] = np.log(magnitudes @ bands + LOG_FLOOR) @ cosines
    return windows


def _clip(data: bytes, place: str) -> NDArray[np.float32]:
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            recorded = np.frombuffer(file.readframes(CLIP_SAMPLES), "<i2").astype(np.float32)
    except (EOFError, wave.Error) as error:
        raise DataError(f"{place} is not a wav file ({error}); fetch it again") from error
    if form != (1, 2, RATE_HZ) or not len(recorded) or recorded.max() <= 0:
        raise DataError(f"{place} is not 16 kHz mono 16-bit speech; convert it first")
    padded = np.zeros(CLIP_SAMPLES, np.float32)
    padded[: len(recorded)] = recorded / recorded.max()
    return padded


def _mel_bands() -> NDArray[np.float64]:
    """The weight of each of 257 frequencies in each of 40 bands, triangles that are even on the mel scale (HTK's)."""

    def mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        warped: NDArray[np.float64] = 1127.0 * np.log1p(hz / 700.0)
        return warped

    low, high = mel(np.array(MEL_HZ))
    edges = np.linspace(low, high, MEL_BANDS + 2)
    places = mel(np.linspace(0.0, RATE_HZ / 2, SPECTRUM // 2 + 1))[:, np.newaxis]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    weights: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0  # the constant part belongs to no band
    return weights


def _cosines() -> NDArray[np.float64]:
    bands = 2 * np.arange(MEL_BANDS)[:, np.newaxis] + 1
    turned: NDArray[np.float64] = np.cos(np.pi * bands * np.arange(COEFFICIENTS) / (2 * MEL_BANDS))
    turned *= 2.0 / np.sqrt(2.0 * MEL_BANDS)
    return turned
