"""The operator's page names every line that the two programs can write."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def events() -> set[str]:
    found = set()
    for file in [*(ROOT / "edge_agent").rglob("*.py"), *(ROOT / "broker").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"line", "log"}:
                words = ast.walk(node.args[0]) if node.args else ()
                found |= {
                    word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)
                }
    return found


def test_the_page_for_operators_explains_every_event_of_the_logs_and_invents_none():
    page = (ROOT / "docs/OPERATING.md").read_text()
    section = page.partition("## The log")[2].partition("\n## ")[0]
    cells = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| ") and "event=" not in row]
    named = {word.strip() for names, _ in cells for word in names.split(",")}
    named |= {word for _, meaning in cells for word in re.findall(r"`(outbox-found)`", meaning)}
    assert named == events()


def test_every_complaint_is_answered_by_tests_that_there_are():
    section = (ROOT / "docs/OPERATING.md").read_text().partition("## What operators of other fleets complain of")[2]
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 14
    for complaint, _answer, shown in rows:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", shown)
        assert named, complaint
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {test}"
