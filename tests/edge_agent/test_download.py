"""The fetch of a model version: every chunk asked for once, believed by its digest, and asked again after a silence."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.download import HTTP_PATIENCE_MS, SEALS_MAX, Download
from edge_agent.effects import Base, Fetched, FetchRanges, FileState, OpenFile, SealFile, WriteChunk, WritePatch
from wire import chunks
from wire.limits import RESEND_MS_MAX, RESEND_MS_MIN, WANT_CHUNKS_MAX
from wire.messages import MODEL_FILE, PARAMS_FILE, Manifest, Patch, Range, Want

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
    return [(w.digest, [r.first + i for r in w.ranges for i in range(r.count)]) for w in download.asks(now_ms)]


def chunk(index: int):
    return chunks.chunk_at(BIG, FILES[0], index)


def test_it_asks_for_what_is_missing_and_for_no_more_than_one_want_may():
    assert asked(fresh(big=[0, 2, 5]), 0) == [(FILES[0].digest, [1, 3, 4, 6, 7, 8, 9, 10])]
    assert len(asked(fresh(), 0)[0][1]) == WANT_CHUNKS_MAX


def test_nothing_is_asked_before_flash_has_answered():
    download = Download(MANIFEST)
    download.start()
    assert download.asks(0) == []
    assert download.wake_at_ms is None
    assert download.on_chunk(chunk(0), 0) == []


def test_nothing_is_asked_before_every_file_has_its_room():
    download = Download(MANIFEST)
    download.start()
    download.on_file_state(FileState(FILES[0].digest, ready=False, have=frozenset()))
    assert download.asks(0) == []  # the other may find none
    download.on_file_state(FileState(FILES[1].digest, ready=False, have=frozenset()))
    assert [want.digest for want in download.asks(0)] == [FILES[0].digest]


def test_a_chunk_is_kept_once_and_only_with_the_right_digest():
    download = fresh()
    download.asks(0)
    assert download.on_chunk(chunk(3), 1) == [WriteChunk(FILES[0], 3, BIG[3072:4096])]
    assert download.on_chunk(chunk(3), 2) == []
    assert download.on_chunk(msgspec.structs.replace(chunk(4), data=b"\0" * 1024), 3) == []
    assert download.on_chunk(msgspec.structs.replace(chunk(4), digest=b"\0" * 32), 3) == []


def test_the_next_want_comes_when_the_last_one_is_answered_and_not_before():
    download = fresh()
    (_, first) = asked(download, 0)[0]
    for index in first:
        assert download.asks(1) == []
        download.on_chunk(chunk(index), 1)
    assert asked(download, 1)[0][1] == list(range(8, 16))


def test_silence_is_answered_by_asking_again_with_growing_patience():
    download = fresh()
    now, pauses = 0, []
    asked(download, now)
    for _ in range(12):
        pauses.append(download.wake_at_ms - now)
        assert download.asks(download.wake_at_ms - 1) == []
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
        assert download.asks(now) == []
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


# Patches

MODEL = chunks.split(MODEL_FILE, b"model", 1024)
PARAMS = chunks.split(PARAMS_FILE, BIG, 1024)
BASE = Base(3, b"b" * 32, MODEL.digest)
PATCH = Patch(PARAMS.digest, 3, BASE.params, b"what to add")
VERSION = Manifest("m", 5, 4, 1, (MODEL, PARAMS))


def patchable(base: Base | None = BASE, url: str = "", have=(), manifest: Manifest = VERSION) -> Download:
    """A download whose model.tflite is there, and of whose params.bin flash has an older version."""
    download = Download(msgspec.structs.replace(manifest, url=url))
    download.on_file_state(FileState(MODEL.digest, ready=True, have=frozenset([0])))
    download.on_file_state(FileState(PARAMS.digest, ready=False, have=frozenset(have), base=base))
    return download


def test_the_version_on_flash_is_named_where_its_params_are_wanted():
    assert patchable().asks(0) == [Want(PARAMS.digest, (Range(0, 8),), 3)]
    assert patchable(None).asks(0) == [Want(PARAMS.digest, (Range(0, 8),), 0)]


def test_a_version_of_another_base_file_is_no_start_for_a_patch():
    """Its scales are others: what a step means is, too."""
    other = msgspec.structs.replace(BASE, model=b"o" * 32)
    assert patchable(other).asks(0)[0].base_version == 0


OWN = msgspec.structs.replace(VERSION, base_version=2)  # model.tflite itself holds version 2
OWN_PATCH = Patch(PARAMS.digest, 2, b"v" * 32, b"what to add")


def test_without_an_older_version_on_flash_the_one_in_the_base_file_is_named():
    assert patchable(None, manifest=OWN).asks(0)[0].base_version == 2
    other = msgspec.structs.replace(BASE, model=b"o" * 32)
    assert patchable(other, manifest=OWN).asks(0)[0].base_version == 2
    assert patchable(BASE, manifest=OWN).asks(0)[0].base_version == 3  # it is later, so less is missing


def test_the_patch_from_the_base_file_is_kept_whatever_it_says_of_the_base():
    """Flash cannot look into the file; the training child will compare the digests."""
    download = patchable(None, manifest=OWN)
    download.asks(0)
    assert download.on_patch(msgspec.structs.replace(OWN_PATCH, base_version=3)) == []
    assert download.on_patch(OWN_PATCH) == [WritePatch(PARAMS, OWN_PATCH)]


def test_after_a_patch_has_failed_no_base_will_do():
    for base in (None, BASE):
        download = Download(OWN)
        download.on_file_state(FileState(MODEL.digest, ready=True, have=frozenset([0])))
        state = FileState(PARAMS.digest, ready=False, have=frozenset(), patch_failed=True, base=base)
        download.on_file_state(state)
        assert download.asks(0) == [Want(PARAMS.digest, (Range(0, 8),), 0)]
        assert download.on_patch(OWN_PATCH) == []


def test_the_base_file_is_fetched_before_what_starts_from_it_and_both_must_be_there():
    download = Download(OWN)
    for file in OWN.files:
        download.on_file_state(FileState(file.digest, ready=False, have=frozenset()))
    assert download.asks(0) == [Want(MODEL.digest, (Range(0, 1),), 0)]
    assert download.on_patch(OWN_PATCH) == [WritePatch(PARAMS, OWN_PATCH)]  # of an earlier life: no harm
    download.on_file_state(FileState(PARAMS.digest, ready=False, have=frozenset(), patched=True))
    assert not download.complete
    download.on_file_state(FileState(MODEL.digest, ready=True, have=frozenset([0])))
    assert download.complete


def test_only_params_are_patched():
    download = Download(Manifest("m", 5, 4, 1, (MODEL, chunks.split("labels.txt", BIG, 1024))))
    for file in download.manifest.files:
        download.on_file_state(FileState(file.digest, ready=False, have=frozenset(), base=BASE))
    for _ in range(2):
        (want,) = download.asks(0)
        assert want.base_version == 0
        download.on_file_state(FileState(want.digest, ready=True, have=frozenset()))


def test_a_patch_is_kept_and_flash_says_whether_it_stands():
    download = patchable()
    download.asks(0)
    assert download.on_patch(PATCH) == [WritePatch(PARAMS, PATCH)]
    assert download.asks(10**9) == []  # not before flash has answered
    assert download.on_file_state(FileState(PARAMS.digest, ready=False, have=frozenset(), patched=True)) == []
    assert download.complete
    assert download.wake_at_ms is None
    assert download.on_patch(PATCH) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": b"x" * 32},
        {"digest": MODEL.digest},
        {"base_version": 4},
        {"base_digest": b"x" * 32},
    ],
)
def test_a_patch_of_something_else_is_let_go(wrong):
    download = patchable()
    download.asks(0)
    assert download.on_patch(msgspec.structs.replace(PATCH, **wrong)) == []
    assert download.on_patch(PATCH)


def test_nobody_asked_for_a_patch_who_has_no_base():
    assert patchable(None).on_patch(PATCH) == []
    assert Download(VERSION).on_patch(PATCH) == []  # flash has not answered


def test_a_patch_that_flash_lost_is_not_asked_for_again():
    download = patchable()
    download.asks(0)
    download.on_patch(PATCH)
    download.on_file_state(FileState(PARAMS.digest, ready=False, have=frozenset(), base=BASE))
    assert download.asks(0) == [Want(PARAMS.digest, (Range(0, 8),), 0)]
    assert download.on_patch(PATCH) == []


def test_chunks_in_place_of_a_patch_mean_that_there_is_none():
    download = patchable()
    download.asks(0)
    for index in range(8):
        assert len(download.on_chunk(chunks.chunk_at(BIG, PARAMS, index), 0)) == 1
    assert download.asks(0) == [Want(PARAMS.digest, (Range(8, 8),), 0)]
    assert download.on_patch(PATCH) == []


def test_a_want_for_a_patch_is_repeated_after_a_silence():
    download = patchable(have=[0])
    first = download.asks(0)
    assert first[0].base_version == 3
    assert download.asks(download.wake_at_ms - 1) == []
    assert download.asks(download.wake_at_ms) == first


# HTTP

URL = "https://models.example/barn"


def test_what_has_many_chunks_comes_by_http_where_the_manifest_names_a_place():
    download = Download(msgspec.structs.replace(MANIFEST, url=URL))
    for file in FILES:
        download.on_file_state(FileState(file.digest, ready=False, have=frozenset([2]) if file is FILES[0] else ()))
    assert download.asks(0) == [FetchRanges(URL, FILES[0], (Range(0, 2), Range(3, 6)))]
    assert download.asks(HTTP_PATIENCE_MS - 1) == []
    for index in (0, 1, 3, 4, 5, 6, 7, 8):
        data = chunk(index).data
        assert download.handle(Fetched(FILES[0].digest, index, data), 5) == [WriteChunk(FILES[0], index, data)]
    assert download.asks(5) == [FetchRanges(URL, FILES[0], (Range(9, 8),))]
    download.on_file_state(FileState(FILES[0].digest, ready=True, have=frozenset()))
    assert download.asks(5) == [Want(FILES[1].digest, (Range(0, 1),))]  # one chunk: not worth a connection


def test_a_failure_of_http_is_the_last_word_of_this_download_and_not_of_the_next():
    download = patchable(None, URL)
    assert isinstance(download.asks(0)[0], FetchRanges)
    download.handle(Fetched(PARAMS.digest, 0, BIG[:1024]), 0)
    download.on_fetch_failed()
    assert download.asks(0) == [Want(PARAMS.digest, (Range(1, 8),), 0)]
    download.on_fetch_failed()  # the answer of an older one: what was asked of the coordinator stands
    assert download.asks(0) == []
    assert isinstance(patchable(None, URL).asks(0)[0], FetchRanges)


def test_a_fetch_that_is_never_heard_of_again_has_failed():
    download = patchable(None, URL)
    download.asks(0)
    assert download.wake_at_ms == HTTP_PATIENCE_MS
    download.handle(Fetched(PARAMS.digest, 0, BIG[:1024]), 1000)
    assert download.wake_at_ms == 1000 + HTTP_PATIENCE_MS
    assert download.asks(download.wake_at_ms) == [Want(PARAMS.digest, (Range(1, 8),), 0)]


def test_a_link_that_was_lost_does_not_concern_http():
    download = patchable(None, URL)
    download.asks(0)
    download.ask_afresh()
    assert download.asks(1) == []


def test_what_comes_by_http_is_believed_by_its_digest_alone():
    download = patchable(None, URL)
    download.asks(0)
    assert download.handle(Fetched(PARAMS.digest, 0, b"\0" * 1024), 1) == []
    assert download.handle(Fetched(PARAMS.digest, 99, BIG[:1024]), 1) == []
    assert download.handle(Fetched(b"x" * 32, 0, BIG[:1024]), 1) == []


def test_a_patch_is_asked_for_before_http_and_http_before_many_chunks():
    download = patchable(BASE, URL)
    assert download.asks(0) == [Want(PARAMS.digest, (Range(0, 8),), 3)]
    for index in range(8):
        download.on_chunk(chunks.chunk_at(BIG, PARAMS, index), 0)
    assert download.asks(0) == [FetchRanges(URL, PARAMS, (Range(8, 8),))]
