"""Only the one encoding of a valid message is a message; everything else is refused with a sentence."""

from __future__ import annotations

import struct
import time

import cbor2
import msgspec
import pytest

from tests.wire.examples import EXAMPLES, FILE, PLAN
from wire import limits
from wire import messages as m

DEATH = m.encode(m.Death(1, 1))  # 83 65 'death' 01 01
HEAD = DEATH[:-2]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_message_survives_the_round_trip(name: str) -> None:
    _, message = EXAMPLES[name]
    assert m.decode(m.encode(message)) == message


REFUSED = {
    "nothing": b"",
    "an empty array": b"\x80",
    "no array": b"\x01",
    "an unknown tag": b"\x81\x65hello",
    "a tag that is no text": b"\x83\x45death\x01\x01",
    "one trailing byte": DEATH + b"\x00",
    "a second message behind the first": DEATH + DEATH,
    "cut in the middle": DEATH[:-1],
    "cut within a length": HEAD + b"\x19\x01",
    "a string longer than the message": b"\x83\x65death\x01\x5a\x00\x01\x00\x00",
    "an array longer than the message": b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    "an array of indefinite length": b"\x9f\x65death\x01\x01\xff",
    "a string of indefinite length": b"\x83\x7f\x65death\xff\x01\x01",
    "a lone break": HEAD + b"\x01\xff",
    "an integer not in its shortest form": HEAD + b"\x18\x01\x01",
    "an integer of eight bytes that needs none": HEAD + b"\x1b" + bytes(7) + b"\x01\x01",
    "a text length not in its shortest form": b"\x83\x78\x05death\x01\x01",
    "an array length not in its shortest form": b"\x98\x03\x65death\x01\x01",
    "a float for an integer": HEAD + b"\xf9\x3c\x00\x01",
    "an integer that 64 bits do not hold": HEAD + b"\x1b" + b"\xff" * 8 + b"\x01",
    "an integer above 2^53": HEAD + b"\x1b\x00\x20\x00\x00\x00\x00\x00\x01\x01",
    "a negative count": HEAD + b"\x20\x01",
    "true for a number": HEAD + b"\xf5\x01",
    "null for a number": HEAD + b"\xf6\x01",
    "undefined": HEAD + b"\xf7\x01",
    "a simple value of two bytes": HEAD + b"\xf8\x20\x01",
    "reserved additional information": HEAD + b"\x1c\x01",
    "an empty map": HEAD + b"\xa0\x01",
    "a map with one key twice": HEAD + b"\xa2\x01\x01\x01\x02\x01",
    "a tagged number": HEAD + b"\xc1\x01\x01",
    "a tagged number where the items seem to add up": b"\x84\x65death\xc1\x01\x01",
    "a tagged regular expression": HEAD + b"\xd8\x23\x63(a+\x01",
    "a reference to a shared value (tag 29)": HEAD + b"\xd8\x1c\x81\xd8\x1d\x00\x01",
    "a big number (tag 2)": HEAD + b"\xc2\x41\x01\x01",
    "a text that is not UTF-8": b"\x83\x65deat\xff\x01\x01",
    "a message with a field too few": b"\x82\x65death\x01",
    "a wrong tag inside the fields": b"\x83\x65death\x65death\x01",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_bytes_that_are_no_message_are_refused(name: str) -> None:
    with pytest.raises(m.MessageError):
        m.decode(REFUSED[name])


SCANNED = [
    name
    for name in sorted(REFUSED)
    if any(
        word in name
        for word in (
            "trailing",
            "second",
            "cut",
            "longer than",
            "indefinite",
            "break",
            "undefined",
            "simple",
            "reserved",
            "map",
            "tag",
        )
    )
    and "a tag that" not in name
    and "unknown tag" not in name
    and "wrong tag" not in name
]


@pytest.mark.parametrize("name", SCANNED)
def test_what_a_cbor_decoder_might_mistreat_never_reaches_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(_data: bytes) -> object:
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr(cbor2, "loads", loads)
    with pytest.raises(m.MessageError):
        m.decode(REFUSED[name])
    for not_finite in (b"\xf9\x7e\x00", b"\xfa\x7f\x80\x00\x00", b"\xfb\xff\xf0" + bytes(6)):
        with pytest.raises(m.MessageError, match="finite"):
            m.decode(HEAD + not_finite + b"\x01")


FLOATS = {
    "NaN": b"\xf9\x7e\x00",
    "NaN with a payload": b"\xfb\x7f\xf8\x00\x00\x00\x00\x00\x01",
    "infinity": b"\xf9\x7c\x00",
    "minus infinity": b"\xfa\xff\x80\x00\x00",
    "infinity of eight bytes": b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    "0.5 in four bytes": b"\xfa" + struct.pack(">f", 0.5),
    "0.5 in eight bytes": b"\xfb" + struct.pack(">d", 0.5),
    "one as an integer": b"\x01",
    "nothing": b"\xf6",
}


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_a_float_has_one_form_and_is_finite(name: str) -> None:
    plan = msgspec.structs.replace(PLAN, clip_norm=0.5)
    data = m.encode(plan)
    half = b"\xf9\x38\x00"
    assert data.count(half) == 1
    assert m.decode(data) == plan
    with pytest.raises(m.MessageError):
        m.decode(data.replace(half, FLOATS[name]))


def test_too_deep_is_refused_and_so_is_deep_enough_to_exhaust_a_stack() -> None:
    for depth in (limits.CBOR_DEPTH_MAX, 50_000):
        with pytest.raises(m.MessageError, match="nests deeper"):
            m.decode(HEAD + b"\x81" * depth + b"\x01" + b"\x01")


def test_too_many_items_are_refused() -> None:
    with pytest.raises(m.MessageError, match="items"):
        m.decode(b"\x99\xff\xff" + b"\x01" * 0xFFFF)


def test_ten_megabytes_are_refused_at_once() -> None:
    data = b"\x81" * 10_000_000
    began = time.perf_counter()
    with pytest.raises(m.MessageError, match="bytes"):
        m.decode(data)
    assert time.perf_counter() - began < 0.05


def test_an_older_peer_may_leave_out_trailing_fields_with_a_default() -> None:
    older = cbor2.dumps(["receipt", b"\x01" * 32, 5, "accepted"], canonical=True)
    assert m.decode(older) == m.Receipt(b"\x01" * 32, 5, "accepted", "")


def test_a_newer_peer_may_add_fields_at_the_end_in_canonical_form() -> None:
    newer = b"\x84" + DEATH[1:] + b"\x19\x04\x00"
    assert m.decode(newer) == m.Death(1, 1)
    with pytest.raises(m.MessageError, match="shortest"):
        m.decode(b"\x84" + DEATH[1:] + b"\x19\x00\x04")
    with pytest.raises(m.MessageError, match="maps and tags"):
        m.decode(b"\x84" + DEATH[1:] + b"\xa0")


def test_a_newer_peer_has_no_more_freedom_in_the_fields_we_know() -> None:
    tree = msgspec.to_builtins(PLAN, builtin_types=(bytes,))
    assert m.decode(cbor2.dumps([*tree, "new"], canonical=True)) == PLAN
    tree[9] = 1  # clip_norm, 1.0
    with pytest.raises(m.MessageError, match="integer for a float"):
        m.decode(cbor2.dumps([*tree, "new"], canonical=True))


def test_the_structs_inside_a_message_do_not_grow() -> None:
    manifest = m.Manifest("kws", 2, 1, 10, (FILE,))
    tree = msgspec.to_builtins(manifest, builtin_types=(bytes,))
    grown = [*tree[:5], [[*tree[5][0], 1]]]
    with pytest.raises(m.MessageError, match="a field too many"):
        m.decode(cbor2.dumps(grown, canonical=True))


BROKEN = {
    "a device that got more right than it was asked": lambda: m.Update(1, 0, 1, 3, 2, b""),
    "a digest list that does not fit the size": lambda: m.File("a", b"\x01" * 32, 2500, 1000, (b"\x01" * 32,) * 4),
    "two files of one name": lambda: m.Manifest("kws", 2, 1, 10, (FILE, FILE)),
    "a want for too many chunks": lambda: m.Want(b"\x01" * 32, (m.Range(0, 5), m.Range(9, 4))),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_message_that_contradicts_itself_cannot_be_made(name: str) -> None:
    with pytest.raises(ValueError):
        BROKEN[name]()


def test_a_message_that_contradicts_itself_is_refused_from_a_peer() -> None:
    with pytest.raises(m.MessageError, match="3 correct of 2"):
        m.decode(cbor2.dumps(["update", 1, 0, 1, 3, 2, b""], canonical=True))


OUT_OF_BOUNDS = {
    "an offer for round 0": m.Offer(0, b"\x01" * 32, 0, 1),
    "a digest of 31 bytes": m.Receipt(b"\x01" * 31, 1, "accepted"),
    "a verdict that is none": m.Receipt(b"\x01" * 32, 1, "perhaps"),  # type: ignore[arg-type]
    "a reason with a line break": m.Receipt(b"\x01" * 32, 1, "refused", "one\ntwo"),
    "a reason that moves a terminal's cursor": m.Receipt(b"\x01" * 32, 1, "refused", "\x1b[2J"),
    "a reason that is too long": m.Receipt(b"\x01" * 32, 1, "refused", "x" * (limits.REASON_CHARS_MAX + 1)),
    "an update that is too large": m.Update(1, 0, 1, 0, 0, bytes(limits.UPDATE_PAYLOAD_BYTES_MAX + 1)),
    "a patch that does nothing": m.Patch(b"\x01" * 32, 1, b"\x01" * 32, b""),
    "a patch that no message holds": m.Patch(b"\x01" * 32, 1, b"\x01" * 32, bytes(limits.CHUNK_BYTES_MAX + 1)),
    "a plan with a coding that is none": msgspec.structs.replace(PLAN, coding="zip"),
    "a plan that lets a debt grow": msgspec.structs.replace(PLAN, residual_decay=1.5),
    "a chunk without data": m.Chunk(b"\x01" * 32, 0, b""),
    "a file name that climbs": m.Manifest("../kws", 2, 1, 10, (FILE,)),
    "a name that ends in a line break": m.Birth(1, 1, 0, 0, 0, "hedgerow\n"),
}


@pytest.mark.parametrize("name", sorted(OUT_OF_BOUNDS))
def test_nothing_out_of_bounds_is_ever_sent(name: str) -> None:
    message = OUT_OF_BOUNDS[name]
    with pytest.raises(m.MessageError, match="bound"):
        m.encode(message)
    with pytest.raises(m.MessageError, match="bound"):
        m.decode(cbor2.dumps(msgspec.to_builtins(message, builtin_types=(bytes,)), canonical=True))


def test_an_integer_given_for_a_float_is_sent_as_the_float_it_means() -> None:
    whole = msgspec.structs.replace(PLAN, learning_rate=1, clip_norm=2)
    assert m.decode(m.encode(whole)) == whole
    assert m.encode(whole) == m.encode(msgspec.structs.replace(PLAN, learning_rate=1.0, clip_norm=2.0))


@pytest.mark.parametrize("sentence", ["", "short", "a\tb\x1b[2J\x85", "ü" * 500, "line one\nline two " * 30])
def test_any_sentence_can_be_made_a_reason(sentence: str) -> None:
    reason = m.fit_reason(sentence)
    m.encode(m.Receipt(b"\x01" * 32, 1, "refused", reason))
    assert reason[:5] == m.fit_reason(sentence[:5])


def test_the_largest_of_everything_still_fits_into_one_payload() -> None:
    update = m.Update(2**53, 2**53, 10**6, 10**6, 10**6, bytes(limits.UPDATE_PAYLOAD_BYTES_MAX))
    chunk = m.Chunk(b"\x01" * 32, limits.FILE_CHUNKS_MAX - 1, bytes(limits.CHUNK_BYTES_MAX))
    digests = (b"\x01" * 32,) * limits.FILE_CHUNKS_MAX
    file = m.File("a" * 64, b"\x01" * 32, limits.FILE_CHUNKS_MAX * 1000, 1000, digests)
    manifest = m.Manifest("a" * 64, 2**53, 2**53, limits.PARAMS_MAX, (file,))
    patch = m.Patch(b"\x01" * 32, 2**53, b"\x01" * 32, bytes(limits.CHUNK_BYTES_MAX))
    manifest = msgspec.structs.replace(manifest, scale_epoch=2**53, url="https://" + "u" * 200)
    for message in (update, chunk, patch, manifest):
        data = m.encode(message)
        assert m.decode(data) == message
        assert len(data) < limits.PAYLOAD_BYTES_MAX - 100  # the envelope adds 84 at most


@pytest.mark.parametrize("url", ["", "http://10.0.0.1:8080", "https://models.example/barn/~v2?x=[1]"])
def test_a_manifest_may_say_where_else_its_files_are(url: str) -> None:
    manifest = m.Manifest("kws", 2, 1, 10, (FILE,), 0, url)
    assert m.decode(m.encode(manifest)) == manifest


URLS_NOT = ["https://", "ftp://a", "https://a b", "https://a\n", "file:///etc", "https://" + "a" * 201]


@pytest.mark.parametrize("url", URLS_NOT)
def test_a_manifest_names_no_other_place(url: str) -> None:
    with pytest.raises(m.MessageError, match="bound"):
        m.encode(m.Manifest("kws", 2, 1, 10, (FILE,), 0, url))


TRAINS = ["last-1", "last-12", "bias-3", "blocks-2", "full", "9:b", "9:b,10:w/4,14:w", "0:w/8,99999:w/2"]
TRAINS_NOT = [
    "",
    "last-0",
    "last-01",
    "last",
    "all",
    "full-1",
    "9",
    "9:",
    "9:w/3",
    "9:b,",
    ",9:b",
    "9:b 10:w",
    "123456:b",
]


@pytest.mark.parametrize("train", [*TRAINS, ",".join(["1:b"] * 128)])
def test_a_plan_may_say_in_every_form_what_trains(train: str) -> None:
    plan = msgspec.structs.replace(PLAN, train=train)
    assert m.decode(m.encode(plan)) == plan


@pytest.mark.parametrize("train", [*TRAINS_NOT, "last-1\n", ",".join(["1:b"] * 129)])
def test_a_plan_that_trains_nothing_known_is_refused(train: str) -> None:
    with pytest.raises(m.MessageError, match=r"\$\[2\]"):
        m.encode(msgspec.structs.replace(PLAN, train=train))
