"""Questions to an instance: over its own address, of its runtime, and what a bad answer means."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from headrace import wire
from headrace.host.ask import ask
from headrace_runtimes.errors import NotSupported, SandboxGone
from headrace_runtimes.spec import Ran

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Sandbox:
    """As much of one as is asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ran: Ran | Exception = Ran(0, b"", b"")
        self.well: Any = (True, "")
        self.argv: tuple[str, ...] = ()

    async def exec(self, argv: Any, **_: Any) -> Ran:
        self.argv = tuple(argv)
        if isinstance(self.ran, Exception):
            raise self.ran
        return self.ran

    async def health(self) -> Any:
        if isinstance(self.well, Exception):
            raise self.well
        return self.well


class Site:
    """A server on a unix socket that answers with ``data`` (None: nothing) and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.asked = path, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""
        self.sandbox = Sandbox(f"unix:{os.path.relpath(path)}")

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked = await reader.readuntil(b"\r\n\r\n")
            if self.data:
                writer.write(self.data)
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path / "i.sock")
    server = await asyncio.start_unix_server(site.handle, os.path.relpath(site.path))
    yield site
    server.close()
    await server.wait_closed()


def http(**more: Any) -> wire.Probe:
    return wire.Probe(kind="http", path="/up?x=1", **more)


async def test_a_path_is_asked_with_the_token_and_no_slot(site: Site) -> None:
    assert (await ask(site.sandbox, http(), "secret")).ok  # type: ignore[arg-type]
    assert site.asked.startswith(b"GET /up?x=1 HTTP/1.1\r\n")
    assert b"X-Headrace-Token: secret\r\n" in site.asked
    assert b"X-Headrace-Probe: 1\r\n" in site.asked


@pytest.mark.parametrize(
    ("data", "ok", "detail"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", True, ""),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", True, ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "GET /up?x=1: status 404"),
        (b"HTTP/1.1 503 Busy\r\nX-Headrace-Refused: full\r\n\r\n", True, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\npart", True, ""),
        (b"SSH-2.0-what\r\n", False, "GET /up?x=1: the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: y", False, "GET /up?x=1: the connection ended before an answer"),
    ],
)
async def test_what_an_answer_means(site: Site, data: bytes, ok: bool, detail: str) -> None:
    site.data = data
    answer = await ask(site.sandbox, http(), "secret")  # type: ignore[arg-type]
    assert (answer.ok, answer.detail, answer.silent) == (ok, detail, False)


async def test_who_takes_a_connection_and_says_nothing_is_silent(site: Site) -> None:
    site.data = b""
    answer = await ask(site.sandbox, http(timeout_s=0.1), "secret")  # type: ignore[arg-type]
    assert (answer.ok, answer.silent) == (False, True)
    assert "within 0.1 s" in answer.detail


async def test_a_connection_is_enough_for_tcp(site: Site) -> None:
    assert (await ask(site.sandbox, wire.Probe(kind="tcp"), "")).ok  # type: ignore[arg-type]
    site.sandbox.address = f"unix:{site.path}.none"
    answer = await ask(site.sandbox, wire.Probe(kind="tcp"), "")  # type: ignore[arg-type]
    assert (answer.ok, answer.silent) == (False, False)


async def test_an_address_of_ip() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sandbox = Sandbox(f"tcp:127.0.0.1:{port}")
    assert (await ask(sandbox, wire.Probe(kind="tcp"), "")).ok  # type: ignore[arg-type]
    server.close()
    await server.wait_closed()
    assert not (await ask(sandbox, wire.Probe(kind="tcp"), "")).ok  # type: ignore[arg-type]
    for nonsense in ("", "tcp:host", "unix:"):
        answer = await ask(Sandbox(nonsense), wire.Probe(kind="tcp"), "")  # type: ignore[arg-type]
        assert not answer.ok


async def test_a_command_by_its_exit_code() -> None:
    sandbox, probe = Sandbox(""), wire.Probe(kind="exec", argv=("test", "-e", "/x"))
    assert (await ask(sandbox, probe, "")).ok  # type: ignore[arg-type]
    assert sandbox.argv == probe.argv
    sandbox.ran = Ran(3, b"", b"no such thing\n")
    assert (await ask(sandbox, probe, "")).detail == "exit code 3: no such thing"  # type: ignore[arg-type]
    sandbox.ran = NotSupported("no commands here")
    assert (await ask(sandbox, probe, "")).detail == "no commands here"  # type: ignore[arg-type]
    sandbox.ran = TimeoutError()
    assert (await ask(sandbox, probe, "")).silent  # type: ignore[arg-type]


async def test_the_users_own_check() -> None:
    sandbox = Sandbox("")
    assert (await ask(sandbox, wire.Probe(), "")).ok  # type: ignore[arg-type]
    sandbox.well = (False, "model is gone")
    assert (await ask(sandbox, wire.Probe(), "")).detail == "model is gone"  # type: ignore[arg-type]
    # Its end is told by itself.
    sandbox.well = SandboxGone("it has ended")
    assert (await ask(sandbox, wire.Probe(), "")).ok  # type: ignore[arg-type]
