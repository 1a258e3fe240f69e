"""Asks an instance one question: its `health()`, a path, a connection, or a command beside it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect

import httptools
from headrace_runtimes.base import Sandbox
from headrace_runtimes.errors import RuntimeFailure, SandboxGone

from headrace import wire
from headrace.host.probes import Answer

MAX_ANSWER = 256 << 10
"""Bytes read of an answer at most: only its status counts."""
TAIL = 200
KILL_S = 5.0
"""A command that is late is killed by the runtime: how much longer that may take."""


async def ask(sandbox: Sandbox, probe: wire.Probe, token: str) -> Answer:
    """The answer, within the probe's time-out (a little more for a command). Never raises."""
    try:
        async with asyncio.timeout(probe.timeout_s + (KILL_S if probe.kind == "exec" else 0.0)):
            return await _ask(sandbox, probe, token)
    except SandboxGone:
        # Its end is told by itself, with the reason.
        return Answer(True, "it has ended")
    except TimeoutError:
        return Answer(False, f"no answer within {probe.timeout_s:g} s", silent=True)
    except (RuntimeFailure, OSError, ValueError) as error:
        return Answer(False, str(error) or type(error).__name__)


async def _ask(sandbox: Sandbox, probe: wire.Probe, token: str) -> Answer:
    if probe.kind == "http":
        return await _http(sandbox.address, probe.path, token)
    if probe.kind == "tcp":
        return await _tcp(sandbox.address)
    return await (_exec(sandbox, probe) if probe.kind == "exec" else _health(sandbox))


async def _health(sandbox: Sandbox) -> Answer:
    check = getattr(sandbox, "health", None)
    if check is None:
        return Answer(True)
    answer = check()
    if inspect.isawaitable(answer):
        answer = await answer
    ok, detail = answer if isinstance(answer, tuple) else (bool(answer), "")
    return Answer(True) if ok else Answer(False, str(detail or "health() said no"))


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To ``unix:/path`` or ``tcp:host:port``. Raises ``OSError``, ``ValueError``."""
    kind, _, place = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(place)
    host, _, port = place.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def _tcp(address: str) -> Answer:
    _, writer = await _connect(address)
    writer.close()
    return Answer(True)


class _Status:
    """What httptools calls: the head has come, and whether it is a refusal that only says "busy"."""

    def __init__(self) -> None:
        self.complete = False
        self.busy = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self.busy = self.busy or name.lower() == b"x-headrace-refused"

    def on_headers_complete(self) -> None:
        """All of them."""
        self.complete = True


async def _http(address: str, path: str, token: str) -> Answer:
    reader, writer = await _connect(address)
    try:
        # The token is never logged: errors name the path only.
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: probe\r\nUser-Agent: headrace-probe\r\nConnection: close\r\n"
            f"X-Headrace-Token: {token}\r\nX-Headrace-Probe: 1\r\n\r\n".encode("ascii")
        )
        await writer.drain()
        seen = _Status()
        parser = httptools.HttpResponseParser(seen)
        size = 0
        while not seen.complete:
            data = await reader.read(16 << 10)
            size += len(data)
            if not data or size > MAX_ANSWER:
                return Answer(False, f"GET {path}: the connection ended before an answer")
            try:
                parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                if not seen.complete:
                    return Answer(False, f"GET {path}: the answer is no HTTP")
        status = parser.get_status_code()
        ok = 200 <= status < 400 or seen.busy
        return Answer(ok, "" if ok else f"GET {path}: status {status}")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            writer.transport.abort()


async def _exec(sandbox: Sandbox, probe: wire.Probe) -> Answer:
    ran = await sandbox.exec(probe.argv, timeout_s=probe.timeout_s)
    if ran.code == 0:
        return Answer(True)
    said = (ran.stderr or ran.stdout).decode("utf-8", "replace").strip()[-TAIL:]
    return Answer(False, f"exit code {ran.code}" + (f": {said}" if said else ""))
