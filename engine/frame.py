"""What the numbers of a version mean: the base file, read, and the part of it that trains.

Device and coordinator look at a model through the same frame, so that an update made by the one is understood by the
other. It stays the same for a whole scale epoch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.models import tflite
from engine.models.fold import fold
from engine.models.scheme import (
    constants_of,
    dump_params,
    load_params,
    params_of,
    resolve,
    scales_of,
    shapes_of,
    units_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.codec.update import Lane
    from engine.models.graph import Content, Graph
    from engine.models.scheme import Suffix

WEIGHT_MAX = 127
BIAS_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Frame:
    """A base file and what of it trains, P parameters.

    What it says of each parameter is made when it is first asked for: a child that trains real numbers never asks.
    """

    model: Content  # the .tflite file
    graph: Graph
    suffix: Suffix
    shapes: tuple[tuple[int, int], ...]  # rows x columns of each trained tensor, in the order of the parameters

    @functools.cached_property
    def unit(self) -> NDArray[np.int32]:
        """How many stored steps one unit of an update is, int32 [P]; 1 in lane 'float32'."""
        return units_of(self.graph, self.suffix)

    @functools.cached_property
    def scale(self) -> NDArray[np.float32]:
        """How large one stored step is in real numbers, float32 [P]; 1 in lane 'float32'."""
        return scales_of(self.graph, self.suffix)

    @functools.cached_property
    def limit(self) -> NDArray[np.int64]:
        """The largest magnitude that may be stored of an int8 model, int64 [P]."""
        limit = np.full(self.suffix.num_params, BIAS_MAX, dtype=np.int64)
        for layer in self.suffix.layers:
            limit[layer.first : layer.first + layer.num_weights] = WEIGHT_MAX
        return limit

    @property
    def lane(self) -> Lane:
        """'int8': averaged in whole steps; 'float32': in real numbers."""
        return "int8" if self.suffix.lane == "int8" else "float32"

    def graph_with(self, params: NDArray[Any]) -> Graph:
        """The graph of a version: the base with these parameters [P] in their places. Raises ModelError."""
        from engine.train import with_constants  # brings the kernels, which a child that only predicts has no use for

        return with_constants(self.graph, constants_of(self.graph, self.suffix, params))

    def file_with(self, published: bytes) -> bytes:
        """The file of a version, whole: the base with what scheme.dump_params wrote. Raises ModelError."""
        params = load_params(self.suffix, published)
        return tflite.patch(self.model, self.graph, constants_of(self.graph, self.suffix, params))

    def own(self) -> bytes:
        """The params that the base file itself holds, as scheme.dump_params writes them."""
        return dump_params(self.suffix, params_of(self.graph, self.suffix))

    def holding(self, published: bytes) -> Frame | None:
        """The frame of a base file that holds these params itself, so that they need not be sent beside it.

        None where that file would choose other channels to train than this one: those of the largest norm are others.
        Raises ModelError.
        """
        after = frame_of(self.file_with(published), self.suffix.train)
        return after if after.suffix == self.suffix else None


def frame_of(model: Content, train: str) -> Frame:
    """Read the base file and find what trains. Raises ModelError."""
    graph = fold(tflite.read(model))
    suffix = resolve(graph, train)
    return Frame(model, graph, suffix, shapes_of(graph, suffix))
