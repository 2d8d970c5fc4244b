"""The newcomer's road, as it stands in deploy/raspi/README.md: the commands of its fenced blocks, to be typed."""

from __future__ import annotations

import re

from tests.targets import builds

PAGE = builds.ROOT / "deploy/raspi/README.md"
_TOKEN = re.compile(r"hedgerow-token-\.\.\.")


def commands(section: str, token: str = "") -> list[str]:
    """The commands below a heading, each with the lines of its here-document; `token` for the one of the page."""
    text = re.search(rf"(?ms)^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"))
    assert text, f"{PAGE} has no section {section!r}"
    found: list[str] = []
    for block in re.findall(r"(?ms)^```\n(.*?)\n```$", text[1]):
        end = ""
        for line in block.split("\n"):
            if end:
                found[-1] += "\n" + line
                end = "" if line == end else end
            else:
                found.append(_TOKEN.sub(lambda _: token, line))
                here = re.search(r"<<(\w+)$", line)
                end = here[1] if here else ""
    return found
