"""What a coding costs: figures that were measured, and that follow the plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from broker import cost
from engine.codec import payload
from engine.frame import frame_of
from tests.broker.fleet import PLAN
from tests.broker.test_cli import MODEL, good, home  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from pathlib import Path

    from wire.messages import Plan

FRAME = frame_of(MODEL.read_bytes(), "last-2")


def plan(**changes: object) -> Plan:
    size = FRAME.suffix.num_params
    changes = {"num_params": size, "keep_count": size // 100, "value_bits": 0, "coding": "rice", **changes}
    return msgspec.structs.replace(PLAN, **changes)


@pytest.mark.parametrize("coding", ["rice", "context"])
def test_the_bytes_are_those_of_an_update_that_the_coordinator_would_take(coding: str) -> None:
    asked = plan(coding=coding)
    found = cost.cost_of(asked, FRAME)
    update = cost.made_up(asked, FRAME, lean=cost.LEAN)
    coded = payload.encode(update, FRAME.shapes, value_bits=0, coding=coding).payload
    assert (found.coding, found.values, found.payload_bytes) == (coding, 178, len(coded))
    read = payload.decode(coded, FRAME.shapes, lane="int8", k_max=asked.keep_count, coding=coding)
    assert len(read.indices) == asked.keep_count
    assert found.payload_bytes < found.payload_bytes_max + (9 if coding == "rice" else 0)
    assert 100 < found.around_bytes < 200  # signature, fields, topic, packets
    assert set(found.read_ms) == {"rice", "context"}
    assert found.updates_per_s == pytest.approx(1000 / found.read_ms[coding])
    assert 0.001 < found.read_ms[coding] < 1000


def test_the_figures_are_of_the_coding_and_not_of_what_it_falls_back_to() -> None:
    """At random places the context coder is seldom chosen: its time would be that of Rice codes."""
    asked = plan(coding="context", keep_count=1_000)
    found = cost.cost_of(asked, FRAME)
    update = cost.made_up(asked, FRAME, lean=cost.LEAN)
    rice = payload.encode(update, FRAME.shapes, value_bits=0, coding="rice").payload
    assert found.payload_bytes < 0.9 * len(rice)
    assert found.read_ms["context"] > found.read_ms["rice"]


def test_the_time_is_that_of_all_readings_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_read_ms", lambda _data, _plan, _frame, coding: {"rice": 1.0, "context": 5.0}[coding])
    found = cost.cost_of(plan(coding="context"), FRAME)
    assert found.read_ms == {"rice": 2.0, "context": 10.0}  # at the gate, and for the sum
    assert found.updates_per_s == 100.0


def test_an_update_with_more_values_costs_more() -> None:
    few, many = (cost.cost_of(plan(keep_count=count), FRAME) for count in (20, 8_000))
    assert many.payload_bytes > 20 * few.payload_bytes
    assert many.read_ms["rice"] > few.read_ms["rice"]


def test_a_budget_bounds_the_bytes() -> None:
    free, bound = cost.cost_of(plan(), FRAME), cost.cost_of(plan(update_bytes_max=300), FRAME)
    assert bound.payload_bytes == bound.payload_bytes_max < free.payload_bytes
    assert bound.payload_bytes < 200
    assert 300 < bound.payload_bytes + bound.around_bytes < 400  # MQTT's packet comes on top of the sealed update


def test_what_an_operator_reads() -> None:
    found = cost.Cost("context", 100, 90, 120, 150, {"rice": 0.05, "context": 1.9}, 526.3)
    assert cost.sentences(found) == [
        "An update: at most 100 values, about 90 bytes (120 at random places), and 150 for its signature and MQTT",
        "Coding context: about 1.9 ms of one core for each update here (rice 0.05 ms), so at most 526 a second",
    ]


def test_the_plan_is_shown_with_what_it_costs(home: Path) -> None:  # noqa: F811 - the fixture
    shown = json.loads(good("plan", "show", "--json", "--config", home))
    assert shown["cost"]["values"] == shown["keep_count"]
    assert shown["cost"]["coding"] == shown["coding"]
    assert f"Coding {shown['coding']}: about " in good("plan", "show", "--config", home)
    said = good("round", "open", "--coding", "rice", "--config", home)
    assert "Coding rice: about " in said
