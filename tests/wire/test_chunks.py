"""A file in chunks arrives whole from any order, any interruption and any liar."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import chunks, limits, messages

DATA = bytes(i * 7 % 251 for i in range(10_050))
FILE = chunks.split("model.tflite", DATA, chunk_bytes=1000)


def test_a_file_is_named_by_its_content_and_lists_its_chunks() -> None:
    assert FILE.digest == hashlib.sha256(DATA).digest()
    assert (FILE.size_bytes, FILE.chunk_bytes, len(FILE.chunk_digests)) == (10_050, 1000, 11)
    assert FILE.chunk_digests[10] == hashlib.sha256(DATA[10_000:]).digest()
    assert chunks.chunk_size(FILE, 9) == 1000
    assert chunks.chunk_size(FILE, 10) == 50


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 5000), chunk_bytes=st.integers(5, 700), seed=st.integers(0, 2**32), resume=st.booleans())
def test_a_download_ends_with_the_file_however_often_it_is_interrupted(
    size: int, chunk_bytes: int, seed: int, resume: bool
) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(size)
    file = chunks.split("f", data, chunk_bytes)
    have: dict[int, bytes] = {}
    wants = 0
    while wanted := chunks.missing_ranges(file, have):
        wants += 1
        assert sum(part.count for part in wanted) <= limits.WANT_CHUNKS_MAX
        messages.encode(messages.Want(file.digest, wanted))
        indices = [part.first + offset for part in wanted for offset in range(part.count)]
        assert not have.keys() & set(indices)
        chance.shuffle(indices)
        arriving = indices[: 1 + chance.randrange(len(indices))] if resume else indices
        for index in arriving:
            chunk = chunks.chunk_at(data, file, index)
            assert chunks.accepts(file, chunk)
            have[index] = chunk.data
    assert b"".join(have[index] for index in sorted(have)) == data
    if not resume:
        assert wants == -(-len(file.chunk_digests) // limits.WANT_CHUNKS_MAX)


def test_wants_ask_for_the_first_gaps_as_few_ranges_as_possible() -> None:
    assert chunks.missing_ranges(FILE, ()) == (messages.Range(0, 8),)
    assert chunks.missing_ranges(FILE, {0, 1, 5, 9}) == (
        messages.Range(2, 3),
        messages.Range(6, 3),
        messages.Range(10, 1),
    )
    assert chunks.missing_ranges(FILE, {0, 1, 5, 9}, limit=4) == (messages.Range(2, 3), messages.Range(6, 1))
    assert chunks.missing_ranges(FILE, range(11)) == ()
    assert chunks.missing_ranges(FILE, (), limit=500) == (messages.Range(0, 8),)
    assert chunks.missing_ranges(FILE, (), limit=0) == ()


def test_a_chunk_that_is_not_of_the_file_is_not_accepted() -> None:
    good = chunks.chunk_at(DATA, FILE, 3)
    assert chunks.accepts(FILE, good)
    liars = [
        msgspec.structs.replace(good, digest=bytes(32)),
        msgspec.structs.replace(good, index=4),
        msgspec.structs.replace(good, index=11),
        msgspec.structs.replace(good, index=limits.FILE_CHUNKS_MAX - 1),
        msgspec.structs.replace(good, data=good.data[:-1]),
        msgspec.structs.replace(good, data=good.data + b"\x00"),
        msgspec.structs.replace(good, data=bytes(1000)),
    ]
    assert not any(chunks.accepts(FILE, liar) for liar in liars)


def test_a_length_is_checked_even_where_the_digest_list_agrees_with_the_liar() -> None:
    long = bytes(1001)
    lying = messages.File("f", bytes(32), 1000, 1000, (hashlib.sha256(long).digest(),))
    assert not chunks.accepts(lying, messages.Chunk(bytes(32), 0, long))


@pytest.mark.parametrize("chunk_bytes", [0, -1, limits.CHUNK_BYTES_MAX + 1, 9])
def test_a_file_that_cannot_be_cut_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"model\.tflite"):
        chunks.split("model.tflite", DATA, chunk_bytes)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        chunks.split("model.tflite", b"")


def test_default_chunks_fit_into_a_sealed_payload() -> None:
    data = bytes(limits.CHUNK_BYTES_MAX + 1)
    file = chunks.split("big", data)
    assert len(file.chunk_digests) == 2
    assert len(messages.encode(chunks.chunk_at(data, file, 0))) + 84 <= limits.PAYLOAD_BYTES_MAX
