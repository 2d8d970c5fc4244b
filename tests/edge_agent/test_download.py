"""The fetch of a model version: every chunk asked for once, believed by its digest, and asked again after a silence."""

from __future__ import annotations

import msgspec

from edge_agent.download import SEALS_MAX, Download
from edge_agent.effects import FileState, OpenFile, SealFile, WriteChunk
from wire import chunks
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN, WANT_CHUNKS_MAX
from wire.messages import Manifest

BIG = bytes(range(256)) * 80  # 20 chunks of 1024
SMALL = b"small"
FILES = (chunks.split("big", BIG, 1024), chunks.split("small", SMALL, 1024))
MANIFEST = Manifest("m", 1, 0, 1, FILES)


def fresh(big=(), small=()) -> Download:
    download = Download(MANIFEST)
    assert download.start() == [OpenFile(file) for file in FILES]
    for file, have in zip(FILES, (big, small), strict=True):
        download.on_file_state(FileState(file.digest, ready=False, have=frozenset(have)))
    return download


def asked(download: Download, now_ms: int) -> list[tuple[bytes, list[int]]]:
    return [(w.digest, [r.first + i for r in w.ranges for i in range(r.count)]) for w in download.wants(now_ms)]


def chunk(index: int):
    return chunks.chunk_at(BIG, FILES[0], index)


def test_it_asks_for_what_is_missing_and_for_no_more_than_one_want_may():
    assert asked(fresh(big=[0, 2, 5]), 0) == [(FILES[0].digest, [1, 3, 4, 6, 7, 8, 9, 10])]
    assert len(asked(fresh(), 0)[0][1]) == WANT_CHUNKS_MAX


def test_nothing_is_asked_before_flash_has_answered():
    download = Download(MANIFEST)
    download.start()
    assert download.wants(0) == []
    assert download.wake_at_ms is None
    assert download.on_chunk(chunk(0), 0) == []


def test_a_chunk_is_kept_once_and_only_with_the_right_digest():
    download = fresh()
    download.wants(0)
    assert download.on_chunk(chunk(3), 1) == [WriteChunk(FILES[0], 3, BIG[3072:4096])]
    assert download.on_chunk(chunk(3), 2) == []
    assert download.on_chunk(msgspec.structs.replace(chunk(4), data=b"\0" * 1024), 3) == []
    assert download.on_chunk(msgspec.structs.replace(chunk(4), digest=b"\0" * 32), 3) == []


def test_the_next_want_comes_when_the_last_one_is_answered_and_not_before():
    download = fresh()
    (_, first) = asked(download, 0)[0]
    for index in first:
        assert download.wants(1) == []
        download.on_chunk(chunk(index), 1)
    assert asked(download, 1)[0][1] == list(range(8, 16))


def test_silence_is_answered_by_asking_again_with_growing_patience():
    download = fresh()
    now, pauses = 0, []
    asked(download, now)
    for _ in range(12):
        pauses.append(download.wake_at_ms - now)
        assert download.wants(download.wake_at_ms - 1) == []
        now = download.wake_at_ms
        assert asked(download, now)[0][1] == list(range(8))
    assert pauses[:3] == [RESEND_MS_MIN, 2 * RESEND_MS_MIN, 4 * RESEND_MS_MIN]
    assert max(pauses) == RESEND_MS_MAX


def test_a_slow_link_is_not_asked_twice_while_chunks_still_come():
    download = fresh()
    asked(download, 0)
    for index in range(7):  # three seconds each: 24 s for one want
        now = 3000 * (index + 1)
        download.on_chunk(chunk(index), now)
        assert download.wants(now) == []
    assert download.wake_at_ms == 21_000 + RESEND_MS_MIN


def test_a_lost_link_makes_it_ask_at_once():
    download = fresh()
    asked(download, 0)
    download.ask_afresh()
    assert download.wake_at_ms is None
    assert asked(download, 1)[0][1] == list(range(8))


def test_the_last_chunk_seals_and_a_ready_file_stays_ready():
    download = fresh(big=range(19))
    assert download.on_chunk(chunk(19), 0)[-1] == SealFile(FILES[0])
    assert download.on_file_state(FileState(FILES[0].digest, ready=True, have=frozenset(range(20)))) == []
    download.on_file_state(FileState(FILES[0].digest, ready=False, have=frozenset([1])))  # an answer from before
    assert asked(download, 0) == [(FILES[1].digest, [0])]
    assert not download.complete
    download.on_chunk(chunks.chunk_at(SMALL, FILES[1], 0), 0)
    download.on_file_state(FileState(FILES[1].digest, ready=True, have=frozenset([0])))
    assert download.complete
    assert download.wake_at_ms is None


def test_all_chunks_on_flash_are_sealed_without_asking():
    download = Download(MANIFEST)
    assert download.on_file_state(FileState(FILES[0].digest, ready=False, have=frozenset(range(20)))) == [
        SealFile(FILES[0])
    ]


def test_a_seal_that_finds_a_bad_chunk_fetches_that_chunk():
    download = fresh(big=range(20), small=[0])
    assert download.on_file_state(FileState(FILES[0].digest, ready=False, have=frozenset(range(20)) - {7})) == []
    assert asked(download, 0) == [(FILES[0].digest, [7])]


def test_a_file_that_can_never_be_sealed_ends_the_fetch():
    download = Download(MANIFEST)
    whole = FileState(FILES[0].digest, ready=False, have=frozenset(range(20)))
    answers = [download.on_file_state(whole) for _ in range(SEALS_MAX + 1)]
    assert answers == [[SealFile(FILES[0])]] * SEALS_MAX + [[]]
    assert download.impossible == "big"


def test_a_foreign_file_state_is_nothing():
    assert fresh().on_file_state(FileState(b"\0" * 32, ready=True, have=frozenset())) == []
