"""Connections to one instance: opened, kept, parsed (llhttp), and never shared by two requests at once."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from typing import Protocol, cast

import httptools

from headrace.errors import SetupError
from headrace.gateway.overhead import Overhead

log = logging.getLogger("headrace.gateway")

CONNECT_TIMEOUT_S = 2.0
IDLE_REUSE_S = 15.0
"""An idle connection older than this is not used again: the instance may be closing it right now."""
MAX_ANSWER_HEAD = 128 << 10


class Receiver(Protocol):
    """Who waits for the answer."""

    head_request: bool

    def on_head(self, up: Upstream) -> None:
        """Status and headers are complete."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""

    def on_complete(self, up: Upstream, reusable: bool) -> None:
        """The answer is complete."""

    def on_lost(self, up: Upstream, detail: str) -> None:
        """The connection ended, or what came was no HTTP, before the answer was complete."""


class Upstream(asyncio.Protocol):
    """One keep-alive connection to an instance."""

    __slots__ = (
        "_complete",
        "_detail",
        "_excess",
        "_head_size",
        "_overhead",
        "_parser",
        "_until_eof",
        "answering",
        "closed",
        "got_bytes",
        "headers",
        "idle_since",
        "keep_alive",
        "receiver",
        "status",
        "transport",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.receiver: Receiver | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.keep_alive = True
        self.got_bytes = False
        self.answering = False
        self.closed = False
        self.idle_since = 0.0
        self._complete = False
        self._excess = False
        self._until_eof = False
        self._head_size = 0
        self._overhead = Overhead()
        self._detail = ""

    def send(self, receiver: Receiver, data: bytes) -> None:
        """Write a request; ``receiver`` hears of the answer."""
        self.receiver = receiver
        self.got_bytes = self.answering = self._complete = self._excess = self._until_eof = False
        self.headers = []
        self._head_size = 0
        self._overhead.reset()
        self.transport.write(data)

    def close(self) -> None:
        """End the connection: what runs over it is cancelled, and nobody is told."""
        self.receiver = None
        self.closed = True
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        receiver = self.receiver
        if receiver is None:
            self.close()
            return
        self.got_bytes = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error.__context__, Exception):
                log.exception("a parser callback failed")
            if self.receiver is receiver and not self._complete:
                self._lost(f"the instance's answer is not well-formed HTTP: {error}")
                return
            self._excess = True
        if (receiver := self.receiver) is not None:
            # Perhaps another one than before: who got a refusal leaves its rest to a `Turn`.
            if self._complete:
                self._finish(receiver)
            elif self._overhead.add(len(data)) > MAX_ANSWER_HEAD:
                self._lost("its answer holds too much beside the body")

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self.closed = True
        receiver = self.receiver
        if receiver is None:
            return
        if self._until_eof and exc is None:
            self.keep_alive = False
            self._finish(receiver)
        else:
            self._lost(str(exc) if exc else "the instance closed the connection")

    def pause_writing(self) -> None:
        """Part of ``asyncio.Protocol``: request bodies are bounded, so nothing waits on this."""

    def resume_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""

    # -- httptools --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._complete:
            self._excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped."""
        if not self.answering and not self._complete:
            self._head_size += len(name) + len(value)
            if self._head_size <= MAX_ANSWER_HEAD:
                self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Status and headers are complete."""
        receiver = self.receiver
        if self._complete or receiver is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            return
        self.status = status
        self.answering = True
        self._overhead.reset()
        self.keep_alive = self._parser.should_keep_alive()
        receiver.on_head(self)
        if receiver.head_request:
            self.keep_alive = False
            self._complete = True
        elif status not in (204, 304) and not _is_framed(self.headers):
            self._until_eof = True
            self.keep_alive = False

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.receiver is not None and not self._complete:
            self._overhead.body(len(data))
            self.receiver.on_body(data)

    def on_message_complete(self) -> None:
        """The answer is complete (or an interim one, which is skipped)."""
        if self.answering:
            self._complete = True

    # -- inside -----------------------------------------------------------------------------

    def _finish(self, receiver: Receiver) -> None:
        self.receiver = None
        self.answering = False
        receiver.on_complete(self, self.keep_alive and not self._excess and not self.closed)

    def _lost(self, detail: str) -> None:
        receiver, self.receiver = self.receiver, None
        self.closed = True
        self.transport.abort()
        if receiver is not None:
            receiver.on_lost(self, detail)


def _is_framed(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)


class AddressRefused(SetupError):
    """The instance's address is not one that this gateway may connect to."""


async def open_connection(address: str, factory: type[asyncio.Protocol] | None = None) -> asyncio.Protocol:
    """Connect to an instance. Raises ``OSError``, ``TimeoutError`` or `AddressRefused`."""
    loop = asyncio.get_running_loop()
    make = factory or Upstream
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if address.startswith("unix:"):
            _, protocol = await loop.create_unix_connection(make, address[5:])
        else:
            host, port = loopback(address)
            _, protocol = await loop.create_connection(make, host, port)
    return protocol


def loopback(address: str) -> tuple[str, int]:
    """Host and port of ``tcp:host:port``. Raises `AddressRefused` unless the host is this machine."""
    scheme, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if scheme != "tcp" or not port.isdigit():
        raise AddressRefused(f"{address}: not an address of an instance.")
    if not local:
        raise AddressRefused(f"{address}: instances on other machines need TLS, not built yet.")
    return host, int(port)


def idle_usable(up: Upstream) -> bool:
    """Whether a kept connection may carry another request."""
    return not up.closed and time.monotonic() - up.idle_since < IDLE_REUSE_S
