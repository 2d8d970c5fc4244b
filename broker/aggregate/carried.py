"""What a rule remembers from one version to the next, as bytes: a tag of four letters, then float32 vectors.

They are in real numbers, so that a new scale epoch changes nothing. Bytes of another rule, or for another number of
parameters, are nothing to remember: the operator has changed the rule or what trains, and the rule begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAG_BYTES: Final = 4


def write(tag: bytes, *vectors: NDArray[np.float64]) -> bytes:
    """At most 4 + 8 bytes a parameter: no rule remembers more than two vectors."""
    assert len(tag) == TAG_BYTES, "a tag has four letters"
    return tag + b"".join(vector.astype("<f4").tobytes() for vector in vectors)


def read(tag: bytes, carried: bytes, size: int, count: int) -> list[NDArray[np.float64]]:
    """`count` vectors [size], float64; zeros where these bytes are not this rule's."""
    if carried[:TAG_BYTES] != tag or len(carried) != TAG_BYTES + 4 * size * count:
        return [np.zeros(size) for _ in range(count)]
    kept = np.frombuffer(carried, dtype="<f4", offset=TAG_BYTES).astype(np.float64)
    return list(kept.reshape(count, size))
