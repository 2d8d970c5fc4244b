"""What holds a device's training near its fleet, layer by layer: FedProx's pull and SCAFFOLD's correction.

    FedProx     gradient + proximal * (w - base)            base: the version that the device started from
    SCAFFOLD    gradient + correction                       and the mean of the uncorrected gradients is told

(Li et al. 2020, arXiv:1812.06127; Karimireddy et al. 2020, arXiv:1910.06378.) Both join the gradient of the real-valued
parameters before momentum does. In an int8 layer they go the way of the gradient: into the wish for whole steps, which
chance rounds. A plan that asks for neither records nothing here, and its program is what it always was.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.kernels import drift

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine.recording import Recording
    from engine.tape import Room

    Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """The weights or the bias of one layer, and how its gradient lies, [R][C]: entry r, c is of rows[r] + columns[c].

    `first` is where it begins in the flat params, `turned` whether those have its columns outside. `step` float64 [C]
    is how large a stored step is in real numbers, `unit` what 1 in the gradient is.
    """

    tensor: int
    first: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    turned: bool
    step: NDArray[np.float64]
    unit: float

    @property
    def _span(self) -> slice:
        return slice(self.first, self.first + len(self.rows) * len(self.columns))

    def laid_out(self, params: Floats, shape: tuple[int, ...]) -> Floats:
        """Of real numbers [P] those of this part, in units of the gradient and with its padding: float32 [R][C ...]."""
        laid = np.zeros(shape, np.float32)
        mine = params[self._span].reshape((len(self.columns), -1) if self.turned else (len(self.rows), -1))
        laid[:, : len(self.columns)] = (mine.T if self.turned else mine) / np.float32(self.unit)
        return laid

    def take_back(self, laid: Floats, params: Floats) -> None:
        """The way back: write what lies in the layout of the gradient into real numbers [P]."""
        mine = laid[:, : len(self.columns)] * np.float32(self.unit)
        params[self._span] = (mine.T if self.turned else mine).ravel()


def record(recording: Recording, part: Part, gradient: Room) -> None:
    """Record what the descent adds to this gradient, if it does."""
    descent = recording.descent
    assert descent is not None, "whoever trains says how"
    if descent.correction is not None:
        correction = recording.table("correction", part.laid_out(descent.correction, gradient.shape))
        total = recording.table("gradients", np.zeros(gradient.shape, np.float32))
        recording.tape.call(drift.correct, gradient, correction, total)
        recording.totals.append((part, total))
    if descent.proximal:
        _pull(recording, part, gradient, descent.proximal)


def _pull(recording: Recording, part: Part, gradient: Room, proximal: float) -> None:
    tape, stored = recording.tape, recording.params[part.tensor]
    assert stored.content is not None, "a parameter holds the version's numbers from the start"
    kernels: dict[Any, Any] = {np.dtype(np.int8): drift.pull_int8, np.dtype(np.int32): drift.pull_bias}
    factor = (proximal * part.step / part.unit).astype(np.float32)
    tape.call(
        kernels.get(stored.dtype, drift.pull_float), stored.seen_as((prod(stored.shape),)),
        recording.table("base", stored.content.reshape(-1)), recording.table("rows", part.rows),
        recording.table("columns", part.columns), recording.table("factor", factor), gradient,
    )  # fmt: skip
