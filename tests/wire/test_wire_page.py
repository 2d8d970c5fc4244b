"""docs/WIRE.md says what the code says: every field in its place, every kind on its topic, every limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from wire import limits, messages, topics

PAGE = (Path(__file__).parents[2] / "docs/WIRE.md").read_text("utf-8")
KINDS = {kind.__struct_config__.tag: kind for kind in get_args(messages.Message)}


def rows(text: str) -> list[tuple[int, str]]:
    """The (position, field) pairs of the first table in `text`."""
    table = text.partition("| # |")[2].partition("\n\n")[0]
    return [(int(number), name) for number, name in re.findall(r"^\| (\d+) \| (\w+) \|", table, re.MULTILINE)]


def section(kind: str) -> str:
    return re.split(r"^##", PAGE.partition(f"\n### {kind} — ")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_field_of_every_message_is_on_the_page_in_its_place(kind: str) -> None:
    assert rows(section(kind)) == list(enumerate(KINDS[kind].__struct_fields__, start=1))


def test_the_fields_of_what_is_inside_a_message_are_on_the_page() -> None:
    assert rows(section("manifest").partition("*file* is an array")[2]) == list(
        enumerate(messages.File.__struct_fields__)
    )
    assert rows(section("telemetry").partition("*traffic* is an array")[2]) == list(
        enumerate(messages.Traffic.__struct_fields__)
    )
    assert rows(section("update").partition("*trial* is an array")[2]) == list(
        enumerate(messages.Trial.__struct_fields__)
    )
    assert "`first` (0 … 1023) and `count`" in section("want")
    assert messages.Range.__struct_fields__ == ("first", "count")


def test_a_field_with_a_default_is_said_to_have_one() -> None:
    for kind, struct in KINDS.items():
        optional = [field.name for field in msgspec.structs.fields(struct) if not field.required]
        said = re.findall(r"^\| \d+ \| (\w+) \| [^|]*default", section(kind), re.MULTILINE)
        assert said == optional, kind


def test_the_topics_on_the_page_are_those_of_the_code() -> None:
    listed = dict(re.findall(r"^fl/v1/\S+/(up|dn)/\{kind\}\s+\S+ → \S+\s+(\w[\w ]+?)\s*$", PAGE, re.MULTILINE))
    assert listed == {"up": " ".join(topics.UP_KINDS), "dn": " ".join(topics.DN_KINDS)}
    assert " ".join(topics.SHARED_KINDS) + "        (retained)" in PAGE


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    table = PAGE.partition("## 12. Limits")[2].partition("## 13")[0]
    for line in (
        f"| an MQTT payload | {limits.PAYLOAD_BYTES_MAX:,} bytes |",
        f"| slashes in a topic | {limits.TOPIC_SLASHES_MAX} |",
        f"| a chunk | {limits.CHUNK_BYTES_MAX:,} bytes |",
        f"| the payload of a patch | {limits.CHUNK_BYTES_MAX:,} bytes |",
        f"| the payload of an update | {limits.UPDATE_PAYLOAD_BYTES_MAX:,} bytes |",
        f"| {limits.FILE_BYTES_MAX >> 20} MiB; {limits.FILE_CHUNKS_MAX}; {limits.FILES_MAX}; {limits.OPERATORS_MAX} |",
        f"| {limits.WANT_RANGES_MAX}, {limits.WANT_CHUNKS_MAX} |",
        f"| {limits.CBOR_DEPTH_MAX}, {limits.CBOR_ITEMS_MAX} |",
        f"| a reason | {limits.REASON_CHARS_MAX} characters |",
        f"| what trains, as text | {limits.TRAIN_CHARS_MAX} characters |",
        f"keepalive {limits.KEEPALIVE_S} s",
        f"{limits.IN_FLIGHT_MAX} publishes in flight",
    ):
        assert line in table, line


def test_every_verdict_is_explained() -> None:
    table = PAGE.partition("## 9. Verdicts")[2].partition("## 10")[0]
    assert tuple(re.findall(r"^\| (\w+) \| (?!meaning)", table, re.MULTILINE)) == get_args(messages.Verdict)
