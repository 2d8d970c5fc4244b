"""What lies between two versions of a model, layer by layer, in real numbers: the scales may differ, the model not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from broker.registry import params_bytes_of
from broker.versions import frame_under
from engine.models.scheme import load_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from broker.versions import Kept
    from wire.messages import Manifest


class LayerDifference(Struct, frozen=True):
    """How far one trained layer moved. `moved` is the norm of the difference over the norm of the older layer."""

    layer: str
    num_params: int
    num_changed: int
    moved: float | None  # None: the older layer is zero
    largest: float


def between(older: Manifest, newer: Manifest, train: str, store: Kept) -> list[LayerDifference]:
    """Compare two versions, in the order of layers. Raises StoreError where the files of one are gone; ModelError."""
    frame = frame_under(newer, train, store)
    before, after = _real(older, train, store), _real(newer, train, store)
    found = []
    for layer in frame.suffix.layers:
        part = slice(layer.first, layer.first + layer.num_weights + layer.num_bias)
        step = after[part] - before[part]
        norm = float(np.linalg.norm(before[part]))
        found.append(
            LayerDifference(
                layer=f"{layer.operator} {frame.graph.operators[layer.operator].kind}",
                num_params=len(step),
                num_changed=int(np.count_nonzero(step)),
                moved=float(np.linalg.norm(step)) / norm if norm else None,
                largest=float(np.abs(step).max(initial=0.0)),
            )
        )
    return found


def _real(manifest: Manifest, train: str, store: Kept) -> NDArray[np.float64]:
    """A version's parameters as real numbers."""
    frame = frame_under(manifest, train, store)
    stored = load_params(frame.suffix, params_bytes_of(manifest, store.blob)).astype(np.float64)
    return stored * frame.scale if frame.lane == "int8" else stored
