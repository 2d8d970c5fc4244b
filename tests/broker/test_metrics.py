"""What monitors read: real numbers of the fleet, no device's name, and words when something is wrong."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.database import StoreError
from broker.effects import Aggregated, CommitRound, Pending, RoundRow, StoreSeen, StoreUpdate, UpdateRow
from broker.groups import GROUPS_MAX, OTHER
from broker.health_server import HealthServer
from broker.metrics import Metrics
from broker.store import Store
from tests.broker.fleet import KEY, PLAN, first_manifest

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/hedgerow.json"


def update(device: str, base_version: int) -> UpdateRow:
    return UpdateRow(device, 5, base_version, 8, b"d" * 32, 0, 0, b"x" * 700)


def filled() -> Metrics:
    metrics = Metrics({"signature": 3}, model_version=4)
    metrics.epoch_began()
    for device, base_version in (("cabin", 4), ("barn", 3)):
        metrics.stored(update(device, base_version))
        metrics.sent(f"fl/v1/f/ab/{device}/dn/receipt")
    row, members = RoundRow(5, PLAN, "closed", 1, 0, 1000), (Pending("cabin", 5, 4, 8), Pending("barn", 5, 3, 8))
    metrics.round_closed(CommitRound(row, first_manifest()[0], Aggregated(5, b"", None, None), members), 42.0)
    metrics.round_cancelled()
    metrics.turned(0.02)
    return metrics


def test_the_page_counts_what_was_done() -> None:
    page = filled().page().decode()
    for line in (
        "hedgerow_updates_total 2.0",
        'hedgerow_rounds_total{end="closed"} 1.0',
        'hedgerow_rounds_total{end="cancelled"} 1.0',
        "hedgerow_round_seconds_sum 42.0",
        'hedgerow_messages_sent_total{kind="receipt"} 2.0',
        'hedgerow_messages_refused_total{reason="signature"} 3.0',
        'hedgerow_update_staleness_bucket{le="0.0"} 1.0',
        "hedgerow_update_staleness_sum 1.0",
        'hedgerow_update_bytes_bucket{le="1024.0"} 2.0',
        "hedgerow_round_members_sum 2.0",
        "hedgerow_epochs_total 1.0",
    ):
        assert line in page.splitlines()


def test_no_series_names_a_device() -> None:
    assert not re.search("cabin|barn", filled().page().decode())


def test_a_group_is_a_tag_and_a_device_counts_in_each_of_its_own() -> None:
    metrics = Metrics({}, model_version=4)
    metrics.read_tags({"cabin": frozenset({"north", "wood"}), "barn": frozenset({"wood"})})
    for device in ("cabin", "barn", "dune"):
        metrics.stored(update(device, 4))
    page = metrics.page().decode().splitlines()
    for group, count in (("north", 1.0), ("wood", 2.0), ("(untagged)", 1.0)):
        assert f'hedgerow_group_updates_total{{group="{group}"}} {count}' in page


def test_no_number_of_tags_makes_more_series_than_so_many() -> None:
    metrics = Metrics({}, model_version=4)
    for wave in range(5):
        metrics.read_tags({f"d{number}": frozenset({f"tag-{wave}-{number}"}) for number in range(100)})
        for number in range(100):
            metrics.stored(update(f"d{number}", 4))
    page = metrics.page().decode()
    assert page.count("hedgerow_group_updates_total{") == GROUPS_MAX + 1
    assert f'hedgerow_group_updates_total{{group="{OTHER}"}} {500.0 - GROUPS_MAX}' in page


def watching(tmp_path: Path) -> Metrics:
    """Metrics beside a store in which two devices reported on version 1, and one of them is there."""
    path = tmp_path / "broker.db"
    with Store(path) as store:
        store.put_first_version(*first_manifest(), b"")
        store.ask_for([RoundRow(0, PLAN, "waiting", 1, 0, 1000)] * 2)
        for device, correct in (("cabin", 6), ("barn", 1)):
            store.add_device(device, KEY["cabin"])
            store.roster.call(device, ["wood", *(["north"] if device == "cabin" else [])])
            store.apply(StoreUpdate(UpdateRow(device, 1, 1, 8, b"d" * 32, correct, 8, b"x")))
        store.apply(StoreUpdate(UpdateRow("gone", 1, 1, 8, b"d" * 32, 0, 1000, b"x")))
        store.apply(StoreSeen("cabin", present=True, software="agent-1"))
        metrics = filled()
        metrics.read_tags(store.roster.tags())
    metrics.stored(update("cabin", 4))
    metrics.watch(lambda: Store(path, read_only=True), lambda: True)
    return metrics


def test_each_group_has_its_devices_and_its_accuracy(tmp_path: Path) -> None:
    page = watching(tmp_path).page().decode().splitlines()
    for line in (
        "hedgerow_field_version 1.0",
        'hedgerow_group_devices_present{group="north"} 1.0',
        'hedgerow_group_devices_present{group="wood"} 1.0',
        'hedgerow_group_field_examples{group="wood"} 16.0',
        'hedgerow_group_field_accuracy{group="north"} 0.75',
        'hedgerow_group_field_accuracy{group="wood"} 0.4375',
    ):
        assert line in page
    examples = [line for line in page if line.startswith("hedgerow_group_field_examples{")]
    assert len(examples) == 2  # whoever left the fleet is in none


def test_the_dashboard_asks_only_for_what_the_page_tells(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = {name for panel in panels for each in panel.get("targets", ()) for name in NAMES.findall(each["expr"])}
    assert len(asked) > 10
    told = set(NAMES.findall(watching(tmp_path).page().decode()))
    assert asked - told == {"hedgerow_model_accuracy"}  # which a fleet without data of its own has none of
    assert "hedgerow_group_field_accuracy" in asked


NAMES = re.compile(r"hedgerow_\w+")


@pytest.fixture
def wrong() -> dict[str, str]:
    return {"trouble": "", "unready": ""}


@pytest.fixture
def url(wrong: dict[str, str]) -> Iterator[str]:
    def page() -> bytes:
        if "store" in wrong:
            raise StoreError(wrong["store"])
        return b"hedgerow_up 1\n"

    server = HealthServer("127.0.0.1", 0, page, lambda: wrong["trouble"], lambda: wrong["unready"])
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_all_is_well(url: str) -> None:
    assert get(f"{url}/healthz") == (200, "ok\n")
    assert get(f"{url}/readyz") == (200, "ok\n")
    assert get(f"{url}/metrics") == (200, "hedgerow_up 1\n")
    assert get(f"{url}/")[0] == 404


def test_a_link_that_is_down_is_not_ready_and_needs_no_restart(url: str, wrong: dict[str, str]) -> None:
    wrong["unready"] = "there is no session with the MQTT server"
    assert get(f"{url}/healthz")[0] == 200
    assert get(f"{url}/readyz") == (503, "there is no session with the MQTT server\n")


def test_a_loop_that_stands_still_needs_a_restart(url: str, wrong: dict[str, str]) -> None:
    wrong["trouble"] = "the loop has not turned for 400 s"
    assert get(f"{url}/healthz") == (503, "the loop has not turned for 400 s\n")
    assert get(f"{url}/readyz")[0] == 503


def test_a_store_that_does_not_answer_is_told(url: str, wrong: dict[str, str]) -> None:
    wrong["store"] = "disk I/O error"
    assert get(f"{url}/metrics") == (503, "the store does not answer: disk I/O error\n")
