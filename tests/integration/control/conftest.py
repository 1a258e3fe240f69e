"""A real control with scripted gateways and hosts, over real links."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from headrace import link, wire
from headrace.config import Settings
from headrace.control.server import Control
from headrace.sdk.spec import EndpointSpec, Scaling

TOKEN = "the-cluster-token"
BUNDLE = b"not really a zip"
SHA = hashlib.sha256(BUNDLE).hexdigest()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.005)


class FakeHost:
    """Does what control says; ``script`` decides the fate of each start."""

    def __init__(self, control: Control, node: str, cpu: float, memory: int, gpu: dict[str, int]) -> None:
        self.control = control
        self.node = node
        self.id = f"{node}-{secrets.token_hex(3)}"
        self.resources = wire.Resources(cpu=cpu, memory=memory, gpu=gpu)
        self.instances: dict[str, wire.InstanceReport] = {}
        self.started: list[wire.StartInstance] = []
        self.stopped: list[wire.StopInstance] = []
        self.warm: list[wire.SetWarm] = []
        self.log: list[tuple[str, str]] = []
        self.script: Callable[[wire.StartInstance], wire.Death | str | None] = lambda start: None
        self.base_state = "ready"
        self.runtimes: tuple[str, ...] = ("process",)
        self.registry: dict[str, dict[str, str]] = {}
        """Reference -> members of the answer."""
        self.about: dict[str, Any] = {}
        """Further members of its hello."""
        self.refused: dict[str, str] = {}
        self.lines: list[wire.LogLine] = []
        self.in_flight: dict[str, int] = {}
        self.hold_stops = False
        self.hold_turns = False
        """Pauses and resumes are noted only."""
        self.link: link.Link | None = None
        self.beat: asyncio.Task[None] | None = None

    async def connect(self) -> FakeHost:
        self.link = await link.connect(self.control.address, role="host", id=self.id, token=TOKEN)
        self.link.start(self.handle)
        self.link.send(
            wire.HostHello(
                host=self.id,
                node=self.node,
                resources=self.resources,
                runtimes=self.runtimes,
                instances=list(self.instances.values()),
                **self.about,
            )
        )
        self.beat = asyncio.create_task(self.beats(self.link))
        return self

    async def beats(self, to: link.Link) -> None:
        while to.is_open:
            to.send(wire.Heartbeat(at=time.time(), in_flight=self.in_flight))
            await asyncio.sleep(0.2)

    def handle(self, _: link.Link, message: wire.AnyMessage) -> wire.AnyMessage | None:
        match message:
            case wire.StartInstance():
                self.started.append(message)
                self.log.append(("start", message.id))
                fate = self.script(message)
                if fate == "hang":
                    self.report(message, "starting")
                elif isinstance(fate, wire.Death):
                    self.report(message, "failed", fate)
                else:
                    self.report(message, "ready")
            case wire.StopInstance():
                self.stopped.append(message)
                self.log.append(("stop", message.id))
                if not self.hold_stops:
                    self.end(message.id)
            case wire.InstanceLeft():
                self.log.append(("left", message.id))
            case wire.PauseInstance():
                self.log.append(("pause", message.id))
                if not self.hold_turns:
                    self.turn(message.id, "paused")
            case wire.ResumeInstance():
                self.log.append(("resume", message.id))
                if not self.hold_turns:
                    self.turn(message.id, "ready")
            case wire.SetWarm():
                self.warm.append(message)
                self.log.append(("warm", str(len(message.bases))))
                for base, spares in message.bases:
                    report = wire.WarmReport(
                        base=base, pid=1, state=self.base_state, spares=spares, refused=self.refused
                    )
                    self.send(wire.WarmEvent(warm=report))
            case wire.ReadLogs():
                lines = self.lines[message.after : message.after + message.limit]
                return wire.LogPage(lines=lines, next=message.after + len(lines))
            case wire.FindImage():
                self.log.append(("find", message.reference))
                return wire.FoundImage(**self.registry.get(message.reference, {"why": "404: no such image"}))
            case wire.DrainHost():
                for id in list(self.instances):
                    self.end(id)
        return None

    def report(
        self, start: wire.StartInstance, state: wire.InstanceState, death: wire.Death | None = None
    ) -> None:
        report = wire.InstanceReport(
            id=start.id, endpoint=start.spec.endpoint, version=start.spec.version, state=state, pid=7,
            address=f"unix:/run/{start.id}", token=f"token-{start.id}", concurrency=start.spec.concurrency,
            started_at=time.time(), gpu=start.spec.gpu, death=death,
        )  # fmt: skip
        if state in ("stopped", "failed"):
            self.instances.pop(start.id, None)
        else:
            self.instances[start.id] = report
        self.send(wire.InstanceEvent(instance=report))

    def ready(self, id: str) -> None:
        self.report(next(s for s in self.started if s.id == id), "ready")

    def turn(self, id: str, state: wire.InstanceState) -> None:
        if id in self.instances:
            self.instances[id] = msgspec.structs.replace(self.instances[id], state=state)
            self.send(wire.InstanceEvent(instance=self.instances[id]))

    def end(self, id: str, death: wire.Death | None = None) -> None:
        report = self.instances.pop(id, None)
        if report is not None:
            death = death or wire.Death(reason="stopped")
            state = "stopped" if death.reason == "stopped" else "failed"
            self.send(wire.InstanceEvent(instance=msgspec.structs.replace(report, state=state, death=death)))

    def send(self, message: wire.AnyMessage) -> None:
        if self.link is not None and self.link.is_open:
            self.link.send(message)

    def silence(self) -> None:
        """No heartbeats any more, the link stays."""
        assert self.beat is not None
        self.beat.cancel()

    def cut(self) -> None:
        """The link ends."""
        assert self.link is not None
        self.silence()
        self.link.close("cut")

    async def close(self) -> None:
        if self.beat is not None:
            self.beat.cancel()
            await asyncio.gather(self.beat, return_exceptions=True)
        if self.link is not None:
            self.link.close()


class FakeGateway:
    """Keeps the routing table as a gateway would, and asks the management API."""

    def __init__(self, control: Control, id: str) -> None:
        self.control = control
        self.id = id
        self.snapshots: list[wire.Snapshot] = []
        self.deltas: list[wire.RouteDelta] = []
        self.endpoints: dict[str, wire.EndpointRoute] = {}
        self.instances: dict[str, wire.InstanceRoute] = {}
        self.keys: list[wire.KeyRecord] = []
        self.dead: list[str] = []
        self.reasons: dict[str, str] = {}
        self.removed: list[str] = []
        self.asked: list[wire.AskDemand] = []
        self.news: list[wire.EndpointDemand] = []
        """What it has not reported yet: told when control asks."""
        self.late: dict[str, wire.EndpointDemand] = {}
        """The same, by an instance: not before it was told to leave it."""
        self.link: link.Link | None = None

    async def connect(self) -> FakeGateway:
        self.link = await link.connect(self.control.address, role="gateway", id=self.id, token=TOKEN)
        self.link.start(self.handle)
        return self

    def handle(self, from_: link.Link, message: wire.AnyMessage) -> wire.AnyMessage | None:
        if isinstance(message, wire.AskDemand):
            self.asked.append(message)
            news, self.news = self.news, []
            from_.send(wire.Demand(items=news))
            return wire.Demand(items=[])
        if isinstance(message, wire.Snapshot):
            self.snapshots.append(message)
            self.keys = message.keys
            self.endpoints = {e.endpoint: e for e in message.endpoints}
            self.instances = {i.id: i for i in message.instances}
        elif isinstance(message, wire.RouteDelta):
            assert self.snapshots, "a delta came before the snapshot"
            self.deltas.append(message)
            self.endpoints |= {e.endpoint: e for e in message.endpoints}
            self.instances |= {i.id: i for i in message.instances}
            for name in message.removed_endpoints:
                self.endpoints.pop(name, None)
            for id in [*message.removed_instances, *message.dead_instances]:
                self.instances.pop(id, None)
                if id in self.late:
                    self.news.append(self.late.pop(id))
            self.removed += message.removed_instances
            self.dead += message.dead_instances
            self.reasons |= message.dead_reasons
        return None

    def of(self, name: str) -> list[wire.InstanceRoute]:
        return [i for i in self.instances.values() if i.endpoint == f"default/{name}"]

    def state(self, name: str) -> str | None:
        route = self.endpoints.get(f"default/{name}")
        return route.state if route else None

    def wake(self, name: str, queued: int = 1, version: int | None = None) -> None:
        assert self.link is not None
        self.link.send(wire.Wake(endpoint=f"default/{name}", queued=queued, version=version))

    def demand(self, name: str, **members: Any) -> None:
        assert self.link is not None
        self.link.send(wire.Demand(items=[wire.EndpointDemand(endpoint=f"default/{name}", **members)]))

    async def api(self, method: str, path: str, body: Any = b"", **query: str) -> tuple[int, Any]:
        assert self.link is not None
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        call = wire.ApiCall(
            method=method, path=path, body=data, query=query, key_id="admin", scopes=("admin",)
        )
        answer = await self.link.call(call, 60.0)
        assert isinstance(answer, wire.ApiReply), answer
        return answer.status, msgspec.json.decode(answer.body) if answer.body else None

    async def deploy(self, *specs: EndpointSpec, verify: bool = True) -> dict[str, Any]:
        body = {"specs": msgspec.to_builtins(specs), "verify": verify}
        status, doc = await self.api("POST", "/deployments", body)
        assert status == 202, doc
        status, doc = await self.api("GET", f"/deployments/{doc['id']}", wait="30")
        assert status == 200, doc
        return doc

    async def close(self) -> None:
        if self.link is not None:
            self.link.close()


class Platform:
    """Everything of one test."""

    sha = SHA
    bundle = BUNDLE
    until = staticmethod(until)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.control = self.new_control()
        self.parts: list[FakeHost | FakeGateway] = []
        self.gateway: FakeGateway

    def new_control(self) -> Control:
        return Control(self.settings, token=TOKEN, admin_key_hash=hashlib.sha256(b"key").hexdigest())

    @property
    def world(self) -> Any:
        return self.control.parts.world

    async def start(self) -> None:
        await self.control.start()
        self.gateway = await self.new_gateway("g1")
        assert (await self.gateway.api("PUT", f"/bundles/{SHA}", BUNDLE))[0] in (200, 201)

    async def restart(self) -> None:
        """Control ends as by SIGKILL and starts again; the others connect again when the test says so."""
        await self.control.abandon()
        self.control = self.new_control()
        for part in self.parts:
            await part.close()
            part.control = self.control
        await self.control.start()

    async def new_gateway(self, id: str) -> FakeGateway:
        gateway = await FakeGateway(self.control, id).connect()
        self.parts.append(gateway)
        await until(lambda: gateway.snapshots)
        return gateway

    async def new_host(
        self,
        node: str = "n1",
        *,
        cpu: float = 4.0,
        memory: int = 8 << 30,
        gpu: dict[str, int] | None = None,
        runtimes: tuple[str, ...] = ("process",),
        **about: Any,
    ) -> FakeHost:
        host = FakeHost(self.control, node, cpu, memory, gpu or {})
        host.about = about
        host.runtimes = runtimes
        await host.connect()
        self.parts.append(host)
        await until(lambda: host.id in self.world.hosts)
        return host

    def spec(self, name: str = "hello", **options: Any) -> EndpointSpec:
        options.setdefault("scaling", Scaling(idle_timeout=30.0, max=4))
        values: dict[str, Any] = {"entry": "app:hello", "handler": "function", "bundle": SHA} | options
        return EndpointSpec(name=name, **values)

    async def stop(self) -> None:
        for part in self.parts:
            await part.close()
        await self.control.stop()


@pytest.fixture
async def platform(tmp_path: Any) -> AsyncIterator[Platform]:
    settings = Settings(data_dir=str(tmp_path / "d"), run_dir=str(tmp_path / "r"), control_port=0)
    (tmp_path / "d").mkdir(mode=0o700)
    made = Platform(settings)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
