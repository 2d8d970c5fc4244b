"""Makes `digits.tflite`: a small convolutional network for the 8x8 digits, trained on the 'model' 40 % of them.

The convolutions end in a VALID one that leaves 1x1 pixels, and a mean turns those into a row of features, so that the
file takes any batch size (Keras' own Flatten writes the batch size into the graph). Training images are turned,
sheared, shifted, shrunk and faded at random: 719 images are few, and handwriting from elsewhere is smaller and paler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from firmware_sim.models.convert import tensorflow, to_int8
from firmware_sim.models.split import digits_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 7
EPOCHS = 120
ROUNDS_PER_EPOCH = 4  # how often an epoch shows each image, differently distorted
BATCH = 64
RATE = 2e-3
FEATURES = 128
HIDDEN = 128


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all images, float32 [1797, 8, 8, 1] in 0..1 (pixel / 16), and their labels, int64 [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.data / 16).astype(np.float32).reshape(-1, 8, 8, 1), bunch.target.astype(np.int64)


def digits_model() -> bytes:
    """Train and convert; about two minutes on two cores."""
    tf = tensorflow()
    tf.keras.backend.clear_session()  # the names it counts up end in the file
    tf.keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    images, labels = digits()
    mine = digits_split()["model"]
    images, labels = images[mine], labels[mine]
    network = _network()
    network.compile(tf.keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy")
    for epoch in range(EPOCHS):
        network.optimizer.learning_rate = RATE * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2 + 1e-5
        rows = rng.permutation(len(images) * ROUNDS_PER_EPOCH) % len(images)
        network.fit(distort(images[rows], rng), labels[rows], batch_size=BATCH, verbose=0)
    return to_int8(network, np.concatenate([images, distort(images, rng)]))


def distort(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return each image [n, 8, 8, 1] drawn anew through a random affine map, and with another darkness."""
    tf = tensorflow()
    count, middle = len(images), np.full(2, 15.5)
    size = rng.uniform(0.45, 1.1, count)
    width, turn, shear = (
        size * rng.uniform(0.85, 1.15, count),
        rng.normal(0, 0.25, count),
        rng.normal(0, 0.2, count),
    )
    shift = rng.normal(0, 2.0, (count, 2))  # in quarter pixels
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = np.stack([cosine / size, shear - sine / size, sine / width, cosine / width], axis=1).reshape(-1, 2, 2)
    offset = middle - np.einsum("nij,nj->ni", turned, middle + shift)
    maps = np.concatenate([turned[:, 0], offset[:, :1], turned[:, 1], offset[:, 1:], np.zeros((count, 2))], axis=1)
    drawn = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.image.resize(images, (32, 32), "bicubic"),
        transforms=maps.astype(np.float32),
        output_shape=[32, 32],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    blocks = np.clip(tf.nn.avg_pool2d(drawn, 4, 4, "VALID").numpy(), 0, 1)
    darkness = np.exp(rng.normal(0, 0.35, (count, 1, 1, 1)))
    faded: NDArray[np.float32] = np.clip(blocks**darkness * rng.uniform(0.8, 1.25, (count, 1, 1, 1)), 0, 1)
    return faded.astype(np.float32)


def _network() -> Any:
    tf = tensorflow()
    layers = tf.keras.layers

    def convolve(x: Any, filters: int, size: int, padding: str) -> Any:
        x = layers.Conv2D(filters, size, padding=padding, use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    entry = tf.keras.Input((8, 8, 1))
    x = convolve(entry, 16, 3, "same")
    x = layers.MaxPool2D(2)(convolve(x, 32, 3, "same"))
    x = layers.MaxPool2D(2)(convolve(x, 64, 3, "same"))
    x = layers.GlobalAveragePooling2D()(convolve(x, FEATURES, 2, "valid"))
    x = layers.Dense(HIDDEN, activation="relu")(layers.Dropout(0.3)(x))
    x = layers.Dense(10, activation="softmax")(layers.Dropout(0.3)(x))
    return tf.keras.Model(entry, x)
