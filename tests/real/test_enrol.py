"""From a token to an agent's link, and out again: the programs, the deployed mosquitto files, and real certificates."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from broker.config import load
from broker.store import Store
from edge_agent import config as agent_config
from edge_agent import enroll
from tests import clock_1970
from tests.real.farm import Farm
from tests.real.test_broker_process import ROOT, broker
from tests.real.test_link import seen_within
from wire import keys, token_text, topics
from wire.link import LinkDown, LinkUp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker import mqtt_server
    from tests.real.test_link import Peer

pytestmark = pytest.mark.real

AGENT = [sys.executable, "-c", "from edge_agent.cli import main; main()"]


@pytest.fixture(scope="module")
def site(mosquitto: mqtt_server.Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """One for all tests; each brings devices of its own."""
    site = Farm(mosquitto, tmp_path_factory.mktemp("farm"))
    yield site
    site.stop()


@pytest.fixture
def farm(site: Farm) -> Iterator[Farm]:
    site.serve()
    yield site
    site.leave()


def agent(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*AGENT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False, env=env)


@contextlib.contextmanager
def running(config: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """`edge-agent run`, until the block ends."""
    command = [*AGENT, "run", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=env)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_a_token_is_all_that_a_device_needs_and_it_is_good_once(farm: Farm) -> None:
    text = farm.token()
    done = agent("enroll", "--token", text, "--id", "pi-01", "--dir", str(farm.directory / "pi-01"), "--state", "kept")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pi-01 is in fleet farm; its certificate ends on ")
    assert farm.serve().line("enrolled")["device"] == "pi-01"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (farm.directory / "pi-01").iterdir()}
    assert set(modes) == {"agent.toml", "ca.crt", "device.crt", "device.key", "device.tls.key"}
    assert set(modes.values()) == {0o600}
    with running(farm.directory / "pi-01/agent.toml"):
        farm.wait_for_birth("pi-01")
        assert (farm.directory / "pi-01/kept").is_dir()
    other = agent("enroll", "--token", text, "--id", "pi-02", "--dir", str(farm.directory / "pi-02"))
    assert other.returncode == 1
    assert "refused: the token was used by another device" in other.stderr
    assert "pi-02" not in broker("fleet", "list", "--config", str(farm.home))


def test_an_answer_that_was_lost_is_given_again_and_an_attempt_that_was_cut_goes_on(farm: Farm) -> None:
    text, directory = farm.token("--device", "pi-03"), farm.directory / "pi-03"
    first = enroll.enroll(text, directory)
    certificate = (directory / "device.crt").read_bytes()
    for name in ("agent.toml", "device.crt"):
        (directory / name).unlink()
    assert enroll.enroll(text, directory) == first
    assert (directory / "device.crt").read_bytes() == certificate


def heard_of(peer: Peer, kind: type[LinkUp | LinkDown], within_s: float = 3.0) -> bool:
    """Is there such an event, now or soon? What comes before it is dropped."""
    until = time.monotonic() + within_s
    with contextlib.suppress(queue.Empty):
        while not isinstance(peer.events.get(timeout=max(0.0, until - time.monotonic())), kind):
            pass
        return True
    return False


def forge(connect: Callable[[], Peer], *forged: str) -> None:
    """Publish where one may not. A connection each, since mosquitto ends it after such a message."""
    for topic in forged:
        peer = connect()
        peer.wait_until_up()
        peer.link.publish(topic, b"forged")
        assert seen_within(lambda peer=peer: peer.link.bytes_down >= 4, 3), topic  # acknowledged: PUBACK is no receipt
        peer.link.stop()


def test_a_device_can_neither_read_nor_write_what_is_anothers(farm: Farm) -> None:
    victim = farm.peer(farm.enrol("pi-05"), "pi-05", topics.dn("farm", "pi-05", "+"))
    other = farm.enrol("pi-06")
    coordinator = farm.spy()
    victim.wait_until_up()
    forge(lambda: farm.peer(other, "pi-06"), topics.up("farm", "pi-05", "update"), topics.dn("farm", "pi-05", "offer"))
    spy = farm.peer(
        other, "pi-06", topics.dn("farm", "pi-06", "+"), topics.dn("farm", "pi-05", "+"), "fl/v1/farm/+/pi-05/+/+"
    )
    spy.wait_until_up()
    victim.link.publish(topics.up("farm", "pi-05", "update"), b"own")
    coordinator.link.publish(topics.dn("farm", "pi-05", "offer"), b"for pi-05")
    coordinator.link.publish(topics.dn("farm", "pi-06", "offer"), b"for pi-06")
    assert coordinator.payloads(1) == [b"own"]
    assert victim.payloads(1) == [b"for pi-05"]
    assert spy.payloads(1) == [b"for pi-06"]


CLAIM, ANSWER = topics.claim("farm", "0" * 16), topics.claim_answer("farm", "0" * 16)


def test_who_has_only_a_token_reaches_the_topics_of_claims_and_no_other(farm: Farm) -> None:
    device = farm.peer(farm.enrol("pi-07"), "pi-07", topics.dn("farm", "pi-07", "+"))
    text, shard = farm.token(), topics.shard("claim")
    coordinator = farm.spy()
    device.wait_until_up()
    forge(
        lambda: farm.claimant(text, ANSWER),
        f"fl/v1/farm/{shard}/claim/up/birth",
        topics.up("farm", "pi-07", "birth"),
        topics.dn("farm", "pi-07", "offer"),
        topics.shared("farm", "state"),
        ANSWER,
    )
    claimant = farm.claimant(text, ANSWER, "fl/v1/farm/all/all/dn/+", "fl/v1/farm/+/claim/dn/+", "fl/v1/#")
    claimant.wait_until_up()
    claimant.link.publish(CLAIM, b"claim")
    assert coordinator.payloads(1) == [b"claim"]
    for topic in (f"fl/v1/farm/{shard}/claim/dn/offer", topics.shared("farm", "plan"), topics.dn("farm", "pi-07", "x")):
        coordinator.link.publish(topic, b"for a device")
    coordinator.link.publish(ANSWER, b"answer")
    assert claimant.payloads(1) == [b"answer"]
    assert device.payloads(1) == [b"for a device"]


def test_a_revoked_device_is_turned_away_once_mosquitto_has_read_the_list_and_others_are_not(farm: Farm) -> None:
    stolen, good = farm.enrol("pi-09"), farm.enrol("pi-10")
    connected = farm.peer(stolen, "pi-09")
    connected.wait_until_up()
    broker("enroll", "revoke", "pi-09", "--config", str(farm.home))
    assert "pi-09" not in broker("fleet", "list", "--config", str(farm.home))
    farm.hand_over()
    os.kill(farm.server.pid, signal.SIGHUP)
    time.sleep(0.5)
    other = farm.peer(good, "pi-10")
    other.wait_until_up()
    assert farm.peer(stolen, "pi-09").next(LinkDown).reason
    assert not heard_of(connected, LinkDown), "this mosquitto ends what stands: good, and the test should say so"
    farm.server.restart()
    assert heard_of(connected, LinkDown)
    assert heard_of(other, LinkUp)
    assert not heard_of(connected, LinkUp)


def test_a_token_that_was_taken_back_opens_no_door(farm: Farm) -> None:
    text = farm.token()
    public_key = keys.public_text(token_text.signing_seed(token_text.decode(text).secret))
    broker("enroll", "revoke", token_text.token_id(public_key), "--config", str(farm.home))
    with pytest.raises(enroll.EnrolError, match="does not answer"):  # the door is open until the list is read
        enroll.enroll(text, farm.directory / "pi-11", within_s=3)
    farm.hand_over()
    os.kill(farm.server.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert farm.claimant(text).next(LinkDown).reason


def test_a_certificate_is_renewed_after_two_thirds_of_its_life_for_the_same_key(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = farm.enrol("pi-13")
    settings = agent_config.load(directory / "agent.toml")
    before = (directory / "device.crt").read_bytes()
    is_done, due = enroll.renew(settings)
    assert not is_done
    assert 58 < (due - time.time()) / 86_400 < 61
    now = time.time()
    with Store(load(farm.home / "broker.toml").store_place()) as store, store.transaction():
        times = {"then": now - 70 * 86_400, "end": now + 20 * 86_400}
        change = "UPDATE certificates SET issued_unix_s = :then, expires_unix_s = :end WHERE name = 'pi-13'"
        assert store._db.run(change, times) == 1
    monkeypatch.setattr(enroll.time, "time", lambda: due + 1)
    assert enroll.renew(settings)[0]
    after = (directory / "device.crt").read_bytes()
    assert after != before
    assert x509.load_pem_x509_certificate(after).public_key() == x509.load_pem_x509_certificate(before).public_key()
    farm.peer(directory, "pi-13").wait_until_up()


def test_a_device_that_wakes_up_in_1970_claims_its_place_and_takes_part(farm: Farm) -> None:
    environment, directory = clock_1970.environment(farm.directory), farm.directory / "pi-15"
    done = agent("enroll", "--token", farm.token("--device", "pi-15"), "--dir", str(directory), env=environment)
    assert done.returncode == 0, done.stderr
    with running(directory / "agent.toml", environment):
        farm.wait_for_birth("pi-15")
