"""Features on flash: computed once, bounded, whole whatever power does, and never another model's."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import feature_cache
from edge_agent.feature_cache import FeatureCache, features_through_cache
from engine.models.cuts import frozen_digest
from engine.models.scheme import constants_of, params_of, resolve
from engine.models.tflite import read

SHIPPED = Path(__file__).parents[2] / "firmware_sim" / "models"
SHAPE = (2, 3)
RECORD = 24 + 6
DIGEST = b"d" * 32


def opened(path, *, records=5, digest=DIGEST, dtype="int8"):
    return FeatureCache(
        path / "features", digest, SHAPE, dtype, 96 + records * RECORD * (4 if dtype == "float32" else 1)
    )


def windows_of(numbers):
    return np.array([np.full((4,), number, np.float32) for number in numbers])


class Frozen:
    """A frozen part that counts what it is asked for."""

    def __init__(self, dtype="int8"):
        self.asked, self.dtype = [], dtype

    def __call__(self, windows):
        self.asked += windows[:, 0].astype(int).tolist()
        return np.stack([np.arange(6).reshape(SHAPE) + window[0] for window in windows]).astype(self.dtype)


def passed(cache, numbers, frozen, labels=None):
    labels = np.array(labels if labels is not None else [number % 10 for number in numbers], np.int32)
    return features_through_cache(cache, np.array(numbers, np.uint64), labels, windows_of(numbers), frozen)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_frozen_part_runs_once_for_each_window_also_after_a_new_start(tmp_path, dtype):
    frozen = Frozen(dtype)
    first = passed(opened(tmp_path, dtype=dtype), [1, 2, 3], frozen)
    again = passed(opened(tmp_path, dtype=dtype), [3, 4, 1], frozen)
    assert frozen.asked == [1, 2, 3, 4]
    assert (first.dtype, first.shape) == (np.dtype(dtype), (3, *SHAPE))
    assert np.array_equal(again, Frozen(dtype)(windows_of([3, 4, 1])))
    assert np.array_equal(first, Frozen(dtype)(windows_of([1, 2, 3])))


def test_many_windows_are_computed_in_chunks_and_kept_after_each(tmp_path):
    seen = []

    def falls_over(windows):
        seen.append(len(windows))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return Frozen()(windows)

    numbers = list(range(1, 151))
    with pytest.raises(KeyboardInterrupt):
        passed(opened(tmp_path, records=200), numbers, falls_over)
    assert seen == [64, 64, 22]
    frozen = Frozen()
    passed(opened(tmp_path, records=200), numbers, frozen)
    assert frozen.asked == numbers[128:]


def test_features_of_another_frozen_part_are_forgotten(tmp_path):
    passed(opened(tmp_path), [1, 2], Frozen())
    frozen = Frozen()
    passed(opened(tmp_path, digest=b"e" * 32), [1, 2], frozen)
    passed(opened(tmp_path), [1, 2], frozen)
    assert frozen.asked == [1, 2, 1, 2]


def test_a_window_that_bears_an_old_number_is_no_old_window(tmp_path):
    cache, frozen = opened(tmp_path), Frozen()
    passed(cache, [1, 2], frozen)
    labels = np.zeros(2, np.int32)
    got = features_through_cache(cache, np.array([1, 2], np.uint64), labels, windows_of([1, 9]), frozen)
    assert frozen.asked == [1, 2, 9]
    assert np.array_equal(got, Frozen()(windows_of([1, 9])))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(1, 12), unique=True, max_size=8), max_size=6), st.integers(0, 5))
def test_the_newest_numbers_stay_and_the_file_never_outgrows_its_bound(tmp_path_factory, rounds, records):
    path = tmp_path_factory.mktemp("cache")
    best: set[int] = set()
    for numbers in rounds:
        frozen, cache = Frozen(), opened(path, records=records)
        expected = {number for number in numbers if number not in best}
        got = passed(cache, numbers, frozen)
        assert np.array_equal(got, Frozen()(windows_of(numbers)) if numbers else np.zeros((0, *SHAPE)))
        assert set(frozen.asked) == expected
        best = set(sorted(best | set(numbers))[-records:] if records else ())
        assert set(cache.replayed(99, 0, lambda _: True).numbers.tolist()) == best
        assert (path / "features").stat().st_size <= 96 + records * RECORD


def test_a_torn_record_is_computed_again_wherever_it_is_torn(tmp_path):
    passed(opened(tmp_path), [1, 2, 3], Frozen())
    whole = (tmp_path / "features").read_bytes()
    for at in range(96, len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x40
        (tmp_path / "features").write_bytes(data)
        frozen = Frozen()
        got = passed(opened(tmp_path), [1, 2, 3], frozen)
        assert frozen.asked == [1 + (at - 96) // RECORD]
        assert np.array_equal(got, Frozen()(windows_of([1, 2, 3])))
        assert (tmp_path / "features").read_bytes() == whole
    for length in range(96, len(whole)):
        (tmp_path / "features").write_bytes(whole[:length])
        frozen = Frozen()
        passed(opened(tmp_path), [1, 2, 3], frozen)
        assert frozen.asked == list(range(1 + (length - 96) // RECORD, 4))


def test_a_damaged_header_begins_the_file_anew(tmp_path):
    passed(opened(tmp_path), [1, 2], Frozen())
    whole = (tmp_path / "features").read_bytes()
    for at in [*range(48), 95]:
        data = bytearray(whole)
        data[at] ^= 1
        (tmp_path / "features").write_bytes(data)
        assert len(opened(tmp_path).replayed(9, 0, lambda _: True).numbers) == 0
    (tmp_path / "features").write_bytes(whole[:50])
    opened(tmp_path)
    assert (tmp_path / "features").stat().st_size == 96


def test_a_window_that_stands_in_the_file_twice_counts_once(tmp_path):
    passed(opened(tmp_path), [1, 2, 3], Frozen())
    whole = (tmp_path / "features").read_bytes()
    (tmp_path / "features").write_bytes(whole + whole[96 : 96 + RECORD] * 2)
    cache = opened(tmp_path)
    passed(cache, [1, 2, 3, 4, 5], Frozen())
    assert cache.replayed(9, 0, lambda _: True).numbers.tolist() == [1, 2, 3, 4, 5]
    assert opened(tmp_path).replayed(9, 0, lambda _: True).numbers.tolist() == [1, 2, 3, 4, 5]


def test_a_smaller_bound_is_kept_at_once(tmp_path):
    passed(opened(tmp_path, records=9), range(1, 10), Frozen())
    opened(tmp_path, records=3)
    assert (tmp_path / "features").stat().st_size <= 96 + 3 * RECORD


def test_room_that_is_not_used_costs_nothing(tmp_path):
    passed(opened(tmp_path, records=10_000_000), [1, 2], Frozen())
    tracemalloc.start()
    cache = opened(tmp_path, records=10_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    frozen = Frozen()
    passed(cache, [2, 3], frozen)
    assert frozen.asked == [3]
    assert (tmp_path / "features").stat().st_size == 96 + 3 * RECORD


def test_a_card_that_is_full_costs_the_keeping_and_not_the_training(tmp_path, monkeypatch):
    cache, frozen = opened(tmp_path, records=2), Frozen()
    passed(cache, [1, 2], frozen)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache.os, "pwrite", full)
        assert np.array_equal(passed(cache, [2, 3, 4], frozen), Frozen()(windows_of([2, 3, 4])))
    passed(cache, [2, 3, 4, 5], frozen)
    assert np.array_equal(passed(cache, [4, 5], frozen), Frozen()(windows_of([4, 5])))
    assert frozen.asked[:4] == [1, 2, 3, 4]
    assert cache.replayed(9, 0, lambda _: True).numbers.tolist() == [4, 5]


def test_old_windows_are_replayed_with_their_labels_the_same_for_one_seed(tmp_path):
    numbers = list(range(1, 41))
    passed(opened(tmp_path, records=40), numbers, Frozen(), [number % 7 - 1 for number in numbers])
    cache = opened(tmp_path, records=40)
    drawn = cache.replayed(8, 5, lambda number: number > 10)
    assert drawn.features.dtype == np.int8
    assert len(set(drawn.numbers.tolist())) == 8
    assert drawn.numbers.min() > 10
    assert (drawn.labels >= 0).all()
    assert drawn.labels.tolist() == [number % 7 - 1 for number in drawn.numbers.tolist()]
    assert np.array_equal(drawn.features, Frozen()(windows_of(drawn.numbers.tolist())))
    assert np.array_equal(cache.replayed(8, 5, lambda number: number > 10).numbers, drawn.numbers)
    assert cache.replayed(8, 6, lambda number: number > 10).numbers.tolist() != drawn.numbers.tolist()
    everything = cache.replayed(99, 5, lambda _: True)
    assert everything.numbers.tolist() == [number for number in numbers if number % 7]
    assert cache.replayed(0, 5, lambda _: True).features.shape == (0, *SHAPE)


def test_a_label_that_came_later_is_the_one_replayed(tmp_path):
    frozen = Frozen()
    passed(opened(tmp_path), [1, 2], frozen, [-1, -1])
    assert len(opened(tmp_path).replayed(9, 0, lambda _: True).labels) == 0
    passed(opened(tmp_path), [1, 2], frozen, [-1, 4])
    assert opened(tmp_path).replayed(9, 0, lambda _: True).labels.tolist() == [4]
    assert frozen.asked == [1, 2]


def test_the_digest_names_the_frozen_part_and_nothing_that_trains():
    graph = read((SHIPPED / "digits.tflite").read_bytes())
    suffix = resolve(graph, "last-2")

    def digest(of):
        return frozen_digest(of, suffix.cut, suffix.entering)

    def changed(tensor, **fields):
        return replace(graph, tensors=tuple(replace(t, **fields) if t.index == tensor else t for t in graph.tensors))

    trained = graph
    for index, data in constants_of(graph, suffix, params_of(graph, suffix) // 2).items():
        trained = replace(
            trained, tensors=tuple(replace(t, data=data) if t.index == index else t for t in trained.tensors)
        )
    assert digest(trained) == digest(graph)
    assert frozen_digest(graph, 8, 21) != digest(graph)
    kernel = graph.tensors[graph.operators[1].inputs[1]]
    data = kernel.data.copy()
    data[3, 1, 2, 5] ^= 1
    assert digest(changed(kernel.index, data=data)) != digest(graph)
    assert digest(changed(kernel.index, scale=kernel.scale * np.float32(1.0001))) != digest(graph)
    assert digest(changed(15, zero_point=np.array([3]))) != digest(graph)
    first = graph.operators[0]
    relu6 = replace(graph, operators=(replace(first, activation="RELU6"), *graph.operators[1:]))
    wider = replace(graph, operators=(replace(first, options={**first.options, "padding": 1}), *graph.operators[1:]))
    assert len({digest(graph), digest(relu6), digest(wider)}) == 3
