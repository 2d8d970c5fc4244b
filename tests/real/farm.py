"""A fleet with TLS as its operator sets it up: its authority, mosquitto with the deployed files, `broker serve`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from broker import certificates, mqtt_server
from edge_agent import enroll
from tests.real.test_broker_process import MODEL, Serving, broker
from tests.real.test_link import Peer
from tests.real.test_mosquitto_traps import DEPLOY, free_port, run
from wire import token_text, topics

if TYPE_CHECKING:
    from pathlib import Path


class Farm:
    """A fleet with an authority, mosquitto with the deployed files, and `broker serve`."""

    def __init__(self, mosquitto: mqtt_server.Mosquitto, directory: Path, address: str = "127.0.0.1") -> None:
        """`address`: where devices find this machine."""
        self.port = free_port()
        self.url, self.device_url = f"mqtts://127.0.0.1:{self.port}", f"mqtts://{address}:{self.port}"
        self.home, self.certs = directory / "broker", directory / "certs"
        self.directory = directory
        broker("init", str(self.home), "--model", str(MODEL), "--fleet", "farm", "--mqtt", self.url)
        broker("enroll", "init", "--server", "127.0.0.1", "--server", address, "--config", str(self.home))
        text = (self.home / "broker.toml").read_text("utf-8")
        for key, name in (("ca_file", "ca.crt"), ("cert_file", "coordinator.crt"), ("key_file", "coordinator.tls.key")):
            head, _, rest = text.partition(f"# {key} = ")
            text = f'{head}{key} = "{name}"\n{rest.partition(chr(10))[2]}'
        (self.home / "broker.toml").write_text(text, "utf-8")
        self.certs.mkdir()
        self.hand_over()
        self.server = run(mosquitto, directory, self._mosquitto_config(directory), self.port)
        self.coordinator: Serving | None = None
        self.peers: list[Peer] = []

    def serve(self) -> Serving:
        """`broker serve`, which runs afterwards."""
        if self.coordinator is None:
            self.coordinator = Serving(self.home)
            self.coordinator.line("ready")
        return self.coordinator

    def wait_for_birth(self, device: str) -> None:
        while self.serve().line("birth")["device"] != device:
            pass

    def kill_coordinator(self) -> None:
        if self.coordinator is not None:
            self.coordinator.kill()
            self.coordinator = None

    def hand_over(self) -> None:
        """What the operator copies to the MQTT server."""
        for name, to in (("ca.crt", ""), ("server.crt", ""), ("server.tls.key", "server.key"), ("revoked.crl", "")):
            shutil.copy(self.home / name, self.certs / (to or name))

    def _mosquitto_config(self, directory: Path) -> str:
        shutil.copy(DEPLOY / "mosquitto.acl", directory)
        config = (DEPLOY / "mosquitto.conf").read_text()
        for before, after in (
            ("/etc/mosquitto/certs/", f"{self.certs}/"),
            ("/etc/mosquitto/mosquitto.acl", str(directory / "mosquitto.acl")),
            ("listener 8883", f"listener {self.port} 127.0.0.1"),
            ("user mosquitto", f"user {mqtt_server.getpass.getuser()}"),
            ("log_dest syslog", "log_dest stderr"),
        ):
            assert before in config, f"{before!r} is gone from deploy/raspi/mosquitto.conf"
            config = config.replace(before, after)
        return config

    def token(self, *more: str) -> str:
        return broker("enroll", "token", *more, "--mqtt", self.device_url, "--config", str(self.home)).strip()

    def enrol(self, name: str) -> Path:
        """A device's directory, after `edge-agent enroll`."""
        directory = self.directory / name
        enroll.enroll(self.token("--device", name), directory)
        return directory

    def peer(self, directory: Path, name: str, *filters: str) -> Peer:
        """A link with the TLS identity in a device's directory."""
        files = {"cert_file": directory / "device.crt", "key_file": directory / "device.tls.key"}
        filters = filters or topics.device_filters("farm", name)
        self.peers.append(Peer(self.url, name, list(filters), ca_file=directory / "ca.crt", **files))
        return self.peers[-1]

    def claimant(self, text: str, *filters: str) -> Peer:
        """A link with nothing but what is in a token."""
        token = token_text.decode(text)
        scratch = self.directory / "claimant"
        scratch.mkdir(exist_ok=True)
        (scratch / "ca.crt").write_bytes(certificates.pem([certificates.parse(each) for each in token.authority]))
        (scratch / "device.crt").write_bytes(certificates.pem([certificates.parse(token.certificate)]))
        (scratch / "device.tls.key").write_bytes(certificates.key_pem(certificates.key_of(token.secret)))
        return self.peer(scratch, "claim", *filters)

    def spy(self) -> Peer:
        """The coordinator's own identity, which hears what devices say; `broker serve` has to be stopped for it."""
        self.kill_coordinator()
        files = {"cert_file": self.home / "coordinator.crt", "key_file": self.home / "coordinator.tls.key"}
        filters = list(topics.coordinator_filters("farm"))
        self.peers.append(Peer(self.url, "coordinator", filters, ca_file=self.home / "ca.crt", **files))
        self.peers[-1].wait_until_up()
        return self.peers[-1]

    def leave(self) -> None:
        while self.peers:
            self.peers.pop().link.stop()

    def stop(self) -> None:
        self.leave()
        self.kill_coordinator()
        self.server.stop()
