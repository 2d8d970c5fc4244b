"""A topic is taken apart only when every part is as the contract says."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.wire.examples import EXAMPLES
from wire import limits, messages, topics

GOOD = topics.up("barn", "pi-07", "update")
SHARD = topics.shard("pi-07")


def test_every_message_has_a_topic_and_every_topic_a_message() -> None:
    kinds = {*topics.UP_KINDS, *topics.DN_KINDS, *topics.SHARED_KINDS, topics.CLAIM}
    assert kinds == {kind.__struct_config__.tag for kind in get_args(messages.Message)}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_topic_of_every_message_is_taken_apart_as_it_was_put_together(name: str) -> None:
    topic, message = EXAMPLES[name]
    if isinstance(message, messages.Claim):
        assert topic == topics.claim(*topics.parse_claim(topic))
        return
    fleet, device_id, direction, kind = topics.parse(topic)
    assert kind == messages.kind_of(message)
    if device_id == topics.ALL:
        assert topic == topics.shared(fleet, kind)
    else:
        assert topic == {"up": topics.up, "dn": topics.dn}[direction](fleet, device_id, kind)


def test_topics_stay_within_what_every_service_takes() -> None:
    longest = topics.up("f" * 64, "d" * 64, "telemetry")
    topics.parse(longest)
    assert longest.count("/") <= limits.TOPIC_SLASHES_MAX
    assert len(longest) <= 256  # AWS IoT


@pytest.mark.parametrize(
    "wrong",
    [
        topics.claim("barn", "0123456789abcde"),
        topics.claim("barn", "0123456789ABCDEF"),
        topics.claim("all", "0123456789abcdef"),
        topics.claim("barn", "0123456789abcdef") + "/x",
        topics.claim_answer("barn", "0123456789abcdef"),
        topics.up("barn", "pi-07", "birth"),
    ],
)
def test_a_topic_that_is_not_exactly_one_of_a_claim_is_none(wrong: str) -> None:
    with pytest.raises(topics.TopicError):
        topics.parse_claim(wrong)


def test_neither_a_claim_nor_its_answer_is_a_topic_of_a_device() -> None:
    for topic in (topics.claim("barn", "0123456789abcdef"), topics.claim_answer("barn", "0123456789abcdef")):
        with pytest.raises(topics.TopicError):
            topics.parse(topic)


def test_no_device_bears_the_name_that_certificates_of_tokens_have() -> None:
    with pytest.raises(topics.TopicError, match="claim"):
        topics.check_name("device", topics.CLAIM)


def test_the_shard_is_the_first_byte_of_sha_256() -> None:
    assert topics.shard("pi-07") == "2d"  # printf pi-07 | sha256sum


REFUSED = [
    "",
    "fl/v1",
    "fl/v2" + GOOD[5:],
    "x" + GOOD,
    GOOD + "/",
    GOOD + "/more",
    GOOD + "\n",
    GOOD + "\x00",
    GOOD.replace("pi-07", "pi/07"),
    GOOD.replace("pi-07", "all"),
    GOOD.replace("pi-07", "PI-07"),
    GOOD.replace("pi-07", "-pi"),
    GOOD.replace("pi-07", "pi-"),
    GOOD.replace("pi-07", "pi\n07"),
    GOOD.replace("pi-07", "pi-07\n"),
    GOOD.replace("pi-07", "pi+07"),
    GOOD.replace("pi-07", "#"),
    GOOD.replace("pi-07", ""),
    GOOD.replace("pi-07", "d" * 65),
    GOOD.replace("barn", "all"),
    GOOD.replace("barn", "+"),
    GOOD.replace("barn", ""),
    GOOD.replace(f"/{SHARD}/", "/ff/"),
    GOOD.replace(f"/{SHARD}/", f"/{SHARD.upper()}/"),
    GOOD.replace(f"/{SHARD}/", "/all/"),
    GOOD.replace("/up/", "/dn/"),
    GOOD.replace("/up/", "/sideways/"),
    GOOD.replace("update", "Update"),
    GOOD.replace("update", ""),
    topics.shared("barn", "plan").replace("/dn/", "/up/"),
    topics.shared("barn", "receipt"),
    topics.dn("barn", "pi-07", "plan"),
]


@pytest.mark.parametrize("topic", REFUSED)
def test_every_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(topics.TopicError):
        topics.parse(topic)


@pytest.mark.parametrize("name", ["", "all", "coordinator", "a/b", "A", "-a", "a-", "a\n", "ä", "a b", "a" * 65])
def test_a_name_that_cannot_stand_in_a_topic_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(topics.TopicError, match="1 to 64 of a-z"):
        topics.check_name("device", name)


@pytest.mark.parametrize("name", ["a", "0", "pi-07", "a" * 64, "all-of-them"])
def test_a_good_name_is_returned(name: str) -> None:
    assert topics.check_name("device", name) == name


def test_filters_cover_what_is_sent_and_nothing_of_another_device() -> None:
    mine = topics.device_filters("barn", "pi-07")
    assert mine == (f"fl/v1/barn/{SHARD}/pi-07/dn/+", "fl/v1/barn/all/all/dn/+")
    assert topics.coordinator_filters("barn") == ("fl/v1/barn/+/+/up/+",)
