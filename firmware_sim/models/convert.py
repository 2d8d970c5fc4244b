"""Turns a Keras model into a full-integer `.tflite` file: int8 weights, activations, input and output.

Runs in the building environment only (`build.py` makes it); nothing here is imported by the programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray


def tensorflow() -> Any:
    """Import TensorFlow, which stands in the building environment only, and keep it from printing."""
    import tensorflow as tf  # type: ignore[import-untyped]

    tf.keras.utils.disable_interactive_logging()

    return tf


def to_int8(model: Any, examples: NDArray[np.float32]) -> bytes:
    """Convert `model`; `examples` [n, *window] are run through it to find the range of every activation."""
    tf = tensorflow()

    def one_by_one() -> Iterator[list[NDArray[np.float32]]]:
        for start in range(len(examples)):
            yield [examples[start : start + 1]]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = one_by_one
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())
