"""The agent's log: one line per event on stdout, `event=name key=value …`, for journald and for grep.

Words and numbers stand bare; whatever is a sentence stands in JSON's quotation marks, so that one line stays one line.
"""

import json
import re
import sys
from typing import Final

_BARE: Final = re.compile(r"[A-Za-z0-9._:/,+@%-]+")
_SENTENCES: Final = frozenset({"reason", "why", "note"})  # quoted even when they are one word, or none


def line(event: str, **fields: object) -> str:
    """The text of one log line, without its end."""
    return " ".join([f"event={event}", *(f"{key}={_text(key, value)}" for key, value in fields.items())])


def log(event: str, **fields: object) -> None:
    """Write one line to stdout, through to whoever reads."""
    sys.stdout.write(line(event, **fields) + "\n")
    sys.stdout.flush()


def _text(key: str, value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    bare = key not in _SENTENCES and _BARE.fullmatch(text)
    return text if bare else json.dumps(text, ensure_ascii=False)
