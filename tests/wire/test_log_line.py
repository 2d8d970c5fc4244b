"""A log line is one line, and whoever follows the log reads back what was said."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim.lines import parse
from wire.log_line import line


def test_a_log_line_stays_one_line_and_sentences_stand_in_quotes() -> None:
    assert line("x", a=1, b=1.5, c="word-1", d="two words") == 'event=x a=1 b=1.500 c=word-1 d="two words"'
    assert line("x", reason="stale", note='a\n"b"') == 'event=x reason="stale" note="a\\n\\"b\\""'
    assert line("x", empty="") == 'event=x empty=""'


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_any_printable_text_is_read_back(text: str) -> None:
    assert parse(line("x", topic=text, why=text)) == {"event": "x", "topic": text, "why": text}


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x1F), min_size=1))
def test_no_control_character_of_a_peer_reaches_the_log(text: str) -> None:
    assert all(letter >= " " for letter in line("fault", topic=text))
