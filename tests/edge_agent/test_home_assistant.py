"""What Home Assistant is told: once what there is, then now and then how the device is."""

from __future__ import annotations

import json

import msgspec
import pytest

from edge_agent import config, service
from edge_agent.home_assistant import SILENCES, HomeAssistant
from tests.edge_agent.test_predictions import SOURCE, Wire
from wire import keys


@pytest.fixture
def make(tmp_path):
    """A device whose config ends like this, its status with the link up, and the wire."""

    def maker(end: str):
        made = config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", keys.public_text(keys.generate()))
        made.path.write_text(made.path.read_text() + end)
        settings, wire = config.load(made.path), Wire()
        status = msgspec.structs.replace(service.Service(settings)._look(), link_up=True, battery_rate=0.456)
        return HomeAssistant(settings, "hedgerow/dev-1/prediction", wire.publish), status, wire

    return maker


def test_without_the_section_nothing_is_said(make):
    home, status, wire = make(SOURCE)
    home.tell(status, 0)
    home.goodbye(status)
    assert wire.sent == []


def test_entities_are_announced_once_retained_and_each_names_a_key_that_is_published(make):
    home, status, wire = make("\n[home_assistant]\n" + SOURCE)
    home.tell(msgspec.structs.replace(status, link_up=False), 0)
    assert wire.sent == []
    home.tell(status, 1)
    *announced, (topic, state, retain, qos) = wire.sent
    assert (topic, retain, qos) == ("hedgerow/dev-1/state", False, 0)
    published = {topic: json.loads(state), "hedgerow/dev-1/prediction": {"label": 1, "score": 0.5}}
    ids = set()
    for where, payload, is_retained, its_qos in announced:
        entity = json.loads(payload)
        prefix, component, node, key, end = where.split("/")
        assert (prefix, node, end, is_retained, its_qos) == ("homeassistant", "fleet-1-dev-1", "config", True, 1)
        assert component in {"sensor", "binary_sensor"}
        assert entity["value_template"] == f"{{{{ value_json.{key} }}}}"
        assert key in published[entity["state_topic"]]
        assert entity.get("expire_after") == (SILENCES * 300 if entity["state_topic"] == topic else None)
        ids.add(entity["unique_id"])
    assert len(ids) == len(announced) == 7
    assert json.loads(state) == {
        "online": True,
        "round": 0,
        "version": 0,
        "battery": 46,
        "temperature": None,
        "bytes_this_month": 0,
    }


def test_the_state_comes_every_interval_and_a_goodbye_says_so(make):
    home, status, wire = make('\n[home_assistant]\nprefix = "ha/home"\n')
    for now_ms in range(0, 900_001, 10_000):
        home.tell(status, now_ms)
    states = [payload for topic, payload, *_ in wire.sent if topic == "hedgerow/dev-1/state"]
    assert len(states) == 4
    assert len(wire.sent) == 4 + 5  # no prediction without a source
    assert all(topic.startswith("ha/home/") for topic, *_ in wire.sent if topic != "hedgerow/dev-1/state")
    home.goodbye(status)
    assert json.loads(wire.sent[-1][1])["online"] is False


def test_what_the_link_did_not_take_is_announced_again(make):
    home, status, wire = make("\n[home_assistant]\n")
    wire.is_up = False
    home.tell(status, 0)
    wire.is_up = True
    home.tell(status, 10_000)
    assert len(wire.sent) == 5
