"""A model file that the owner names: `.onnx` by its name, anything else is read as `.tflite`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engine.models import onnx, tflite
from engine.models.fold import fold
from engine.models.graph import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from engine.models.graph import Graph


class ModelFile(NamedTuple):
    """A model file and its graph."""

    is_onnx: bool
    data: bytes
    graph: Graph

    def patched(self, constants: Mapping[int, NDArray[Any]]) -> ModelFile:
        """Return the file with some constants replaced, by tensor, and read back. Raises ModelError."""
        data = (onnx if self.is_onnx else tflite).patch(self.data, self.graph, constants)
        return ModelFile(self.is_onnx, data, _graph_of(data, is_onnx=self.is_onnx))


def read(path: Path) -> ModelFile:
    """Read the file. Raises ModelError, one sentence, and OSError."""
    data, is_onnx = path.read_bytes(), path.suffix == ".onnx"
    try:
        return ModelFile(is_onnx, data, _graph_of(data, is_onnx=is_onnx))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _graph_of(data: bytes, *, is_onnx: bool) -> Graph:
    return onnx.read(data) if is_onnx else fold(tflite.read(data))
