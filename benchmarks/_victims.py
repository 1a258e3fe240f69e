"""Finds the processes of a platform by what they do, and strikes them with real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
from headrace.cluster.identity import read_record
from headrace.cluster.sweep import leftovers

from benchmarks._load import request
from benchmarks._storm import Strike

NODE = {"provider": "local", "cpu": 1, "memory": "512MiB"}


class Victims:
    """The processes of the platform that runs on ``data_dir``."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data, self.port = data_dir, port
        self._resumed: list[asyncio.Task[None]] = []

    async def strike(self, one: Strike) -> str:
        """Do it; says what was done."""
        kind = one.kind.removeprefix("stop-")
        found = await asyncio.to_thread(self._find, kind)
        if not found:
            return "there is none now"
        victim = found[int(one.pick * len(found))]
        if one.kind.startswith("stop-"):
            return self._pause(victim, one.stop_s)
        with contextlib.suppress(psutil.Error):
            victim.kill()
        if kind == "node":
            await asyncio.to_thread(self._replace_node)
        return f"SIGKILL {victim.pid} of {len(found)}"

    def _pause(self, victim: psutil.Process, seconds: float) -> str:
        async def resume() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                with contextlib.suppress(psutil.Error):
                    victim.resume()

        with contextlib.suppress(psutil.Error):
            victim.send_signal(signal.SIGSTOP)
        self._resumed.append(asyncio.create_task(resume()))
        return f"SIGSTOP {victim.pid} for {seconds} s"

    async def settle(self) -> None:
        """Until all stopped processes go on."""
        await asyncio.gather(*self._resumed)

    def processes(self) -> list[psutil.Process]:
        """All of the platform, but for the supervisor."""
        record = read_record(self.data)
        return [] if record is None else leftovers(Path(record.run_dir), record.children)

    def kill_all(self) -> int:
        """SIGKILL to the supervisor first, then to all the rest; how many that were."""
        record = read_record(self.data)
        if record is None:
            return 0
        found = self.processes()
        supervisor = record.supervisor.process()
        for process in [supervisor, *found] if supervisor else found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return len(found) + 1

    def _find(self, kind: str) -> list[psutil.Process]:
        if kind == "instance":
            items = (self.api("GET", "/instances") or {}).get("items", [])
            pids = [one["pid"] for one in items if one.get("pid") and one.get("state") == "ready"]
            return _living(pids)
        if kind == "gateway":
            record = read_record(self.data)
            children = record.children if record else ()
            return [p for c in children if c.name.startswith("gateway") and (p := c.process())]
        sign = {
            "host": "ServeReplica:headrace:Host",
            "control": "ServeReplica:headrace:Control",
            "node": "raylet/raylet",
        }[kind]
        found = []
        nodes = [n["id"] for n in (self.api("GET", "/nodes") or {}).get("items", []) if n["id"] != "head"]
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if sign in line and (kind != "node" or any(node in line for node in nodes)):
                    found.append(process)
        return sorted(found, key=lambda p: p.pid)

    def _replace_node(self) -> None:
        """Another node for the one that was killed."""
        self.api("POST", "/nodes", NODE)

    def add_node(self, deadline_s: float = 60.0) -> None:
        """A second node, ready."""
        if self.api("POST", "/nodes", NODE) is None:
            raise RuntimeError("a second node was refused")
        end = time.monotonic() + deadline_s
        while self._hosts() < 2:
            if time.monotonic() > end:
                raise TimeoutError("no second node")
            time.sleep(0.1)

    def _hosts(self) -> int:
        items = (self.api("GET", "/hosts") or {}).get("items", [])
        return sum(one["state"] == "ready" for one in items)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the management API; None when it is refused or nobody answers."""
        key = (self.data / "admin.key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = request(self.port, method, f"/api/v1{path}", data, headers, 15.0)
        except OSError:
            return None
        return json.loads(answer.body) if answer.status < 300 and answer.body else None


def _living(pids: list[int]) -> list[psutil.Process]:
    found = []
    for pid in sorted(pids):
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found
