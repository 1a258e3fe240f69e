"""A gateway between a scripted control and small real instances, all on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from headrace import link, wire
from headrace.config import Settings
from headrace.gateway.server import Gateway

TOKEN = "the-cluster-token-of-the-tests"
KEY = "hr-key"
LIMIT_S = 10.0


class Message:
    """A parsed HTTP message."""

    def __init__(
        self, first: bytes, headers: list[tuple[str, str]], body: bytes, complete: bool = True
    ) -> None:
        self.first = first.decode("latin-1")
        self.headers = headers
        self.body = body
        self.complete = complete

    @property
    def status(self) -> int:
        return int(self.first.split()[1])

    @property
    def path(self) -> str:
        return self.first.split()[1]

    @property
    def method(self) -> str:
        return self.first.split()[0]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.headers if n.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)


async def read_head(reader: asyncio.StreamReader) -> tuple[bytes, list[tuple[str, str]]]:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw[:-4].split(b"\r\n")
    pairs = [line.decode("latin-1").split(":", 1) for line in lines]
    return first, [(n, v.strip()) for n, v in pairs]


async def read_chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
    data = await reader.readexactly(size)
    await reader.readexactly(2)
    return data


async def read_message(reader: asyncio.StreamReader, *, head_only: bool = False) -> Message:
    first, headers = await read_head(reader)
    message = Message(first, headers, b"")
    length, chunked = message.get("content-length"), message.get("transfer-encoding")
    status = first.split()[1] if first.startswith(b"HTTP/") else b""
    if head_only or status in (b"204", b"304", b"100", b"101"):
        return message
    try:
        if chunked:
            while chunk := await read_chunk(reader):
                message.body += chunk
        elif length is not None:
            message.body = await reader.readexactly(int(length))
        elif status:
            message.body = await reader.read()
    except asyncio.IncompleteReadError as error:
        message.body += error.partial
        message.complete = False
    return message


class Exchange:
    """One request as an instance sees it."""

    def __init__(self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.reader = reader
        self.writer = writer

    async def answer(
        self,
        body: bytes = b'{"ok":true}',
        *,
        status: int = 200,
        media: str = "application/json",
        extra: str = "",
    ) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self.writer.write(head.encode() + (b"" if self.request.method == "HEAD" else body))
        await self.writer.drain()

    async def begin_chunked(self, media: str = "application/x-ndjson") -> None:
        self.writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]


async def ok(exchange: Exchange) -> None:
    await exchange.answer()


class Instance:
    """A real HTTP server on a unix socket that does what ``behaviour`` says."""

    def __init__(self, path: Path, id: str, behaviour: Behaviour) -> None:
        self.path, self.id, self.behaviour = path, id, behaviour
        self.requests: list[Message] = []
        self.in_flight = self.most = self.cancelled = self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                request = await read_message(reader)
                self.requests.append(request)
                self.in_flight += 1
                self.most = max(self.most, self.in_flight)
                work = asyncio.ensure_future(self.behaviour(Exchange(request, reader, writer)))
                lost = asyncio.ensure_future(_until_closed(reader, writer))
                try:
                    await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        self.cancelled += 1
                finally:
                    self.in_flight -= 1
                    for one in (work, lost):
                        one.cancel()
                    await asyncio.gather(work, lost, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not (writer.transport.is_closing() or reader.at_eof()):
        await asyncio.sleep(0.002)


class Control:
    """Listens like control, remembers what it hears, says what it is told to."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.epoch = 1
        self.links: list[link.Link] = []
        self.heard: list[wire.AnyMessage] = []
        self.endpoints: dict[str, wire.EndpointRoute] = {}
        self.instances: dict[str, wire.InstanceRoute] = {}
        self.keys = [wire.KeyRecord(id="k", hash=hashlib.sha256(KEY.encode()).hexdigest())]
        self.on_call: Callable[[wire.ApiCall], Awaitable[wire.AnyMessage]] | None = None
        self.snapshots = True

    async def start(self) -> None:
        self._servers = await link.listen(
            [self.address], token=TOKEN, epoch=self.epoch, on_link=self._on_link
        )

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for one in self.links:
            one.close("control stops")
        self.links.clear()
        await asyncio.sleep(0)

    def _on_link(self, one: link.Link, hello: wire.Hello) -> None:
        self.links.append(one)
        one.start(self._handle)
        if self.snapshots:
            self.send(self.snapshot())

    def _handle(self, one: link.Link, msg: wire.AnyMessage) -> Any:
        self.heard.append(msg)
        if isinstance(msg, wire.ApiCall) and self.on_call is not None:
            return self.on_call(msg)
        return None

    def snapshot(self) -> wire.Snapshot:
        return wire.Snapshot(
            epoch=self.epoch,
            endpoints=list(self.endpoints.values()),
            instances=list(self.instances.values()),
            keys=self.keys,
        )

    def send(self, msg: wire.AnyMessage) -> None:
        for one in self.links:
            if one.is_open:
                one.send(msg)

    def of(self, kind: type) -> list[Any]:
        return [m for m in self.heard if isinstance(m, kind)]


class Client:
    """One raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, *, head_only: bool = False) -> Message:
        async with asyncio.timeout(LIMIT_S):
            return await read_message(self.reader, head_only=head_only)

    async def ended(self) -> bool:
        """Whether the gateway has closed (waits for it)."""
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.transport.abort()


class Rig:
    """All of it."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.control = Control(f"unix:{dir}/c.sock")
        self.instances: list[Instance] = []
        self.clients: list[Client] = []
        self.gateways: list[Gateway] = []

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    async def up(self, **settings: Any) -> Gateway:
        if not self.control.links and not hasattr(self.control, "_servers"):
            await self.control.start()
        settings = {
            "port": 0,
            "data_dir": str(self.dir),
            "run_dir": str(self.dir),
            "drain_grace": 2.0,
        } | settings
        gateway = Gateway(Settings(**settings), token=TOKEN, control_address=self.control.address)
        await gateway.start()
        self.gateways.append(gateway)
        await self.until(
            lambda: gateway.not_ready() == "" if self.control.snapshots else gateway._control.is_up
        )
        return gateway

    def endpoint(self, name: str = "echo", **route: Any) -> wire.EndpointRoute:
        values = {"endpoint": f"default/{name}", "version": 1, "state": "ready"} | route
        made = wire.EndpointRoute(**values)
        self.control.endpoints[made.endpoint] = made
        self.control.send(wire.RouteDelta(epoch=self.control.epoch, endpoints=[made]))
        return made

    async def instance(
        self,
        behaviour: Behaviour = ok,
        name: str = "echo",
        *,
        announce: bool = True,
        listen: bool = True,
        **route: Any,
    ) -> Instance:
        id = f"i{len(self.instances)}"
        made = Instance(self.dir / f"{id}.sock", id, behaviour)
        if listen:
            await made.start()
            self.instances.append(made)
        if announce:
            self.announce(made, name, **route)
        return made

    def announce(self, instance: Instance, name: str = "echo", **route: Any) -> None:
        values = {
            "id": instance.id,
            "endpoint": f"default/{name}",
            "version": 1,
            "host": "h1",
            "address": f"unix:{instance.path}",
            "token": f"token-{instance.id}",
        } | route
        made = wire.InstanceRoute(**values)
        self.control.instances[made.id] = made
        self.control.send(wire.RouteDelta(epoch=self.control.epoch, instances=[made]))

    def dead(self, *instances: Instance) -> None:
        for one in instances:
            self.control.instances.pop(one.id, None)
        self.control.send(wire.RouteDelta(epoch=self.control.epoch, dead_instances=[i.id for i in instances]))

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.gateway.port))
        self.clients.append(client)
        return client

    async def call(
        self,
        path: str = "/e/echo",
        body: bytes = b"{}",
        *,
        method: str = "POST",
        key: str | None = KEY,
        extra: str = "",
        host: str = "gw",
    ) -> Message:
        client = await self.connect()
        try:
            await client.send(self.request(path, body, method=method, key=key, extra=extra, host=host))
            return await client.read(head_only=method == "HEAD")
        finally:
            client.close()

    @staticmethod
    def request(
        path: str = "/e/echo",
        body: bytes = b"{}",
        *,
        method: str = "POST",
        key: str | None = KEY,
        extra: str = "",
        host: str = "gw",
    ) -> bytes:
        lines = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}"
        if key is not None:
            lines += f"Authorization: Bearer {key}\r\n"
        if method not in ("GET", "HEAD"):
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return lines.encode() + b"\r\n" + (body if method not in ("GET", "HEAD") else b"")

    @staticmethod
    async def until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def known(self, check: Callable[[Any], Any]) -> None:
        """Wait until the gateway's table satisfies ``check``."""
        await self.until(lambda: check(self.gateway.table))

    async def quiet(self) -> None:
        """Nothing in flight, nothing queued, no byte held: nothing leaked."""
        await self.until(lambda: self.gateway.dispatcher.in_use() == (0, 0) and self.gateway._held == 0)

    async def down(self) -> None:
        for client in self.clients:
            client.close()
        for gateway in self.gateways:
            await gateway.stop(0.5)
            assert not gateway._clients
            assert gateway._held == 0
        for one in self.instances:
            await one.stop()
        await self.control.stop()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], Any]] | None:
    """The gateway's own loop here; the tests of the local cluster run it on asyncio's."""
    if Path(__file__).parent in item.path.parents:
        return {"uvloop": uvloop.new_event_loop}
    return None


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    # A short path: a unix socket's ends at 107 bytes.
    dir = Path(tempfile.mkdtemp(prefix="gw-"))
    made = Rig(dir)
    try:
        yield made
    finally:
        await made.down()
        shutil.rmtree(dir, ignore_errors=True)
