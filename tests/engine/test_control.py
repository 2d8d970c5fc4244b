"""SCAFFOLD's control: what a correction is made of, that it is kept whole, and that it takes drift out."""

from __future__ import annotations

import numpy as np
import pytest

from engine import control, frozen
from engine.codec.header import CodecError
from engine.control import SHARE, Version, control_of, correction_of
from engine.frame import frame_of
from engine.models import interpreter
from engine.models.scheme import dump_params, params_of
from engine.train import Recipe, fine_tune
from firmware_sim.models.digits_net import digits
from tests.engine.test_drift import FILE

RECIPE = Recipe(epochs=1, batch_size=300, learning_rate=0.004, momentum=0.0, seed=11)
F = np.float32


@pytest.fixture(scope="module")
def frame():
    return frame_of(FILE, "last-2")


def version_of(frame, number, params):
    return Version(number, dump_params(frame.suffix, params))


def own(frame):
    return params_of(frame.graph, frame.suffix)


def test_a_correction_is_the_fleets_gradient_less_the_own_one(frame):
    """Two versions later every number stands three steps higher: the fleet's gradient points down, by the formula."""
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1, momentum=0.5, seed=1)
    start, mine = np.clip(own(frame), -120, 120), np.linspace(-1, 1, frame.suffix.num_params).astype(F)
    kept = control_of(mine, version_of(frame, 7, start))
    found = correction_of(kept, frame, version_of(frame, 9, start + 3), recipe, 40)
    # six steps of gradient 1 with momentum 0.5: 1, 1.5, 1.75, 1.875, 1.9375, 1.96875
    reach = 0.1 * (1 + 1.5 + 1.75 + 1.875 + 1.9375 + 1.96875)
    fleet = -3 * frame.scale.astype(float) / (2 * reach)
    np.testing.assert_allclose(found, SHARE * (fleet - kept.gradient.astype(float)), rtol=1e-5, atol=1e-7)
    assert found.dtype == F


def test_where_nothing_is_known_nothing_is_corrected(frame):
    start = own(frame)
    kept = control_of(np.ones(frame.suffix.num_params, F), version_of(frame, 7, start))
    for known, number in ((None, 9), (kept, 7), (kept, 6)):
        assert not correction_of(known, frame, version_of(frame, number, start), RECIPE, 40).any()


def test_where_the_fleet_stands_still_a_share_of_the_own_gradient_is_taken_out(frame):
    """Trained again from where it stood, a device goes a quarter as far: the rest of its way was its own."""
    windows, labels = digits()
    turned = np.ascontiguousarray(windows[:300, ::-1]).astype(F)
    stored = interpreter.quantised(turned, frame.graph.tensors[frame.graph.inputs[0]])
    taught = frozen.features(FILE, frame.graph, frame.suffix, stored), labels[:300].astype(np.int32)
    nothing = np.zeros(len(frame.unit), F)
    free = fine_tune(frame.graph, frame.suffix, *taught, RECIPE, correction=nothing)
    kept = control_of(free.gradient, version_of(frame, 1, own(frame)))
    correction = correction_of(kept, frame, version_of(frame, 2, own(frame)), RECIPE, 300)
    held = fine_tune(frame.graph, frame.suffix, *taught, RECIPE, correction=correction)
    assert np.allclose(held.gradient, free.gradient), "what is told is the gradient before it is corrected"
    far, near = (np.abs((each.params - own(frame)) * frame.scale).sum() for each in (free, held))
    assert near < 0.4 * far


def test_what_is_kept_is_read_again_and_anything_else_is_refused(frame):
    gradient = np.linspace(-1e6, 1e6, frame.suffix.num_params).astype(F)
    known = control_of(gradient, version_of(frame, 12, own(frame)))
    assert np.isfinite(known.gradient).all()
    kept = control.dump(known, 3)
    again = control.load(kept, frame, 3)
    assert again.version == known.version
    assert again.gradient.tobytes() == known.gradient.tobytes()
    assert len(kept) == 32 + 2 * len(gradient) + len(known.version.published)
    for at in [*range(40), len(kept) // 2, len(kept) - 1]:
        with pytest.raises(CodecError, match="not corrected"):
            control.load(kept[:at] + bytes([kept[at] ^ 4]) + kept[at + 1 :], frame, 3)
    other = frame_of(FILE, "last-1")
    for broken, where, epoch in ((kept[:-1], frame, 3), (b"", frame, 3), (kept, frame, 4), (kept, other, 3)):
        with pytest.raises(CodecError, match="not corrected"):
            control.load(broken, where, epoch)
