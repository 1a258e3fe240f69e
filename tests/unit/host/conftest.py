"""A control that only records, and a runtime without processes: the host between them is the real one."""

from __future__ import annotations

import asyncio
import io
import os
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from headrace import wire
from headrace.config import Settings
from headrace.host.agent import HostAgent, HostConfig
from headrace.link import Link, listen
from headrace_runtimes.errors import AssignFailed, SandboxGone, WrongState
from headrace_runtimes.spec import (
    Assignment,
    Base,
    BaseStatus,
    Exit,
    LogLine,
    RuntimeSettings,
    Stats,
    Timings,
)

TOKEN = "t" * 43


async def until(condition: Callable[[], Any], deadline_s: float = 10.0) -> Any:
    """Poll until the condition holds; fail at the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, "condition not met in time"
        await asyncio.sleep(0.005)
    return value


class RecordingControl:
    """Listens like control; answers FetchBlob from ``blobs``."""

    def __init__(self, address: str, epoch: int = 1) -> None:
        self.address, self.epoch = address, epoch
        self.messages: list[wire.AnyMessage] = []
        self.blobs: dict[str, bytes] = {}
        self.fetches: list[wire.FetchBlob] = []
        self.chunk = 1000
        self.links: list[Link] = []
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        self._servers = await listen([self.address], token=TOKEN, epoch=self.epoch, on_link=self._on_link)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for link in self.links:
            link.close("control stops")

    def _on_link(self, link: Link, hello: wire.Hello) -> None:
        self.links.append(link)
        link.start(self._on_message)

    def _on_message(self, link: Link, msg: wire.AnyMessage) -> Any:
        if not isinstance(msg, wire.FetchBlob):
            self.messages.append(msg)
            return None
        self.fetches.append(msg)
        blob = self.blobs.get(msg.sha256)
        if blob is None:
            return wire.Error(slug="not-found", detail="no such blob")
        data = blob[msg.offset : msg.offset + self.chunk]
        return wire.BlobChunk(total=len(blob), offset=msg.offset, data=data)

    def send(self, msg: wire.AnyMessage) -> None:
        self.links[-1].send(msg)

    async def call(self, msg: wire.AnyMessage) -> wire.AnyMessage:
        return await self.links[-1].call(msg, 5.0)

    def hellos(self) -> list[wire.HostHello]:
        return [m for m in self.messages if isinstance(m, wire.HostHello)]

    def states(self, id: str) -> list[str]:
        return [r.state for r in self.reports(id)]

    def reports(self, id: str) -> list[wire.InstanceReport]:
        return [
            m.instance for m in self.messages if isinstance(m, wire.InstanceEvent) and m.instance.id == id
        ]


class FakeSandbox:
    """What the runtime contract calls a sandbox, without a process."""

    tier = "forked"

    def __init__(self, assignment: Assignment) -> None:
        self.id, self.endpoint, self.version = assignment.id, assignment.endpoint, assignment.version
        self.pid, self.address = 4242, f"unix:/nowhere/{assignment.id}"
        self.timings = Timings(boot=0.001, imported=0.002, load=0.003, total=0.006)
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.well: bool | tuple[bool, str] = True
        self.busy: int | None = 3
        self.hurried = 0
        self.state = "ready"
        self.freezer: asyncio.Event | None = None
        """When set, freezing takes until then."""

    def end(self, exit: Exit) -> Exit:
        if not self.exited.done():
            self.exited.set_result(exit)
        return self.exited.result()

    async def pause(self) -> None:
        if self.freezer is not None:
            await self.freezer.wait()
        if self.exited.done():
            raise SandboxGone(f"{self.id} has ended")
        self.state = "paused"

    async def resume(self) -> None:
        if self.state != "paused" or self.exited.done():
            raise WrongState(f"{self.id} is {self.state}")
        self.state = "ready"

    def hurry(self) -> None:
        self.hurried += 1

    async def stop(self, grace_s: float) -> Exit:
        return self.end(Exit("stopped"))

    async def stats(self) -> Stats:
        return Stats(rss=1000, cpu_s=0.1, in_flight=self.busy)

    async def health(self) -> bool | tuple[bool, str]:
        return self.well


class FakeRuntime:
    """Assigns at once, unless told to wait (``gate``) or to fail (``fail``)."""

    name: ClassVar[str] = "process"

    def __init__(self) -> None:
        self.assigned: list[tuple[Base, Assignment, float]] = []
        self.held: list[list[tuple[Base, int]]] = []
        self.living: dict[str, FakeSandbox] = {}
        self.gate: asyncio.Event | None = None
        self.fail: Exception | None = None
        self.cancelled = 0
        self.is_open = False
        self.found_out: dict[str, str] = {}
        self.on_base: Callable[[BaseStatus], None] = lambda status: None

    async def open(self, settings: RuntimeSettings, on_base: Callable[[BaseStatus], None]) -> None:
        self.settings, self.on_base, self.is_open = settings, on_base, True

    def capabilities(self) -> dict[str, str]:
        return {"isolation": "it is a fake", "limits": "it is a fake"} | self.found_out

    async def close(self) -> None:
        self.is_open = False

    async def hold(self, bases: Any) -> None:
        self.held.append(list(bases))

    async def claim(self, base: Base, assignment: Assignment) -> FakeSandbox:
        self.assigned.append((base, assignment, time.perf_counter()))
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail is not None:
            raise self.fail
        sandbox = self.living[assignment.id] = FakeSandbox(assignment)
        return sandbox

    def sandboxes(self) -> list[Any]:
        return list(self.living.values())

    def bases(self) -> list[BaseStatus]:
        return []

    async def logs(self, endpoint: str, **options: Any) -> tuple[list[LogLine], int]:
        return [LogLine(1.0, "i-1", endpoint, "stdout", f"{options['after']}")], options["after"] + 1


def make_zip(files: dict[str, bytes | str]) -> bytes:
    """A zip of these files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return sink.getvalue()


def load_failed() -> AssignFailed:
    return AssignFailed(
        "load failed", Exit("load-failed", "RuntimeError: no", "Traceback ...\nRuntimeError: no")
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # pytest's directories are too deep for a unix socket's path now and then.
    return Settings(data_dir=str(tmp_path / "data"), run_dir=str(tmp_path / "run"), port=0, control_port=0)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[RecordingControl]:
    control = RecordingControl(f"unix:{os.path.relpath(tmp_path)}/c.sock")
    await control.start()
    yield control
    await control.stop()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def agent(
    settings: Settings, control: RecordingControl, runtime: FakeRuntime
) -> AsyncIterator[HostAgent]:
    agent = HostAgent(
        HostConfig(
            settings=settings,
            control_address=control.address,
            token=TOKEN,
            node="n1",
            labels={"zone": "a"},
            resources=wire.Resources(cpu=2, memory=1 << 30, gpu={"L4": 1, "H100": 2}),
            runtimes=("process",),
            make_runtime=lambda name: runtime,
        )
    )
    await agent.start()
    await agent.wait_connected(5)
    await until(control.hellos)
    yield agent
    await agent.stop(0.1)
