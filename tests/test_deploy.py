"""What goes onto a device is checked with the tools that will read it there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from broker.config import load
from broker.founding import Wishes, found
from edge_agent import config, enroll, service, systemd
from firmware_sim import data
from tests.targets import road
from wire import keys

DEPLOY = Path(__file__).parent.parent / "deploy/raspi"
UNIT = DEPLOY / "edge-agent.service"
MOSQUITTO = DEPLOY / "mosquitto.conf"
ROAD = (DEPLOY / "README.md").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines(keepends=True)
    # The program is not installed on this machine; everything else is the very file.
    assert sum(line.startswith("ExecStart=/opt/hedgerow/bin/edge-agent run ") for line in lines) == 1
    unit.write_text(
        "".join(line for line in lines if "/opt/hedgerow/" not in line) + "[Service]\nExecStart=/bin/true\n"
    )
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not ours
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["edge-agent.service", "broker.service"])
def test_the_units_leave_our_programs_few_rights(unit):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(DEPLOY / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(rf"exposure level for {unit}: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 2.0, done.stdout


def test_systemd_waits_longer_for_a_sign_of_life_than_the_agents_loop_may_rest():
    watchdog_s = int(re.search(r"^WatchdogSec=(\d+)$", UNIT.read_text(), re.MULTILINE)[1])
    assert watchdog_s > 2 * service.READING_MS / 1000 + systemd.PAUSE_S


def test_the_unit_keeps_what_the_documentation_promises():
    settings = [line.strip() for line in UNIT.read_text().splitlines()]
    assert "Environment=NUMBA_CACHE_DIR=/var/cache/hedgerow/numba" in settings  # else kernels compile at every boot
    assert "Restart=always" in settings
    assert "OOMPolicy=continue" in settings  # else a trainer that needs too much ends its agent, again and again
    assert not [line for line in settings if line.startswith("SystemCallFilter=~@resources")]  # numpy calls mbind
    assert "ProcSubset=pid" not in settings  # else the load of other programs is unknown, and a limit of it refuses


def shell(command: str, directory: Path) -> None:
    subprocess.run(["bash", "-ec", command.replace("sudo ", "")], cwd=directory, check=True, capture_output=True)


def write_config(directory: Path) -> None:
    """What edge-agent enroll leaves, as the road has it."""
    state = re.search(r"enroll --dir /etc/hedgerow --state (\S+) --token", ROAD)
    assert state
    key = keys.public_text(keys.generate())
    names = {"key": enroll.KEY_FILE, "state": state[1], "tls": enroll.TLS_LINES}
    text = config.SAMPLE.format(id="pi-07", fleet="home", coordinator_key=key, url="mqtts://server:8883", **names)
    (directory / enroll.CONFIG_FILE).write_text(text)


def test_the_road_from_a_token_to_the_unit_gives_a_config_of_the_very_files_that_the_unit_hands_over(tmp_path):
    write_config(tmp_path)
    settings = config.load(tmp_path / "agent.toml")
    assert settings.device.state == Path("/var/lib/hedgerow")
    files = (settings.device.key, settings.mqtt.ca_file, settings.mqtt.cert_file, settings.mqtt.key_file)
    assert all(file is not None and file.parent == tmp_path for file in files)
    handed_over = set(re.findall(r"^LoadCredential=(.*):/etc/hedgerow/\1$", UNIT.read_text(), re.MULTILINE))
    assert {file.name for file in files} | {"agent.toml"} == handed_over


def test_the_source_of_the_road_has_windows_that_the_model_of_the_road_takes(tmp_path):
    write_config(tmp_path)
    (command,) = [
        each for each in road.commands("The device") if each.startswith("sudo tee -a /etc/hedgerow/agent.toml")
    ]
    shell(command.replace("/etc/hedgerow/", ""), tmp_path)
    source = config.load(tmp_path / "agent.toml").source
    assert source is not None
    assert (source.kind, source.path) == ("directory", Path("/srv/windows"))
    assert source.window == data.digits().windows.shape[1:]


def test_the_road_is_read_line_by_line_with_the_token_in_its_place():
    commands = road.commands("The device", "hedgerow-token-abc")
    assert commands[0] == "sudo apt-get install ./hedgerow-agent_*_arm64.deb"
    assert "sudo edge-agent enroll --dir /etc/hedgerow --state /var/lib/hedgerow --token hedgerow-token-abc" in commands
    assert not [each for each in commands if "```" in each or not each.startswith("sudo ")]


MODEL = Path(__file__).parent.parent / "firmware_sim/models/digits.tflite"


@pytest.fixture
def server(tmp_path):
    """What the road makes on the server, with its directories in a temporary one."""
    home = tmp_path / "var/lib/hedgerow"
    found(home, Wishes(MODEL, "digits", fleet="home", mqtt="mqtts://server:8883"))
    commands = re.search(r"(?s)```\nsudo /opt/hedgerow/bin/broker enroll init(.*?)```", ROAD)
    assert commands
    begin = f"{sys.executable} -c 'from broker.cli.main import main; main()' enroll init"
    script = (begin + commands[1]).replace(" /etc/", f" {tmp_path}/etc/").replace("-o mosquitto ", "")
    shell(script.replace("/var/lib/hedgerow", str(home)), tmp_path)
    return home


def test_the_road_gives_mosquitto_and_the_coordinator_the_files_that_they_ask_for(server, tmp_path):
    asked = re.findall(r"(?m)^(?:cafile|certfile|keyfile|crlfile) (/etc/mosquitto/certs/.*)$", MOSQUITTO.read_text())
    assert len(asked) == 4
    assert all((tmp_path / file.removeprefix("/")).is_file() for file in asked)
    assert (tmp_path / "etc/mosquitto/certs/server.key").stat().st_mode & 0o777 == 0o600
    mqtt, http = load(server / "broker.toml").mqtt, load(server / "broker.toml").http
    assert all((server / name).is_file() for name in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
    assert not http.cert_file


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_certificates_of_the_road_hold_for_the_strictest_reader_and_each_for_its_purpose(server):
    """From Python 3.13 on, ssl asks for X.509 as RFC 5280 has it."""

    def verify(name: str, purpose: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", "revoked.crl", "-purpose", purpose]
        command += ["-CAfile", "ca.crt", name]
        return subprocess.run(command, cwd=server, capture_output=True, check=False).returncode == 0

    assert verify("server.crt", "sslserver")
    assert verify("coordinator.crt", "sslclient")
    # whoever has the key of one is not the other
    assert not verify("server.crt", "sslclient")
    assert not verify("coordinator.crt", "sslserver")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", ["edge-agent-enroll.service", "edge-agent-renew.service", "edge-agent-renew.timer"])
def test_systemd_finds_no_fault_with_what_looks_after_the_certificate(tmp_path, unit):
    for file in DEPLOY.glob("edge-agent-*"):
        text = file.read_text().replace("ExecStart=/opt/hedgerow/bin/edge-agent ", "ExecStart=/bin/true ")
        (tmp_path / file.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if unit.partition(".")[0] in line]


def wheel(folder: Path, version: str, *, broken: bool = False) -> Path:
    """A package with one command, as pip installs it."""
    path = folder / f"hedgerow-{version}-py3-none-any.whl"
    info = f"hedgerow-{version}.dist-info"
    says = "raise SystemExit(3)" if broken else f"print('edge-agent, version {version}')"
    files = {
        "edge_agent_stub.py": f"def main():\n    {says}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: hedgerow\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedge-agent = edge_agent_stub:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return path


def install(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(DEPLOY / "install.sh"), *map(str, arguments)]
    environment = {**os.environ, "HEDGEROW_ROOT": str(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_agent_is_installed_upgraded_rolled_back_and_removed_and_a_bad_upgrade_changes_nothing(tmp_path):
    root, link = tmp_path / "root", tmp_path / "root/opt/hedgerow"

    def version() -> str:
        return subprocess.run([link / "bin/edge-agent"], capture_output=True, text=True, check=True).stdout.strip()

    for number in ("0.1.0", "0.2.0", "0.2.0"):
        done = install(root, wheel(tmp_path, number))
        assert (done.returncode, done.stdout) == (0, f"installed edge-agent, version {number}\n"), done.stderr
        time.sleep(1.1)  # an installation is named after its second
    assert len(list((root / "opt").glob("hedgerow-*"))) == 2
    assert (root / "etc/systemd/system/edge-agent.service").read_text() == UNIT.read_text()
    bad = install(root, wheel(tmp_path, "0.3.0", broken=True))
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].endswith("nothing was changed")
    assert version() == "edge-agent, version 0.2.0"
    assert len(list((root / "opt").glob("hedgerow-*"))) == 2
    assert install(root, "--rollback").stdout == "the agent is edge-agent, version 0.2.0 again\n"
    (root / "var/lib/hedgerow").mkdir(parents=True)
    assert install(root, "--remove").returncode == 0
    assert not link.exists()
    assert not list((root / "opt").iterdir())
    assert (root / "var/lib/hedgerow").is_dir()
    assert install(root, "--remove").returncode == 0
    assert "no earlier installation" in install(root, "--rollback").stderr
    assert "unknown option --sideways" in install(root, "--sideways").stderr


def test_what_a_first_boot_writes_is_what_the_unit_claims_with():
    text = (DEPLOY / "user-data").read_text()
    assert text.startswith("#cloud-config\n")
    unit = (DEPLOY / "edge-agent-enroll.service").read_text()
    (token,) = re.findall(r"(?m)^StandardInput=file:(.*)$", unit)
    assert f"  - path: {token} " in text
    assert f"ConditionPathExists={token}\n" in unit
    assert re.findall(r"(?m)^Exec.*$", unit)[-1] == f"ExecStartPost=/bin/rm {token}"  # all of them have it for stdin
    assert "Storage=volatile" in text


SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$DPKG_ROOT/systemctl.log"
if [ "$1" = restart ]; then grep -q starts "$DPKG_ROOT/opt/hedgerow/lib/agent.py"; fi
"""


class Apt:
    """The real dpkg, in a directory. The packages have our scripts, a program of one file, and the unit."""

    def __init__(self, home: Path) -> None:
        self.home, self.root = home, home / "root"
        spec = importlib.util.spec_from_file_location("package", DEPLOY / "package.py")
        assert spec is not None
        assert spec.loader is not None
        self.package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.package)
        (self.root / "run/systemd/system").mkdir(parents=True)
        for folder in ("info", "updates", "triggers"):
            (self.root / "var/lib/dpkg" / folder).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        (home / "bin").mkdir()
        (home / "bin/systemctl").write_text(SYSTEMCTL)
        (home / "bin/systemctl").chmod(0o755)

    def make(self, version: str, program: str, more: str = "") -> Path:
        tree = self.home / version
        files = {"opt/hedgerow/lib/agent.py": program, "opt/hedgerow/bin/edge-agent": "#!/bin/sh\n"}
        files |= {"lib/systemd/system/edge-agent.service": f"# {version}\n"} | ({more: ""} if more else {})
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        facts = {"version": version, "python": "3.11", "suite": "bookworm", "kilobytes": 1}
        self.package._describe(tree / "DEBIAN", facts)
        path = self.home / f"{version}.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, capture_output=True)
        return path

    def dpkg(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        forced = "--force-script-chrootless,not-root,architecture,depends,bad-path"
        command = ["dpkg", f"--root={self.root}", forced, *map(str, arguments)]
        environment = {**os.environ, "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def files(self) -> dict[str, str]:
        """What is of the package, bytecode left out."""
        places = [*(self.root / "opt").rglob("*"), *(self.root / "lib").rglob("*")]
        found = [path for path in places if path.is_file() and path.suffix != ".pyc"]
        return {str(path.relative_to(self.root)): path.read_text() for path in found}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_a_package_that_does_not_start_is_undone_by_itself(tmp_path):
    apt = Apt(tmp_path)
    done = apt.dpkg("-i", apt.make("1.0", "it starts"))
    assert done.returncode == 0, done.stderr
    before = apt.files()
    bad = apt.dpkg("-i", apt.make("1.1", "it fails", more="opt/hedgerow/lib/new.py"))
    assert bad.returncode == 1
    assert "1.1 does not start (journalctl -u edge-agent); the program before it is back" in bad.stderr
    assert apt.files() == before
    assert (apt.root / "systemctl.log").read_text().splitlines()[-1] == "restart edge-agent.service"
    again = apt.dpkg("-i", tmp_path / "1.0.deb")
    assert again.returncode == 0, again.stderr
    good = apt.dpkg("-i", apt.make("1.2", "the next starts"))
    assert good.returncode == 0, good.stderr
    assert apt.files()["opt/hedgerow/lib/agent.py"] == "the next starts"
    assert apt.files()["lib/systemd/system/edge-agent.service"] == "# 1.2\n"
    assert apt.files().keys() == before.keys()  # nothing is kept once it has started
    assert apt.dpkg("--purge", "hedgerow-agent").returncode == 0
    assert not apt.files()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_a_first_package_that_does_not_start_says_so(tmp_path):
    apt = Apt(tmp_path)
    done = apt.dpkg("-i", apt.make("1.0", "it fails"))
    assert done.returncode == 1
    assert "hedgerow-agent: the agent does not start: journalctl -u edge-agent" in done.stderr
