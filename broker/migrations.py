"""The steps from one layout of the store to the next: the numbered files in `broker/schema`, in their order.

A step is never edited once it has been released; a change of the layout is a new file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

SCHEMA_DIR: Final = Path(__file__).parent / "schema"


def steps() -> list[list[str]]:
    """The SQL statements of each step. A store that has seen the first n of them has schema version n."""
    return [_statements(path.read_text("utf-8")) for path in sorted(SCHEMA_DIR.glob("[0-9]*.sql"))]


def _statements(text: str) -> list[str]:
    return [part.strip() for part in re.split(r";\s*$", text, flags=re.MULTILINE) if part.strip()]
