"""The figures of the fine-tuning benchmark: what is divided by what."""

import numpy as np
import pytest

from benchmarks.finetune import targets
from benchmarks.finetune_models import real
from engine.models.graph import Tensor

FULL = ("resnet8", "full")


def figures(step_ms, rss_mb=100.0, first_step_s=1.0, import_s=1.0):
    return {"step_ms": step_ms, "rss_mb": rss_mb, "first_step_s": first_step_s, "import_s": import_s}


def test_a_ratio_is_formed_within_a_round_against_the_quickest_peer_of_that_round():
    rounds = [
        {(*FULL, "hedgerow"): figures(1.0), (*FULL, "TensorFlow"): figures(2.0), (*FULL, "PyTorch NHWC"): figures(4.0)},
        {
            (*FULL, "hedgerow"): figures(9.0),
            (*FULL, "TensorFlow"): figures(30.0),
            (*FULL, "PyTorch NHWC"): figures(10.0),
        },
        {(*FULL, "hedgerow"): figures(3.0), (*FULL, "TensorFlow"): figures(4.0)},
    ]
    assert targets(rounds)["resnet8_full_vs_best_peer"] == 0.75


def test_memory_and_start_are_compared_with_the_lower_of_the_two_layouts_of_pytorch():
    rounds = [
        {
            (*FULL, "hedgerow"): figures(1.0, rss_mb=50.0, first_step_s=0.2, import_s=0.1),
            (*FULL, "PyTorch NCHW"): figures(1.0, rss_mb=400.0, import_s=2.0),
            (*FULL, "PyTorch NHWC"): figures(1.0, rss_mb=200.0, import_s=4.0),
        }
    ]
    measured = targets(rounds)
    assert measured["resnet8_full_rss_mb"] == 50.0
    assert measured["resnet8_full_rss_vs_torch"] == 0.25
    assert measured["cold_start_vs_import_torch"] == pytest.approx(0.1)


def test_of_our_rows_with_the_frozen_part_in_the_step_one_is_chosen_for_all_rounds():
    case = ("resnet8", "last")
    rounds = [
        {(*case, "hedgerow, own int8 each step"): figures(own), (*case, "hedgerow, LiteRT each step"): figures(litert)}
        | {(*case, "LiteRT signature"): figures(1.0), (*case, "hedgerow"): figures(0.1)}
        for own, litert in ((1.0, 0.5), (1.0, 1.1), (0.3, 0.6))
    ]
    measured = targets(rounds)
    assert measured["resnet8_last_vs_best_peer"] == 0.6
    assert measured["resnet8_last_cached_vs_best_peer"] == pytest.approx(0.1)


def test_a_figure_whose_rows_are_missing_is_none_and_never_a_number():
    assert set(targets([]).values()) == {None}
    assert targets([{(*FULL, "hedgerow"): figures(1.0)}])["resnet8_full_vs_best_peer"] is None


def test_peers_get_each_stored_weight_times_its_own_channels_scale():
    stored = np.array([[2, 4], [6, 8]], np.int8)
    tensor = Tensor(0, "w", (2, 2), "int8", np.float32([0.5, 2.0]), np.int64([0, 1]), 0, stored)
    assert real(stored, tensor).tolist() == [[1.0, 2.0], [10.0, 14.0]]
