"""Starts and stops what is measured: our platform on free ports, in a directory of its own, and the peers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks._load import Answer, free_ports, request, root

LIMIT_S = 840
UP_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0
SPARES = 2
"""What the setting ``spares`` is when nobody says otherwise."""


def bounded(limit_s: int = LIMIT_S) -> None:
    """End this process in order, with all that it started, after ``limit_s`` or on SIGTERM."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(f"ended by {signal.Signals(number).name} (limit {limit_s} s)")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)


@dataclass(frozen=True)
class Ours:
    """A running platform."""

    port: int
    pid: int
    data_dir: Path
    key: str
    ready_s: float

    @property
    def auth(self) -> dict[str, str]:
        """The header that opens it."""
        return {"Authorization": f"Bearer {self.key}"}

    def api(self, method: str, path: str, body: Any = None, timeout: float = 120.0) -> Any:
        """One call of the management API; raises when it is refused."""
        data = None if body is None else json.dumps(body).encode()
        headers = {**self.auth, "Content-Type": "application/json"}
        answer = request(self.port, method, f"/api/v1{path}", data, headers, timeout)
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body[:500]!r}")
        return json.loads(answer.body) if answer.body else None

    def call(self, name: str, body: bytes, content_type: str = "application/json") -> Answer:
        """Call an endpoint."""
        return request(
            self.port, "POST", f"/e/{name}", body, {**self.auth, "Content-Type": content_type}, timeout=120.0
        )

    def deploy(self, path: Path) -> None:
        """Deploy a file with the command that users have."""
        run_cli("deploy", str(path), data_dir=self.data_dir, port=self.port)

    def to_zero(self, name: str, deadline_s: float = 30.0) -> None:
        """Release all instances of an endpoint and wait until they are gone."""
        asked = 0.0

        def gone() -> bool:
            # One that is just being started is not among those that the last call released.
            nonlocal asked
            if time.monotonic() - asked > 0.25:
                self.api("POST", f"/endpoints/{name}/scale", {"to": 0})
                asked = time.monotonic()
            return not self.living(name)

        wait_until(gone, deadline_s, f"{name} at zero")

    def living(self, name: str) -> list[Any]:
        """The endpoint's instances that have not ended."""
        found = self.api("GET", f"/endpoints/{name}").get("instances") or []
        return [one for one in found if one.get("state") not in ("stopped", "failed")]


def pool_full(hosts: Sequence[Mapping[str, Any]], runtime: str, spares: int = SPARES) -> bool:
    """Whether all spares of a runtime wait, as ``GET /hosts`` tells it."""
    bases = [base for host in hosts for base in host["warm"] if base["runtime"] == runtime]
    return bool(bases) and all(b["state"] == "ready" and b["spares"] >= spares for b in bases)


def wait_until(condition: Callable[[], Any], deadline_s: float, what: str, period_s: float = 0.02) -> None:
    """Poll until true. Raises `TimeoutError`."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s} s")
        time.sleep(period_s)


def run_cli(*arguments: str, data_dir: Path, port: int) -> str:
    """Run the command; its standard output."""
    environ = {
        **os.environ,
        "HEADRACE_DATA_DIR": str(data_dir),
        "HEADRACE_URL": f"http://127.0.0.1:{port}",
        "PYTHONPATH": "",
    }
    environ.pop("HEADRACE_API_KEY", None)
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"headrace {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


@contextmanager
def ours(environ: Mapping[str, str] | None = None, **settings: Any) -> Iterator[Ours]:
    """Run ``headrace up`` on free ports; stopped, with its directory removed, at the end.

    ``environ``: variables on top of this process's own.
    """
    home = Path(tempfile.mkdtemp(prefix="hr-bench-"))
    port, control, ray = free_ports(3)
    options = {"data-dir": home / "data", "port": port, "control-port": control, "ray-port": ray, **settings}
    command = [sys.executable, "-m", "headrace.cli", "up", "--json"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    log = (home / "up.log").open("wb")
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=home, start_new_session=True,
        env={**os.environ, **(environ or {})},
    )  # fmt: skip
    try:
        wait_until(
            lambda: _answers(port, process, home / "up.log"), UP_DEADLINE_S, "headrace up", period_s=0.1
        )
        key = (home / "data" / "admin.key").read_text().strip()
        yield Ours(port, process.pid, home / "data", key, round(time.monotonic() - started, 2))
    finally:
        end(process)
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"headrace up ended with {process.returncode}: {log.read_text()[-3000:]}")
    try:
        return request(port, "GET", "/readyz", timeout=2.0).status == 200
    except OSError:
        return False


def end(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and after a while SIGKILL."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


class Peer:
    """A peer's process: told by lines on its standard input, heard by ``ready`` on its standard output."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str], port: int) -> None:
        self.process = process
        self.port = port
        self._log = log

    def wait_ready(self) -> None:
        """Until it has printed ``ready``; its end is an error."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        self._log.seek(0)
        raise RuntimeError(f"the peer ended: {self._log.read()[-3000:]}")

    def fresh(self) -> None:
        """Have it deployed anew."""
        assert self.process.stdin is not None
        self.process.stdin.write("fresh\n")
        self.process.stdin.flush()
        self.wait_ready()


@contextmanager
def peer(script: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Peer]:
    """Run a peer of ``benchmarks/peers`` on a free port; ended by the end of its standard input."""
    (port,) = free_ports(1)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(root() / "benchmarks" / "peers" / script), "--port", str(port), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        running = Peer(process, log, port)
        try:
            running.wait_ready()
            yield running
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                end(process)


@contextmanager
def ray_serve(mode: str, app: str = "noop") -> Iterator[Peer]:
    """Ray Serve with a Ray and a directory of its own. ``mode``: up, default or tuned."""
    home = tempfile.mkdtemp(prefix="hr-ray-")
    try:
        with peer("ray_serve.py", "--temp-dir", home, "--mode", mode, "--app", app) as running:
            yield running
    finally:
        shutil.rmtree(home, ignore_errors=True)
