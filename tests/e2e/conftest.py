"""One `headrace up` for all tests of a session: a start takes seconds, and it must survive them all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from headrace.cluster.identity import UpRecord, read_record
from headrace.cluster.listeners import with_ports
from headrace.cluster.sweep import leftovers
from headrace.config import Settings, default_run_dir
from headrace.sdk.client import Client

START_S = 120.0
DEADLINE_S = 60.0


def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until the condition gives something true; fail at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "condition not met in time"
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Up:
    """A platform started by the command line, and what runs of it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.settings = with_ports(
            Settings(
                data_dir=str(self.data),
                run_dir=str(default_run_dir(self.data)),
                port=0,
                control_port=0,
                ray_port=0,
                drain_grace=5.0,
            )
        )
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.answer: dict[str, Any] = {}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "headrace.cli", *words]

    @property
    def options(self) -> list[str]:
        s = self.settings
        return [
            "--data-dir", s.data_dir, "--port", str(s.port), "--control-port", str(s.control_port),
            "--ray-port", str(s.ray_port), "--json",
        ]  # fmt: skip

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "HEADRACE_RUN_DIR": self.settings.run_dir, "HEADRACE_DRAIN_GRACE": "5"}

    def start(self) -> float:
        """Start and wait until it says that it is ready; the seconds that took."""
        began = time.monotonic()
        with (self.folder / "up.err").open("a") as err:
            self.process = subprocess.Popen(
                # It ends with the tests, also when they are killed.
                ["setpriv", "--pdeathsig=TERM", *self.command("up", *self.options)],
                stdout=subprocess.PIPE,
                stderr=err,
                env=self.environ,
                text=True,
            )
        process = self.process

        def ready() -> bool:
            record = self.record
            return record is not None and record.pid == process.pid and record.state == "ready"

        until(lambda: ready() or process.poll() is not None, START_S)
        assert self.process.poll() is None, (self.folder / "up.err").read_text()[-3000:]
        return time.monotonic() - began

    @property
    def record(self) -> UpRecord | None:
        return read_record(self.data)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()

    def client(self) -> Client:
        return Client(self.url, self.key)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON). Status 0: no connection, or one that broke."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")
        except OSError as error:
            return 0, str(error)

    def get(self, path: str) -> Any:
        status, value = self.request("GET", f"/api/v1{path}")
        return value if status == 200 else None

    def call(self, endpoint: str, body: Any) -> Any:
        return self.request("POST", f"/e/{endpoint}", body)

    def hosts(self) -> list[dict[str, Any]]:
        """Those that can take instances."""
        found = self.get("/hosts") or {"items": []}
        return [h for h in found["items"] if h["state"] == "ready"]

    def processes(self) -> list[psutil.Process]:
        """All of it, but for the supervisor."""
        record = self.record
        return leftovers(self.settings.run, record.children if record else ())

    def replica(self, deployment: str) -> list[psutil.Process]:
        """The processes of a Serve deployment's replicas."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:headrace:{deployment}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def child(self, name: str) -> psutil.Process | None:
        record = self.record
        found = [c.process() for c in record.children if c.name == name] if record else []
        return found[0] if found else None

    def stop(self) -> int:
        """`headrace down`; the exit code of `headrace up`."""
        assert self.process is not None
        done = self.run("down", "--data-dir", self.settings.data_dir)
        assert done.returncode == 0, done.stderr
        return self.wait()

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A command of the command line, to its end."""
        return subprocess.run(
            self.command(*words),
            check=False,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def wait(self) -> int:
        assert self.process is not None
        code = self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def destroy(self) -> None:
        """Whatever the tests left of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()
        for process in self.processes():
            process.kill()
        shutil.rmtree(self.settings.run, ignore_errors=True)


@pytest.fixture(scope="session")
def up() -> Iterator[Up]:
    """A running platform. A test that stops or kills it starts it again."""
    with tempfile.TemporaryDirectory(prefix="hre-") as folder:
        up = Up(Path(folder))
        up.start()
        try:
            yield up
        finally:
            up.destroy()
