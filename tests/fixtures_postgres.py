"""A real PostgreSQL for tests: `running_postgres` starts one, the plugin's fixture shares one per session.

As root it runs as the user ``postgres`` (it refuses root); in a directory of its own under /tmp, on 127.0.0.1
and a unix socket, with fsync on. It ends with the fixture, whatever happened.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_S = 30.0
STOP_S = 20.0
PASSWORD = "s3cret-of-the-tests"
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "cluster_name": "headrace-tests",
}


def postgres_bin() -> Path | None:
    """Where the server's programs are: the newest Debian package, or on PATH."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "postgres").exists():
            return folder
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


class PostgresServer:
    """One cluster of databases. ``start``, ``stop`` and ``kill`` may be repeated; data and port stay."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._shared = ""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None
        return self._process.pid

    def init(self) -> None:
        """Make the cluster."""
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run(
            "initdb", "-D", str(self.data), "-U", "headrace", "-A", "scram-sha-256", f"--pwfile={secret}",
            "-E", "UTF8", "--locale=C.UTF-8",
        )  # fmt: skip

    def start(self, **settings: str) -> None:
        """Start it, and wait until it answers."""
        options = [f"-c{name}={value}" for name, value in (_SETTINGS | settings).items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(
                    "postgres", "-D", str(self.data), "-p", str(self.port), "-k", str(self.folder), *options
                ),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )
        end = time.monotonic() + START_S
        while not self._ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "PostgreSQL did not start in time"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT aborts what runs (fast), SIGQUIT leaves recovery to the next start (immediate)."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_S)

    def dsn(self, database: str = "postgres", *, password: str = PASSWORD) -> str:
        """The address of a database, over loopback TCP."""
        return f"postgresql://headrace:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database; gives its address."""
        self._databases += 1
        name = f"jobs{self._databases}"
        self.sql(f'CREATE DATABASE "{name}"')
        return self.dsn(name)

    def empty_database(self) -> str:
        """One database, emptied at each call: faster than a new one, for tests that need just one each."""
        if not self._shared:
            self._shared = self.new_database()
            return self._shared
        name = self._shared.rpartition("/")[2]
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        self.sql("DROP SCHEMA IF EXISTS headrace CASCADE", name)
        return self._shared

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement by psql; gives its rows."""
        return self._run(
            "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "headrace",
            "-d",
            database,
            "-Atqc",
            statement,
        )

    def _ready(self) -> bool:
        done = subprocess.run(
            [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            timeout=10,
            check=False,
        )
        return done.returncode == 0

    def _command(self, program: str, *words: str) -> list[str]:
        command = [str(self._programs / program), *words]
        if os.geteuid() != 0:
            return command
        # The death signal ends the server with the tests, should these be killed.
        drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=QUIT", "--"]
        return [*drop, *command]

    def _run(self, program: str, *words: str) -> str:
        done = subprocess.run(
            self._command(program, *words),
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def running_postgres(**settings: str) -> Iterator[PostgresServer]:
    """A new server, ended and removed afterwards."""
    programs = postgres_bin()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
    server = PostgresServer(folder, programs)
    try:
        server.init()
        server.start(**settings)
        yield server
    finally:
        # Nobody reads the data again: no checkpoint of all databases.
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests that don't stop it; each takes a ``new_database``."""
    with running_postgres() as server:
        yield server
