"""`broker plan check` names everything that is wrong with a file, and says what a good one means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from broker import plans
from broker.config import Aggregate, Config, Fleet, Model, Recipe, Round
from broker.plan_check import read_plan
from tests.broker.fleet import KEY
from tests.broker.test_cli import good, home, run  # noqa: F401 - the fixture

if TYPE_CHECKING:
    from pathlib import Path

BAD = """
[plan]
lane = "private"
support = "own-top-k"
keep_rat = 0.1
epochs = 5000
update_bytes_max = 100
[aggregate]
rule = "medium"
[round]
cohort_max = 3
updates_min = 5
[privacy]
accounting = "poisson"
noise_multiplier = "a lot"
[sound]
x = 1
"""
WHERES = [
    "[plan] keep_rat",
    "[plan] epochs",
    "[privacy] noise_multiplier",
    "[sound]",
    "[aggregate] rule",
    "[round] cohort_max, updates_min",
    "[plan] update_bytes_max",
    "[plan] lane, support, masked_sum",
    "[privacy] accounting, [round] mode",
    "[plan] lane",
    "[privacy]",
]


def wheres(text: str, base: Config | None = None) -> list[str]:
    return [told.where for told in read_plan(text, base)[1]]


def test_every_contradiction_is_named_and_not_only_the_first() -> None:
    assert wheres(BAD) == WHERES


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[plan", "the file"),
        ("plan = 3", "[plan]"),
        ("directory = 'x'", "[directory]"),
        ("[plan]\nlane = 'private-ish'", "[plan] lane"),
        ("[plan]\nlearning_rate = 200", "[plan] learning_rate"),  # which the configuration takes, and no plan can say
        ("[plan]\nkeep_rate = 'all'", "[plan] keep_rate"),
        ("[plan]\nlane = 'hardened'\nresidual_decay = 0.5", "[plan] lane, momentum_correction, residual_decay"),
        ("[credits]\nper_devise = true", "[credits] per_devise"),
        ("[aggregate]\nrule = 'median'", "[plan] keep_rate, update_bytes_max, [aggregate] rule"),
        ("[plan]\nkeep_rate = 1\nupdate_bytes_max = 9999\n[aggregate]\nrule = 'median'",
         "[plan] keep_rate, update_bytes_max, [aggregate] rule"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_contradiction(text: str, where: str) -> None:
    assert wheres(text) == [where]


@pytest.mark.parametrize(
    "text", ["", "[plan]\nlane = 'economy'", "[plan]\nkeep_rate = 1\n[aggregate]\nrule = 'median'"]
)
def test_what_is_right_is_not_refused(text: str) -> None:
    assert wheres(text) == []


def test_what_the_file_lacks_is_as_configured() -> None:
    base = Config(Fleet("farm"), Model("digits"), aggregate=Aggregate("median"), round=Round(cohort_max=4))
    assert wheres("[round]\nupdates_min = 5", base) == [
        "[round] cohort_max, updates_min",
        "[plan] keep_rate, update_bytes_max, [aggregate] rule",
    ]
    hardened = msgspec.structs.replace(base, plan=Recipe(lane="hardened"))
    assert wheres("", hardened) == []
    assert wheres("[plan]\nlane = 'economy'", hardened) == ["[plan] keep_rate, update_bytes_max, [aggregate] rule"]
    asked, _ = read_plan("[plan]\nepochs = 7", base)
    assert asked.plan == Recipe(epochs=7)


def check(*arguments: object) -> tuple[int, str]:
    result = run("plan", "check", *arguments)
    return result.exit_code, result.output


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "plan.toml").write_text(text)
    return tmp_path / "plan.toml"


def test_the_command_says_each_on_a_line_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = check(written(tmp_path, BAD))
    assert status == 1
    assert said.count("\n") == len(WHERES)
    status, said = check(written(tmp_path, "[plan]\nepochs = 3"))
    assert (status, said.count("\n")) == (0, 1)
    assert "--config" in said
    assert check(tmp_path / "none.toml")[0] == 2


def test_a_good_plan_is_told_with_its_cost_and_nothing_is_changed(home: Path, tmp_path: Path) -> None:  # noqa: F811
    good("fleet", "add", "cabin", KEY["cabin"], "--config", home)
    good("round", "open", "--config", home)
    before = good("round", "list", "--json", "--config", home)
    status, said = check(written(tmp_path, "[plan]\nkeep_rate = 0.1"), "--config", home, "--json")
    found = json.loads(said)
    assert (status, found["contradictions"]) == (0, [])
    summary = found["summary"]
    assert (summary["lane"], summary["train"], summary["keep_count"], summary["devices"]) == (
        "economy", "last-2", 1780, 1,
    )  # fmt: skip
    assert summary["round_bytes_up"] == summary["update_bytes"] > 1000
    assert "1,780 of 17,802 parameters" in check(tmp_path / "plan.toml", "--config", home)[1]
    assert good("round", "list", "--json", "--config", home) == before


def test_the_fleet_s_own_file_is_a_plan_s_file(home: Path) -> None:  # noqa: F811
    status, said = check(home / "broker.toml")
    assert status == 0
    assert said.startswith("Lane economy: ")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[model]\ntrain = 'last-9'", "[model] train"),
        (
            "[plan]\nbatch_size = 4096\ntrainer_memory_mb = 16\n[model]\ntrain = 'full'",
            "[plan] trainer_memory_mb, batch_size",
        ),
    ],
)
def test_what_the_model_forbids_is_told_beside_the_rest(
    home: Path,  # noqa: F811
    tmp_path: Path,
    text: str,
    where: str,
) -> None:
    status, said = check(written(tmp_path, f"{text}\n[aggregate]\nrule = 'medium'"), "--config", home, "--json")
    assert status == 1
    assert [told["where"] for told in json.loads(said)["contradictions"]] == ["[aggregate] rule", where]


def test_an_update_that_no_message_can_carry_is_told(
    home: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plans, "UPDATE_PAYLOAD_BYTES_MAX", 1000)
    status, said = check(written(tmp_path, "[plan]\nkeep_rate = 1"), "--config", home)
    assert status == 1
    assert said.startswith("[plan]: no plan comes of it: an update of 17802 values may need ")
    assert said.endswith("; lower keep_rate or value_bits, or set update_bytes_max\n")
