"""A PostgreSQL server of a test run's own: in a temporary directory, on a Unix socket, with fsync on.

Each test has a schema of its own in it, which is as good as a database and made in a millisecond.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from broker.database import Address

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PATIENCE_S = 60.0
_ACCESS = "local all hedgerow trust\nlocal all all scram-sha-256\n"  # hedgerow: the tests; anyone else has a password


class PostgresServer:
    """Runs from the moment it is made until `stop`; `crash` is what a power cut is to it, and its next start."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="hedgerow-pg-"))  # short: a socket's path has 107 bytes at most
        self._bin = BINARIES[-1].parent
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self._home, account.pw_uid, account.pw_gid)
        self._schemas = 0
        self._call(
            "initdb", "--pgdata", self._data, "--username", "hedgerow", "--encoding", "UTF8", "--locale", "C.UTF-8"
        )
        (self._home / "data/pg_hba.conf").write_text(_ACCESS)
        self._start()

    @property
    def _data(self) -> str:
        return str(self._home / "data")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once: nobody will read it again
        self._process.wait(PATIENCE_S)
        subprocess.Popen(["rm", "-rf", self._home])  # many files; nobody need wait for it

    def crash(self) -> None:
        self._process.kill()  # its children see that and end; what was not on disk is gone with their memory
        self._process.wait(PATIENCE_S)
        self._start()

    def url(self, schema: str = "public", user: str = "hedgerow") -> str:
        return f"postgresql://{user}@/postgres?host={self._home}&options=-csearch_path%3D{schema}"

    def fresh(self) -> Address:
        """An empty store of its own."""
        self._schemas += 1
        schema = f"store_{self._schemas}"
        self.ask(f"CREATE SCHEMA {schema}")
        return Address(self.url(schema))

    def ask(self, sql: str, url: str | None = None) -> list[tuple[object, ...]]:
        """Say something past the code under test."""
        with psycopg.connect(url or self.url(), autocommit=True) as db:
            cursor = db.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _start(self) -> None:
        """Start it, again and again while children of the one that crashed still hold its memory."""
        settings = ["-c", f"unix_socket_directories={self._home}", "-c", "listen_addresses=", "-c", "fsync=on"]
        log, until = self._home / "log", time.monotonic() + PATIENCE_S
        self._process: subprocess.Popen[bytes] | None = None
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                assert self._process is None or "is still in use" in log.read_text().rpartition("FATAL:")[2], (
                    log.read_text()
                )
                with log.open("ab") as stderr:
                    command = [self._bin / "postgres", "-D", self._data, *settings]
                    self._process = subprocess.Popen(
                        command, user=self._user, cwd=self._home, stdout=subprocess.DEVNULL, stderr=stderr
                    )
            assert time.monotonic() < until, "PostgreSQL does not come up"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.ask("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / name, *arguments],
            user=self._user,
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
