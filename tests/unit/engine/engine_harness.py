"""The engine in this process: its modules on the path (last, as in a sandbox), a server around a handler."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hr_asgi
import hr_batch
import hr_loader
import hr_native
import pytest
from hr_pool import ThreadPool
from hr_server import Server

TOKEN = "t0ken"
PATIENCE_S = 10.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A raw HTTP/1.1 client on one connection: what it sends is exactly what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            status = int(first.split()[1])
            if headers.get("transfer-encoding") == "chunked":
                chunks = [c async for c in self.chunks()]
                return Answer(status, headers, b"".join(chunks), chunks)
            size = headers.get("content-length")
            body = await self.reader.readexactly(int(size)) if size is not None else b""
            return Answer(status, headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def call(self, value: Any = None, **options: Any) -> Answer:
        self.send(request(value, **options))
        return await self.answer()

    async def ended(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


def request(
    value: Any = None, *, body: bytes | None = None, method: str = "POST", path: str = "/",
    token: str = TOKEN, headers: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    given = {"Host": "i", "X-Headrace-Token": token, "X-Headrace-Request-Id": "r-1", **(headers or {})}
    if body is None:
        body = b"" if value is None else json.dumps(value).encode()
        if value is not None:
            given.setdefault("Content-Type", "application/json")
    if body or method == "POST":
        given.setdefault("Content-Length", str(len(body)))
    lines = "".join(f"{k}: {v}\r\n" for k, v in given.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@dataclass
class Running:
    server: Server
    app: Any
    path: str
    clients: list[Client]

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_unix_connection(self.path))
        self.clients.append(client)
        return client

    async def call(self, value: Any = None, **options: Any) -> Answer:
        client = await self.connect()
        try:
            return await client.call(value, **options)
        finally:
            client.close()


async def until(condition: Callable[[], Any]) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await serve(handler, ...)``: a server of the engine around a function, class or ASGI app."""
    stack = contextlib.AsyncExitStack()
    number = 0

    async def start(
        handler: Any, *, kind: str = "function", concurrency: int = 1, batch: int = 0, wait_ms: float = 0.0,
        max_body: int = 1 << 20, timeout: float = 30.0,
    ) -> Running:  # fmt: skip
        nonlocal number
        number += 1
        loaded = hr_loader.make(handler, "class" if isinstance(handler, type) else kind, "app:handler")
        server = Server(TOKEN, concurrency * max(1, batch), max_body, timeout)
        pool = ThreadPool(concurrency)
        if kind == "asgi":
            app = hr_asgi.AsgiApp(server, loaded)
            await app.startup()
            stack.push_async_callback(app.shutdown)
        elif batch:
            app = hr_batch.BatchApp(
                server, loaded, pool, concurrency=concurrency, max_size=batch, wait_ms=wait_ms
            )
        else:
            app = hr_native.NativeApp(server, loaded, pool)
        server.app = app
        path = str(tmp_path / f"{number}.sock")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(128)
        await server.listen(sock)
        running = Running(server, app, path, [])

        async def stop() -> None:
            for client in running.clients:
                client.close()
                with contextlib.suppress(OSError):
                    await client.writer.wait_closed()
            server.cut_off()
            server._server.close()
            for connection in list(server.connections):
                connection.abort()
            await until(lambda: not server.connections)

        stack.push_async_callback(stop)
        return running

    async with stack:
        yield start
