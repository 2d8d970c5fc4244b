"""The commands, as a person or a script meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from broker.cli.main import main
from broker.effects import Choice, StoreRound, StoreSeen, StoreUpdate
from broker.rows import Cost
from broker.store import Store
from engine.models.tflite import read
from tests.broker.fleet import KEY, row
from tests.broker.test_store import commit, member, update_row
from wire import keys

if TYPE_CHECKING:
    from tests.databases import PostgresServer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "firmware_sim/models/digits.tflite"


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)


def good(*arguments: object, env: dict[str, str] | None = None) -> str:
    result = run(*arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object, status: int = 1) -> str:
    """The one line that says why."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    if status == 1:
        assert result.output.count("\n") == 1
    return result.output


@pytest.fixture
def home(tmp_path: Path) -> Path:
    good("init", tmp_path / "farm", "--model", MODEL, "--reset-seed", "7", "--fleet", "farm")
    return tmp_path / "farm"


@pytest.fixture
def lived(home: Path) -> Path:
    """A fleet with one closed round."""
    good("fleet", "add", "cabin", KEY["cabin"], "--config", home)
    good("round", "open", "--config", home)
    with Store(home / "broker.db") as store:
        store.apply(StoreSeen("cabin", True, "agent-1", 40, 1))
        store.apply(StoreSeen("cabin", True, work="waiting", reason="[red]too hot"))
        store.apply(StoreRound(row(1, status="open", base_version=1)))
        store.apply(StoreUpdate(update_row("cabin")))
        store.apply(commit(1, 2, member("cabin")), Cost(900, 70_000, 2.5))
    return home


def test_init_makes_a_directory_that_serve_can_use_and_tells_the_key(tmp_path: Path) -> None:
    said = good("init", tmp_path / "farm", "--model", MODEL, "--fleet", "farm", "--mqtt", "mqtt://10.0.0.5")
    key = tmp_path / "farm/coordinator.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert keys.public_text(keys.load_seed(key)) in said
    assert "broker serve" in said
    assert 'url = "mqtt://10.0.0.5"' in (tmp_path / "farm/broker.toml").read_text()
    with Store(tmp_path / "farm/broker.db", read_only=True) as store:
        assert [version.model_version for version in store.versions()] == [1]


def test_init_overwrites_nothing(home: Path) -> None:
    before = {path: path.read_bytes() for path in home.iterdir()}
    assert "nothing is overwritten" in refused("init", home, "--model", MODEL)
    assert {path: path.read_bytes() for path in home.iterdir()} == before
    (home / "broker.toml").unlink()
    assert "coordinator.key exists" in refused("init", home, "--model", MODEL)


def test_init_makes_a_store_on_postgres_and_overwrites_none(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.fresh().url
    good("init", tmp_path / "farm", "--model", MODEL, "--store", url)
    assert good("model", "list", "--config", tmp_path / "farm").count("\n") == 2
    assert not list((tmp_path / "farm").glob("*.db"))
    said = refused("init", tmp_path / "other", "--model", MODEL, "--store", url)
    assert "there is a store at postgresql://hedgerow@/postgres, and nothing is overwritten" in said
    assert not (tmp_path / "other").exists()
    assert "a url with a password" in refused(
        "init", tmp_path / "other", "--model", MODEL, "--store", "postgresql://u:p@h/d"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--train", "last-9"], "choose last-6"),
        (["--train", "all"], "train"),
        (["--fleet", "My Farm"], r"[fleet] id"),
        (["--fleet", "all"], "'all'"),
        (["--name", "no spaces"], "[model] name"),
        (["--mqtt", "tcp://x"], "write mqtt://host:1883"),
    ],
)
def test_init_refuses_a_wish_in_one_line_and_makes_nothing(tmp_path: Path, options: list[str], sentence: str) -> None:
    assert sentence in refused("init", tmp_path / "farm", "--model", MODEL, *options)
    assert not (tmp_path / "farm").exists()


def test_init_refuses_a_broken_model_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(MODEL.read_bytes()[:4000])
    refused("init", tmp_path / "farm", "--model", tmp_path / "bad.tflite")
    (tmp_path / "text.tflite").write_text("no model")
    refused("init", tmp_path / "farm", "--model", tmp_path / "text.tflite")
    assert not (tmp_path / "farm").exists()


def test_a_device_is_enrolled_listed_and_removed(home: Path) -> None:
    assert "No device" in good("fleet", "list", "--config", home)
    assert good("fleet", "add", "cabin", KEY["cabin"], "--config", home) == "cabin is enrolled.\n"
    assert "already" in good("fleet", "add", "cabin", KEY["cabin"], "--config", home)
    (listed,) = json.loads(good("fleet", "list", "--json", "--config", home))
    assert (listed["device_id"], listed["public_key"], listed["present"]) == ("cabin", KEY["cabin"], False)
    assert "never" in good("fleet", "list", "--config", home)
    good("fleet", "remove", "cabin", "--config", home)
    assert "not enrolled" in refused("fleet", "remove", "cabin", "--config", home)


@pytest.mark.parametrize(("device", "key"), [("Cabin", KEY["cabin"]), ("all", KEY["cabin"]), ("cabin", "ed25519:x")])
def test_a_name_or_key_that_cannot_be_is_refused(home: Path, device: str, key: str) -> None:
    refused("fleet", "add", device, key, "--config", home)
    assert json.loads(good("fleet", "list", "--json", "--config", home)) == []


def test_the_fleet_is_shown_as_it_said_of_itself(lived: Path) -> None:
    (cabin,) = json.loads(good("fleet", "list", "--json", "--config", lived))
    expected = {"present": True, "num_examples": 40, "model_version": 1, "work": "waiting", "updates_counted": 1}
    assert {key: cabin[key] for key in expected} == expected
    table = good("fleet", "list", "--config", lived)
    assert "[red]too hot" in table
    assert "0 s ago" in table


def test_a_list_of_devices_can_be_of_some_alone(lived: Path) -> None:
    good("fleet", "add", "barn", KEY["dune"], "--config", lived)
    good("fleet", "tag", "cabin", "wood", "north", "--config", lived)
    good("fleet", "tag", "barn", "wood", "--config", lived)

    def listed(*options: object) -> list[str]:
        rows = json.loads(good("fleet", "list", "--json", "--config", lived, *options))
        return [row["device_id"] for row in rows]

    assert listed() == listed("--tags", "wood") == ["barn", "cabin"]
    assert listed("--tags", "wood,north") == listed("--present") == ["cabin"]
    assert listed("--absent") == ["barn"]
    assert listed("--absent", "--tags", "north") == []
    assert "No such device" in good("fleet", "list", "--tags", "stone", "--config", lived)
    assert "no tag" in refused("fleet", "list", "--tags", "a!", "--config", lived)
    found = json.loads(good("fleet", "bytes", "--json", "--tags", "north", "--config", lived))
    assert [row["device_id"] for row in found["devices"]] == ["cabin"]


def test_drift_is_shown_for_the_fleet_and_each_group(lived: Path) -> None:
    good("fleet", "tag", "cabin", "wood", "--config", lived)
    rows = json.loads(good("fleet", "drift", "--json", "--config", lived))
    assert [(row["group"], row["verdict"]) for row in rows] == [("(all)", "too few"), ("wood", "too few")]
    assert rows[1]["windows"] == [
        {"first": 1, "last": 1, "devices": 1, "correct": 3, "count": 4, "between": 0.0, "accuracy": 0.75}
    ]
    assert "0.7500 (3/4)" in good("fleet", "drift", "--config", lived)
    assert "No such group" in good("fleet", "drift", "--tags", "stone", "--config", lived)


def test_rounds_wait_with_the_plan_that_was_asked_for(home: Path) -> None:
    assert good("round", "open", "--config", home).startswith("Round 1 waits.\nAn update: at most 178 values, ")
    asked = ("--count", 2, "--min-devices", 3, "--cohort", 5, "--lasts", "10m", "--epochs", 9, "--keep", 0.1)
    assert good("round", "open", *asked, "--config", home).startswith("Rounds 2 to 3 wait.\nAn update: ")
    with Store(home / "broker.db", read_only=True) as store:
        first, second, third = store.waiting_rounds()
    assert (first.updates_min, first.cohort_max, first.lasts_ms, first.plan.keep_count) == (1, 0, 600_000, 178)
    assert (second.updates_min, second.cohort_max, second.lasts_ms) == (3, 5, 600_000)
    assert (second.plan.epochs, second.plan.keep_count) == (9, 1780)
    assert third.plan == second.plan
    listed = json.loads(good("round", "list", "--json", "--config", home))
    assert [(each["round_id"], each["status"]) for each in listed] == [(n, "waiting") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "mode", "cohort_max", "updates_enough"),
    [
        ((), "buffered", 0, 10),
        (("--enough", 4), "buffered", 0, 4),
        (("--min-devices", 12), "buffered", 0, 12),
        (("--cohort", 6), "buffered", 6, 6),  # it waits for no more than there will be
        (("--mode", "synchronous"), "synchronous", 0, 0),
        (("--mode", "synchronous", "--cohort", 10), "synchronous", 13, 10),
        (("--mode", "synchronous", "--cohort", 10, "--oversample", 1), "synchronous", 10, 0),
    ],
)
def test_a_round_is_buffered_unless_another_mode_is_asked_for(
    home: Path, options: tuple[object, ...], mode: str, cohort_max: int, updates_enough: int
) -> None:
    good("round", "open", *options, "--config", home)
    with Store(home / "broker.db", read_only=True) as store:
        (wish,) = store.waiting_rounds()
    assert (wish.mode, wish.cohort_max, wish.updates_enough) == (mode, cohort_max, updates_enough)


def test_a_round_is_for_those_whom_the_operator_chooses(home: Path) -> None:
    asked = (
        "--tags",
        "outdoor,north",
        "--min-examples",
        50,
        "--min-battery",
        0.3,
        "--min-version",
        2,
        "--at-most",
        "2/10",
    )
    good("round", "open", *asked, "--config", home)
    with Store(home / "broker.db", read_only=True) as store:
        (wish,) = store.waiting_rounds()
    assert wish.choice == Choice(("outdoor", "north"), 0.3, 2, rounds_max=2, rounds_of=10)
    assert wish.plan.num_examples_min == 50
    (listed,) = json.loads(good("round", "list", "--json", "--config", home))
    assert listed["choice"]["tags"] == ["outdoor", "north"]


def test_a_device_is_called_by_tags_and_shown_with_its_history(lived: Path) -> None:
    assert (
        good("fleet", "tag", "cabin", "outdoor", "north", "--config", lived) == "cabin has the tags north, outdoor.\n"
    )
    (listed,) = json.loads(good("fleet", "list", "--json", "--config", lived))
    assert (listed["tags"], listed["updates_finished"], listed["last_round_id"]) == (["north", "outdoor"], 1, 1)
    shown = json.loads(good("fleet", "show", "cabin", "--json", "--config", lived))
    assert (shown["updates_late"], shown["rounds_offered"], shown["rounds_drawn"]) == (0, 0, 0)
    assert "north, outdoor" in good("fleet", "show", "cabin", "--config", lived)
    assert good("fleet", "tag", "cabin", "--config", lived) == "cabin has no tags.\n"
    assert "is no tag" in refused("fleet", "tag", "cabin", "no/tag", "--config", lived)
    for command in (("show", "dune"), ("tag", "dune", "south")):
        assert "dune is not enrolled" in refused("fleet", *command, "--config", lived)


def test_the_rounds_that_drew_a_device_are_counted_by_their_coins(lived: Path) -> None:
    drawn = row(2, mode="buffered", status="closed", base_version=1, nonce=bytes(16), draw=2**32)
    with Store(lived / "broker.db") as store:
        store.apply_all([StoreRound(drawn), StoreRound(msgspec.structs.replace(drawn, round_id=3, draw=0))])
    assert json.loads(good("fleet", "show", "cabin", "--json", "--config", lived))["rounds_drawn"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lasts", "soon"], "is no duration"),
        (["--cohort", "2", "--min-devices", "3"], "cannot wait for 3 updates"),
        (["--epochs", "1001"], "no plan can say that"),
        (["--tags", "out door"], "'out door' is no tag"),
        (["--at-most", "3/2"], "'3/2' is no cap"),
        (["--at-most", "1/65"], "'1/65' is no cap"),
    ],
)
def test_a_round_that_cannot_be_is_refused(home: Path, options: list[str], sentence: str) -> None:
    assert sentence in refused("round", "open", *options, "--config", home)
    assert "No round yet" in good("round", "list", "--config", home)


def test_a_round_is_cancelled_by_a_wish_that_waits_for_the_coordinator(home: Path) -> None:
    good("round", "open", "--count", 2, "--min-devices", 9, "--config", home)
    with Store(home / "broker.db") as store:
        store.apply(StoreRound(row(1, status="open", base_version=1)))
        assert good("round", "cancel", 1, "--config", home) == "Round 1 is cancelled as soon as broker serve runs.\n"
        assert "is cancelled as soon as" in good("round", "cancel", 2, "--config", home)
        assert store.unwanted_rounds() == {1, 2}
        listed = json.loads(good("round", "list", "--json", "--config", home))
        assert [each["status"] for each in listed] == ["cancelling", "cancelling"]
        store.apply(StoreRound(row(1, status="closed", base_version=1, model_version=1)))
    listed = json.loads(good("round", "list", "--json", "--config", home))
    assert [(each["status"], each["model_version"]) for each in listed] == [("cancelled", 0), ("cancelling", 0)]
    assert "cancelled" in good("round", "list", "--config", home)
    assert good("round", "cancel", 1, "--config", home) == "Round 1 is cancelled.\n"


def test_a_round_that_made_a_version_or_never_was_cannot_be_cancelled(lived: Path) -> None:
    assert "round 1 has closed already: it made version 2" in refused("round", "cancel", 1, "--config", lived)
    assert "there is no round 9: see broker round list" in refused("round", "cancel", 9, "--config", lived)
    refused("round", "cancel", 0, "--config", lived, status=2)
    with Store(lived / "broker.db") as store:
        assert [each.is_cancelled for each in store.rounds()] == [False]


def test_the_plan_is_shown_with_its_digest(home: Path) -> None:
    plan = json.loads(good("plan", "show", "--json", "--config", home))
    assert (plan["train"], plan["keep_count"], len(plan["digest"])) == ("last-2", 178, 64)
    assert plan["digest"] in good("plan", "show", "--config", home)


def test_versions_are_listed_shown_and_exported(lived: Path) -> None:
    first, second = json.loads(good("model", "list", "--json", "--config", lived))
    assert (first["model_version"], second["model_version"], second["parent_version"]) == (1, 2, 1)
    assert (second["bytes_up"], second["bytes_down"], second["members"]) == (900, 70_000, 1)
    assert (first["field_correct"], first["field_count"]) == (3, 4)
    assert "0.7500 (3/4)" in good("model", "list", "--config", lived)
    shown = json.loads(good("model", "show", "2", "--json", "--config", lived))
    assert [update["device_id"] for update in shown["updates"]] == ["cabin"]
    assert "cabin (1)" in good("model", "show", "2", "--config", lived)
    assert "there is no version 3" in refused("model", "show", "3", "--config", lived)


def test_an_export_is_the_model_with_what_was_learned_inside(home: Path, tmp_path: Path) -> None:
    good("model", "export", "1", "--out", tmp_path / "one.tflite", "--config", home)
    before, after = MODEL.read_bytes(), (tmp_path / "one.tflite").read_bytes()
    assert len(after) == len(before)
    assert after != before  # its last layers were reset
    assert read(after).operators == read(before).operators
    assert "there is no version 2" in refused("model", "export", "2", "--out", tmp_path / "x", "--config", home)
    refused("model", "export", "1", "--out", tmp_path / "no/such/x.tflite", "--config", home)


def test_a_report_needs_a_round_and_then_is_a_page(home: Path) -> None:
    assert "no round has closed yet" in refused("report", "--config", home)


def test_a_report_is_a_page(lived: Path, tmp_path: Path) -> None:
    answer = json.loads(good("report", "--out", tmp_path / "out", "--json", "--config", lived))
    assert Path(answer["page"]).read_text("utf-8").startswith("<!doctype html>")
    assert [version["model_version"] for version in answer["versions"]] == [1, 2]


def test_the_configuration_is_found_here_or_where_the_environment_says(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("HEDGEROW_BROKER", raising=False)
    assert "make one with broker init" in refused("model", "list")
    good("model", "list", env={"HEDGEROW_BROKER": str(home)})
    good("model", "list", env={"HEDGEROW_BROKER": str(home / "broker.toml")})
    monkeypatch.chdir(home)
    good("model", "list", env={"HEDGEROW_BROKER": "/nowhere"})


def test_reading_needs_a_store_and_makes_none(home: Path) -> None:
    (home / "broker.db").unlink()
    for command in (("model", "list"), ("fleet", "list"), ("round", "list"), ("plan", "show"), ("round", "open")):
        assert "there is no store at" in refused(*command, "--config", home)
    assert not (home / "broker.db").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('rule = "guarded"', 'rule = "mean"'), "there is no aggregation rule 'mean'"),
        (('data = ""', 'data = "none.npz"'), "cannot read the held-out data"),
        (('url = "embedded"', 'url = "http://x"'), "write mqtt://host:1883"),
        (('file = "coordinator.key"', 'file = "other.key"'), "cannot read the private key"),
        (("[round]", "[round]\nlast_s = 3"), "did you mean lasts_s?"),
    ],
)
def test_serve_refuses_a_configuration_that_cannot_work(home: Path, change: tuple[str, str], sentence: str) -> None:
    text = (home / "broker.toml").read_text()
    assert change[0] in text
    (home / "broker.toml").write_text(text.replace(*change))
    assert sentence in refused("serve", "--config", home)


def commands(group: click.Group = main, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """Every command by its words."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        words = (*before, name)
        found |= commands(command, words) if isinstance(command, click.Group) else {words: command}
    return found


ALL = commands()


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_tells_its_exit_status(words: tuple[str, ...]) -> None:
    assert "Exit status: 0" in good(*words, "--help")


READING = [
    words for words in ALL if words[-1] in {"list", "show", "diff", "bytes", "drift", "check", "report", "doctor"}
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_every_command_that_reads_has_an_answer_for_scripts(words: tuple[str, ...]) -> None:
    assert "as_json" in {option.name for option in ALL[words].params}


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'numba', 'cryptography', 'paho', 'sqlite3', 'rich', 'msgspec'}"
    code = f"import sys, broker.cli.main; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_library_that_only_an_extra_brings_is_asked_for_in_one_line(home: Path) -> None:
    code = "import sys; sys.modules['rich.console'] = None; from broker.cli.main import run; run()"
    command = [sys.executable, "-c", code, "fleet", "list", "--config", str(home)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: rich.console is not installed: pip install 'hedgerow[broker]'\n"


def test_behind_each_round_stand_the_trials_of_its_version_where_rings_are_configured(home: Path) -> None:
    config = home / "broker.toml"
    config.write_text(
        config.read_text("utf-8").replace("rings = []", "rings = [2, 5]").replace("tags = []", 'tags = ["a"]')
    )
    assert "Rounds 1 to 4 wait" in good("round", "open", "--count", 2, "--config", home)
    listed = json.loads(good("round", "list", "--json", "--config", home))
    assert [each["kind"] for each in listed] == ["training", "trial", "trial"] * 2
    first, ring, last = listed[:3]
    assert ("tags" in first["choice"], ring["choice"]["tags"]) == (False, ["a"])
    assert (ring["cohort_max"], ring["updates_min"], last["cohort_max"], last["updates_min"]) == (2, 2, 5, 3)
    assert (ring["ring"]["is_last"], last["ring"]["is_last"]) == (False, True)
    trials = json.loads(good("round", "list", "--kind", "trial", "--status", "waiting", "--json", "--config", home))
    assert [each["round_id"] for each in trials] == [2, 3, 5, 6]


def test_the_operator_pauses_and_resumes(home: Path) -> None:
    for command, paused in (("pause", True), ("resume", False)):
        good("round", command, "--config", home)
        with Store(home / "broker.db") as store:
            assert store.stages.is_paused() is paused


def test_what_cannot_be_promoted_or_gone_back_to_is_refused_in_one_line(home: Path) -> None:
    for arguments, why in (
        (("promote", 1), "version 1 is promoted: only a candidate can be promoted"),
        (("promote", 9), "there is no version 9"),
        (("rollback", 1), "version 1 is the newest"),
        (("rollback",), "there is no version 0"),
    ):
        result = run("model", *arguments, "--config", home)
        assert result.exit_code == 1
        assert why in result.output
        assert result.output.count("\n") == 1
    assert json.loads(good("model", "list", "--stage", "promoted", "--json", "--config", home))[0]["model_version"] == 1
    assert json.loads(good("model", "list", "--stage", "candidate", "--json", "--config", home)) == []
