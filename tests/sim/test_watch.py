"""Watching: torn lines wait, killed writers do no harm, and only what was said is counted."""

from pathlib import Path

from firmware_sim.lineage import Finished
from firmware_sim.lines import Follower, parse
from firmware_sim.watch import follow

DIGEST = "ab" * 32


def test_values_are_unquoted_as_a_shell_would() -> None:
    assert parse("event=refused why='it''s old' device=dune") == {
        "event": "refused",
        "why": "its old",
        "device": "dune",
    }
    assert parse("Traceback (most recent call last):") == {}
    assert parse("event=refused why='half a quo") == {}


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    follower = Follower(path)
    assert follower.new() == []
    path.write_text("event=ready pid=1\nevent=out")
    assert [pairs["event"] for pairs in follower.new()] == ["ready"]
    assert follower.new() == []
    with path.open("a") as file:
        file.write("box round=3\n")
    assert follower.new() == [{"event": "outbox", "round": "3"}]


def test_an_outbox_is_finished_once_however_often_it_is_found(tmp_path: Path) -> None:
    coordinator, agent = tmp_path / "c.log", tmp_path / "dune.log"
    watch = follow(coordinator, {"dune": agent})
    assert not watch.look()
    coordinator.write_text("event=birth device=dune\nevent=round-open round=4\nevent=accepted device=dune round=4\n")
    agent.write_text(
        f"event=trainer round=4 ok=1 peak_rss_kb=150000\nevent=outbox round=4 digest={DIGEST} bytes=450\n"
        f"event=outbox-found round=4 digest={DIGEST}\n"
    )
    assert watch.look()
    assert watch.finished == {bytes.fromhex(DIGEST): Finished("dune", 4, 450)}
    assert watch.just_finished == ["dune"]
    assert watch.waiting == [Finished("dune", 4, 450)]
    assert (watch.open_round, watch.accepted, watch.births["dune"]) == (4, {4: {"dune"}}, 1)
    assert watch.trainer_peaks_kb == [150_000]
    with agent.open("a") as file:
        file.write(f"event=receipt round=4 verdict=unknown digest={DIGEST}\n")
    watch.look()
    assert len(watch.waiting) == 1, "unknown empties no outbox"
    with agent.open("a") as file:
        file.write(f"event=receipt round=4 verdict=refused digest={DIGEST}\n")
    watch.look()
    assert watch.waiting == []
    assert watch.refused == [bytes.fromhex(DIGEST)]
    assert watch.just_finished == []


def test_a_training_that_failed_is_told(tmp_path: Path) -> None:
    agent = tmp_path / "dune.log"
    watch = follow(tmp_path / "c.log", {"dune": agent})
    agent.write_text("event=trainer round=2 ok=0 peak_rss_kb=1 reason='too few examples'\n")
    watch.look()
    assert watch.failures == ["dune, round 2: too few examples"]
