"""One line of a program's log: `event=name key=value …`, the same from agents and coordinator, for people and for grep.

Words and numbers stand bare; whatever is a sentence stands in JSON's quotation marks, with its line ends and quotation
marks escaped. So one line stays one line whatever a peer or a library says, and a shell's quoting rules read it too.
"""

from __future__ import annotations

import json
import re
from typing import Final

_BARE: Final = re.compile(r"[A-Za-z0-9._:/,+@%-]+")
_SENTENCES: Final = frozenset({"reason", "why", "note"})  # quoted even when they are one word, or none


def line(event: str, **fields: object) -> str:
    """The text of one log line, without its end."""
    return " ".join([f"event={event}", *(f"{key}={_text(key, value)}" for key, value in fields.items())])


def _text(key: str, value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    bare = key not in _SENTENCES and _BARE.fullmatch(text)
    return text if bare else json.dumps(text, ensure_ascii=False)
