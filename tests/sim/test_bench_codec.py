"""The codec benchmark: real fleets in small, figures counted as they say, and sizes that someone else can recount."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec, codec_measure, codec_peers, codec_runs, codec_tasks, environments, federation, postage
from engine.codec import patch, payload
from engine.codec.update import Update
from engine.frame import frame_of
from engine.master import first
from firmware_sim import data
from wire import limits

MODEL = (Path(__file__).parents[2] / "firmware_sim/models/digits.tflite").read_bytes()


def small_task(train: str = "last-2") -> codec_tasks.Task:
    learning = codec_tasks.Learning(1, 0.05, 40, reset=True)
    return codec_tasks.Task("digits", frame_of(MODEL, train), data.digits(), 0.5, learning, rounds=6)


@pytest.fixture(scope="module")
def rounds():
    task, done = small_task(), []
    options = federation.Options(federation.sending(task.frame.suffix.num_params, 0.05, 1), publish_rate=0.1)
    result = federation.run(task, options, done.append)
    return task, options, result, done


def test_the_fleet_learns_and_every_round_is_scored_and_paid_for(rounds):
    task, _, result, done = rounds
    assert len(done) == task.rounds
    assert result.at == tuple(range(task.rounds + 1))
    assert result.accuracy[-1] > result.accuracy[0] + 0.2
    spent = result.spent[-1]
    assert spent.participations == task.rounds * task.per_round
    assert spent.update_up > sum(sent.sealed_bytes for one in done for sent in one.sent)
    assert [post.down for post in result.spent] == sorted(post.down for post in result.spent)


def test_a_version_changes_no_more_than_it_may_and_the_patch_makes_it(rounds):
    task, _, _, done = rounds
    size = task.frame.suffix.num_params
    for before, after in itertools.pairwise(done):
        assert patch.apply(task.frame, before.published, after.patch) == after.published
        assert payload.count_of(after.patch) <= round(0.1 * size)


def test_what_was_meant_is_coded_as_what_was_sent(rounds):
    task, _, _, done = rounds
    for sent in (sent for one in done for sent in one.sent):
        again = payload.encode(sent.meant, task.frame.shapes, value_bits=1, coding="context")
        assert again.payload == sent.payload
        exact = payload.encode(sent.meant, task.frame.shapes, value_bits=0, coding="rice").sent
        assert np.array_equal(exact.values, sent.meant.values)


def test_the_same_seed_gives_the_same_fleet(rounds):
    task, options, result, _ = rounds
    again = federation.run(task, replace(options, score_every=6))
    assert again.spent[-1] == result.spent[-1]
    assert again.scores[-1] == result.scores[-1]
    assert again.at == (0, 6)


def test_a_float_fleet_learns_as_well():
    frame = frame_of(codec_tasks.large_digits_model(), "full")
    task = codec_tasks.Task("float", frame, data.digits(), 1e6, codec_tasks.Learning(1, 0.05, 20, reset=True), rounds=2)
    result = federation.run(task, federation.Options(federation.sending(frame.suffix.num_params, 0.1, 4)))
    assert frame.lane == "float32"
    assert result.scores[-1].loss < result.scores[0].loss


def test_a_device_that_holds_an_older_version_pays_for_a_patch_only_where_that_is_cheaper():
    task = small_task()
    numbers = first(task.frame, task.fleet(1).params)
    post = postage.Postage(task.frame, numbers.published)
    post.publish(3, numbers.published)
    new, current = post.round("device-01", 0, 3, None), post.round("device-01", 3, 3, None)
    small, large = (post.round("device-01", 2, 3, bytes(size)) for size in (200, len(numbers.published) + 1))
    assert new.base_down > len(task.frame.model)
    assert new.model_down > len(numbers.published)
    assert current.model_down == 0
    assert 200 < small.model_down < 500
    assert small.base_down == 0
    assert large.model_down == new.model_down


def test_an_update_beyond_the_limit_of_a_message_is_charged_to_the_byte():
    most = limits.UPDATE_PAYLOAD_BYTES_MAX
    at_most = postage.sealed_update_bytes("device-01", bytes(most))
    assert postage.sealed_update_bytes("device-01", bytes(most + 500)) == at_most + 500


def test_the_bound_is_that_of_combinatorics_and_stc_counts_8_108_bits():
    for size, count in ((10, 3), (1000, 10), (1000, 999), (5, 5)):
        assert codec_peers.bound_bits(size, count) == pytest.approx(math.log2(math.comb(size, count)) + count)
    assert codec_peers.stc_index_bits(0.01) == pytest.approx(8.108, abs=5e-4)


def test_golomb_rice_is_as_long_as_a_writer_of_bits_finds():
    chance = np.random.default_rng(1)
    for size, count in ((100, 1), (5000, 40), (5000, 5000), (10**6, 700)):
        indices = np.sort(chance.permutation(size)[:count]).astype(np.uint32)
        lengths = []
        for low in range(25):
            bits, last = "", -1
            for index in indices.tolist():
                gap = index - last - 1
                if gap >> low > 10_000:
                    bits = "0" * 10**7
                    break
                bits += "0" * (gap >> low) + "1" + (f"{gap & ((1 << low) - 1):0{low}b}" if low else "")
                last = index
            lengths.append(-(-len(bits) // 8))
        assert codec_peers.rice_bytes(indices) == min(lengths) + -(-count // 8) + 4


def sized(count, size, sent, rice, bound):
    return codec_runs.Size(1, count, size, sent, sent + 100, rice, rice, float(rice), bound)


def test_targets_are_sums_over_sums_and_none_where_nothing_was_measured():
    uneven = codec_runs.Run(codec_runs.Group("a", "uneven", "1 %"), 1000, (), [sized(10, 1000, 10, 20, 100.0)])
    other = codec_runs.Run(codec_runs.Group("b", "uneven", "1 %"), 5000, (), [sized(50, 5000, 80, 79, 500.0)])
    even = codec_runs.Run(codec_runs.Group("b", "even", "1 %"), 5000, (), [sized(50, 5000, 50, 50, 500.0)])
    found = codec.targets([uneven, other, even], [])
    assert found["real_noniid_1pct_over_bound"] == pytest.approx(8 * 90 / 600)
    assert found["real_iid_1pct_over_bound"] == pytest.approx(8 * 50 / 500)
    assert found["real_1pct_dense_over_bytes"] == pytest.approx(4 * 11_000 / (110 + 180 + 150))
    assert found["worst_case_over_rice"] == pytest.approx(80 / 79)
    assert found["iid_1pct_over_bound"] is None
    assert found["encode_time_vs_zstd19"] is None
    assert 64 < found["envelope_overhead_bytes"] < 200
    rows = [codec.run_row(run) for run in (uneven, other, even)]
    assert codec.worst(rows, "1 %", "over_bound", max) == ("b, uneven", pytest.approx(8 * 80 / 500))


def test_encoding_time_is_compared_only_where_both_were_measured():
    ours, theirs = (
        {"coder": name, "spread": "even", "encode_ms": ms, "updates": 2}
        for name, ms in ((codec_measure.BY_CONTEXT, 3.0), (codec_measure.ZSTD, 6.0))
    )
    assert codec.time_over_zstd([ours, theirs]) == 0.5
    assert codec.time_over_zstd([ours, {"coder": codec_measure.ZSTD, "spread": "even", "reason": "gone"}]) is None
    assert codec.time_over_zstd([ours | {"spread": "synthetic"}, theirs | {"spread": "synthetic"}]) is None


@pytest.fixture(scope="module")
def run():
    return codec_runs.real(small_task(), "uneven", "1 %", rounds=2, sampled=(1, 2))


def test_every_update_of_a_run_is_counted_and_some_are_kept(run):
    assert len(run.sizes) == 2 * 4
    assert len(run.samples) == 2
    assert all(size.count == round(0.01 * size.size) for size in run.sizes)
    assert all(size.payload <= 1.05 * size.ours_rice for size in run.sizes)
    assert [at for at, _, _ in run.scores] == [0, 1, 2]


def test_our_modes_are_measured_and_a_peer_that_cannot_be_had_says_why(run, tmp_path, monkeypatch):
    def refuse(name, packages):
        raise environments.NotToBeHadError(f"no {name} today")

    monkeypatch.setattr(codec_peers, "environment", refuse)
    monkeypatch.setattr(codec_measure, "REPETITIONS", 2)
    rows = codec_measure.measure([run], tmp_path / "updates.npz", lambda _text: None)
    by_name = {row["coder"]: row for row in rows}
    assert by_name["zstd-19"]["reason"] == "no codec today"
    exact, one_bit = by_name["ours, rice, exact"], by_name["ours, rice, 1 bit"]
    assert exact["bytes"] > one_bit["bytes"]
    assert one_bit["encode_ms"] > 0
    assert one_bit["dense_over_bytes"] < 4 * 17_802 / one_bit["bytes"]
    assert by_name["STC's formula, 1 bit"]["over_bound"] > 0.9
    found = {"machine": "m", "date": "d", "rows": [codec.run_row(run), *rows], "targets": codec.targets([run], rows)}
    text = "\n".join(codec.tables(found))
    assert "no codec today" in text
    assert "encode_time_vs_zstd19 not measured" in text
    from benchmarks.codec_plot import plot

    plot(found, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(found)


@pytest.mark.parametrize("peer", codec_peers.ALL, ids=lambda peer: peer.environment)
def test_a_peer_gives_back_what_it_was_given(peer, tmp_path):
    if not (environments.CACHE / peer.environment / "installed").exists():
        pytest.skip(f"make bench-codec has not made the environment {peer.environment}")
    update = Update("float32", 600, np.uint32([0, 7, 8, 300, 599]), np.float32([0.5, -0.25, 2.0, -1.0, 3.0]))
    codec_peers.write_updates(tmp_path / "updates.npz", [(update.indices, update.values, ((20, 20), (1, 200)))])
    process = codec_peers.Process(peer, tmp_path / "updates.npz")
    sizes = {coder: process.ask(coder, 0)["bytes"] for coder in peer.coders}
    process.end()
    for coder, size in sizes.items():
        assert size >= 5 if "1 bit" in coder else size >= 20, coder
    assert sizes.get("raw", 40) == 40
    assert sizes.get("Flower, dense", 2400) >= 2400


def test_the_large_model_has_the_parameters_it_says_and_a_tone_is_heard_in_its_band():
    assert frame_of(codec_tasks.large_digits_model(), "full").suffix.num_params == 979_306
    times = np.arange(16_000) / 16_000
    loudest = [
        codec_tasks.log_mel_windows(np.sin(2 * np.pi * hertz * times)[np.newaxis].astype(np.float32))[0, :128].argmax()
        for hertz in (500.0, 2000.0, 6000.0)
    ]
    top = 2595 * math.log10(1 + 8000 / 700)
    expected = [2595 * math.log10(1 + hertz / 700) / top * 129 - 1 for hertz in (500.0, 2000.0, 6000.0)]
    assert loudest == pytest.approx(expected, abs=1.5)
