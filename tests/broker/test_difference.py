"""How far a version moved: known steps are found in the layers where they were made."""

from pathlib import Path

import numpy as np
import pytest

from broker.difference import between
from broker.registry import first_version
from engine.frame import frame_of
from engine.models.scheme import dump_params, load_params
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, File, Manifest

MODEL = Path(__file__).parents[2] / "firmware_sim/models/digits.tflite"


class Blobs(dict[bytes, bytes]):
    """The files of versions, by digest."""

    def blob(self, digest: bytes) -> bytes:
        return self[digest]


@pytest.fixture
def store() -> Blobs:
    return Blobs()


def second_of(first: Manifest, store: Blobs, index: int, steps: int) -> Manifest:
    """A version whose parameter at `index` is some stored steps larger."""
    frame = frame_of(store.blob(file_of(first, MODEL_FILE).digest), "last-2")
    params = load_params(frame.suffix, store.blob(file_of(first, PARAMS_FILE).digest))
    params[index] += steps
    content = dump_params(frame.suffix, params)
    file = chunks.split(PARAMS_FILE, content)
    store[file.digest] = content
    return Manifest(first.model, 2, 1, first.num_params, (file_of(first, MODEL_FILE), file))


def file_of(manifest: Manifest, name: str) -> File:
    return next(file for file in manifest.files if file.name == name)


def test_a_known_step_is_found_in_its_layer_and_nowhere_else(store: Blobs) -> None:
    first = first_version(MODEL.read_bytes(), "digits", "last-2", 7)
    store.update(first.blobs)
    frame = frame_of(store.blob(file_of(first.manifest, MODEL_FILE).digest), "last-2")
    index = frame.suffix.layers[1].first  # the first weight of the second layer
    sign = -1 if load_params(frame.suffix, store.blob(file_of(first.manifest, PARAMS_FILE).digest))[index] > 0 else 1
    one, other = between(first.manifest, second_of(first.manifest, store, index, 5 * sign), "last-2", store)
    assert (one.num_changed, one.moved, one.largest) == (0, 0.0, 0.0)
    assert (other.num_changed, other.largest) == (1, pytest.approx(5 * frame.scale[index]))
    assert other.moved is not None
    assert 0 < other.moved < 1
    assert one.num_params + other.num_params == frame.suffix.num_params
    assert np.char.endswith([one.layer, other.layer], "FULLY_CONNECTED").all()


def test_a_version_is_no_different_from_itself(store: Blobs) -> None:
    first = first_version(MODEL.read_bytes(), "digits", "last-2", 7)
    store.update(first.blobs)
    assert [layer.num_changed for layer in between(first.manifest, first.manifest, "last-2", store)] == [0, 0]
