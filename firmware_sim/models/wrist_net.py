"""Makes `wrist.tflite`: random convolutions for 10 s of wrist accelerometer, and an untrained head of six classes.

No data is inside. The frozen part follows ROCKET (Dempster et al. 2020): many random kernels, and of each kernel's
answer over the ten seconds only its mean and its maximum. The window is also averaged down to 10 and 5 Hz, so one
kernel length sees three time scales. Kernels sum to zero over time on each axis, so they see motion and not gravity;
a second, smaller set looks at slow averages only and sees how the wrist is held. Answers pass through RELU6 after
random gains and thresholds: a mean of those says how much of the time the motion was stronger than so, and every
number of the features lies in 0..6 whatever the signal, so int8 needs no knowledge of the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from firmware_sim.models.convert import tensorflow, to_int8

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 2026
SAMPLES = 200  # 10 s at 20 Hz
AXES = 3
RANGE = 20.0  # m/s^2: a watch measures up to +-2 g
KERNEL_SAMPLES = 9
MOTION_BANKS = ((1, 40), (2, 40), (4, 32))  # (samples averaged, kernels)
POSTURE_SAMPLES = 8
POSTURE_KERNELS = 32
MOTIONS = 6
HIDDEN = 64


def wrist_model() -> bytes:
    """Build and convert; a few seconds."""
    tf = tensorflow()
    tf.keras.backend.clear_session()  # the names it counts up end in the file
    tf.keras.utils.set_random_seed(SEED)
    motion, _ = synthetic_motion(600, np.random.default_rng(SEED))
    return to_int8(_network(np.random.default_rng(SEED)), motion)


def synthetic_motion(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return `count` made-up windows, float32 [count, 200, 1, 3] in m/s^2, and which of six motions each is.

    Lying still, swaying, walking, running, shaking and knocking: gravity in any direction, a tone with a harmonic of
    a range of tempi and strengths per motion, and noise; clipped at the sensor's range.
    """
    time = np.arange(SAMPLES) / 20.0
    low_hz, high_hz = np.array([0.1, 0.3, 1.5, 2.3, 4.0, 0.8]), np.array([0.2, 0.8, 2.1, 3.1, 6.0, 1.4])
    low_strength, high_strength = np.array([0.01, 0.3, 1.0, 5.0, 2.0, 2.0]), np.array([0.1, 1.5, 4.0, 15.0, 9.0, 12.0])
    which = rng.integers(0, MOTIONS, count)
    hz = rng.uniform(low_hz[which], high_hz[which])
    strength = np.exp(rng.uniform(np.log(low_strength[which]), np.log(high_strength[which])))
    turns = hz[:, None, None] * time[None, :, None] + rng.uniform(0, 1, (count, 1, AXES))
    wave = np.sin(2 * np.pi * turns) + rng.uniform(0, 0.6, (count, 1, AXES)) * np.sin(4 * np.pi * turns)
    wave = np.where((which == MOTIONS - 1)[:, None, None], np.maximum(wave, 0) ** 6, wave)
    down = rng.normal(0, 1, (count, 1, AXES))
    signal = 9.81 * down / np.sqrt((down**2).sum(axis=2, keepdims=True))
    signal = signal + wave * strength[:, None, None] * rng.uniform(0.3, 1, (count, 1, AXES))
    signal += rng.normal(0, 1, signal.shape) * np.exp(rng.uniform(np.log(0.03), np.log(1.0), (count, 1, 1)))
    return np.clip(signal, -RANGE, RANGE).astype(np.float32)[:, :, None, :], which.astype(np.int64)


def _network(rng: np.random.Generator) -> Any:
    tf = tensorflow()
    layers = tf.keras.layers
    entry = tf.keras.Input((SAMPLES, 1, AXES))
    answers = []
    for averaged, count in MOTION_BANKS:
        x = layers.AveragePooling2D((averaged, 1))(entry) if averaged > 1 else entry
        x = _random_convolution(x, *_motion_kernels(count, rng))
        whole = (x.shape[1], 1)
        answers += [layers.AveragePooling2D(whole)(x), layers.MaxPool2D(whole)(x)]
    x = layers.AveragePooling2D((POSTURE_SAMPLES, 1))(entry)
    x = _random_convolution(x, *_posture_kernels(POSTURE_KERNELS, rng))
    answers.append(layers.AveragePooling2D((x.shape[1], 1))(x))
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()(answers))  # 1x1 pixels: only drops the two axes
    x = layers.Dense(HIDDEN, activation="relu")(x)
    return tf.keras.Model(entry, layers.Dense(MOTIONS, activation="softmax")(x))


def _random_convolution(x: Any, kernels: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
    tf = tensorflow()
    convolution = tf.keras.layers.Conv2D(kernels.shape[3], kernels.shape[:2], activation="relu6")
    answer = convolution(x)
    convolution.set_weights([kernels, bias])
    return answer


def _motion_kernels(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernels [9, 1, 3, count] without a constant part, gains from 0.5 to 3, thresholds up to 2."""
    kernels = rng.standard_normal((KERNEL_SAMPLES, 1, AXES, count))
    kernels -= kernels.mean(axis=0, keepdims=True)
    kernels /= np.sqrt((kernels**2).sum(axis=(0, 1, 2)))
    gain = np.exp(rng.uniform(np.log(0.5), np.log(3.0), count))
    return (kernels * gain).astype(np.float32), (-rng.uniform(0, 2, count)).astype(np.float32)


def _posture_kernels(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Directions [1, 1, 3, count]: how far gravity points that way, above a threshold between -8 and 8 m/s^2."""
    directions = rng.standard_normal((1, 1, AXES, count))
    directions /= np.sqrt((directions**2).sum(axis=(0, 1, 2)))
    gain = np.exp(rng.uniform(np.log(0.3), np.log(1.2), count))
    return (directions * gain).astype(np.float32), (rng.uniform(-8, 8, count) * gain + 3).astype(np.float32)
