"""A framed, acknowledged connection between two parts of the platform (messages: `headrace.wire`).

`connect` and `listen` do the handshake; both give a `Link`, which sends one-way messages, asks
questions with a deadline, and hands what comes in to one handler. Works on unix and TCP sockets.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec

from headrace import wire
from headrace.errors import LinkClosed, LinkError, LinkRefused

log = logging.getLogger("headrace.link")

HANDSHAKE_TIMEOUT_S = 5.0
MAX_UNACKED = 50_000
"""Frames sent and not acknowledged above which the peer is taken for stuck and the link is closed."""
MAX_BUFFERED = wire.MAX_FRAME + (8 << 20)
"""Bytes waiting to be written above which the link is closed: one frame of the largest size fits."""
MAX_STRANGERS = 64
"""Connections without a handshake yet, above which the oldest one goes."""
ACK_EVERY = 64
"""Send a bare acknowledgement after this many frames without traffic of our own."""

Handler = Callable[["Link", wire.AnyMessage], "Awaitable[wire.AnyMessage | None] | wire.AnyMessage | None"]


class Link(asyncio.Protocol):
    """One connection after (or during) its handshake.

    ``handler(link, message)`` runs for each incoming message that is not a reply. A plain function
    runs in order with the others; when it returns an awaitable that runs as a task of its own. What
    it gives back answers the peer's `call`.
    """

    def __init__(
        self, *, accept: Callable[[Link, wire.Hello], str | None] | None = None, epoch: int = 0
    ) -> None:
        self._accept = accept
        self._own_epoch = epoch
        self._handler: Handler | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._seq = 0
        self._received = 0
        self._acked_by_us = 0
        self._acked_by_peer = 0
        self._calls: dict[int, asyncio.Future[wire.AnyMessage]] = {}
        self._next_call = 1
        self._early: list[wire.Envelope] = []
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.ready: asyncio.Future[wire.Hello | wire.Welcome] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self._on_closed: list[Callable[[Link, str], None]] = []
        self._deadline = loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_late)
        self.peer_id = ""
        self.role: wire.Role | None = None
        self.peer_epoch = 0

    # -- for users ------------------------------------------------------------------------

    def start(self, handler: Handler, on_closed: Callable[[Link, str], None] | None = None) -> None:
        """Hand over what comes in from now on (and what came in since the handshake)."""
        self._handler = handler
        if on_closed is not None:
            if self.closed.done():
                self._loop.call_soon(on_closed, self, self.closed.result())
            else:
                self._on_closed.append(on_closed)
        early, self._early = self._early, []
        for envelope in early:
            self._dispatch(envelope)

    def send(self, msg: wire.AnyMessage) -> None:
        """Send without waiting. Raises `LinkClosed`, or `LinkError` for what cannot be encoded."""
        self._send(msg)

    async def call(self, msg: wire.AnyMessage, timeout: float) -> wire.AnyMessage:  # noqa: ASYNC109
        """Send and wait for the reply. Raises `LinkClosed`, or ``TimeoutError`` after ``timeout`` s."""
        number = self._next_call
        self._next_call += 1
        future: asyncio.Future[wire.AnyMessage] = self._loop.create_future()
        self._calls[number] = future
        try:
            self._send(msg, call=number)
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._calls.pop(number, None)

    def close(self, reason: str = "closed here") -> None:
        """Close; what was sent before is still written."""
        self._finish(reason)

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._transport is not None and not self.closed.done()

    # -- asyncio.Protocol -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self._finish(f"connection lost: {exc}" if exc else "closed by the other side")

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > (wire.MAX_FRAME if self.ready.done() else wire.MAX_HELLO_FRAME):
                self._finish(f"a frame of {size} bytes is above the limit")
                return
            if len(buffer) - start - 4 < size:
                break
            body = bytes(buffer[start + 4 : start + 4 + size])
            start += 4 + size
            try:
                envelope = wire.decode(body)
            except msgspec.DecodeError as error:
                self._finish(f"unreadable frame: {error}")
                return
            self._received_envelope(envelope)
            if self.closed.done():
                return
        if start:
            del buffer[:start]

    # -- inside ---------------------------------------------------------------------------

    def _send(self, msg: wire.AnyMessage, *, call: int = 0, reply: int = 0) -> None:
        if self._transport is None or self.closed.done():
            raise LinkClosed("the link is closed.", hint="It is opened again by itself; try again.")
        try:
            frame = wire.encode(wire.Envelope(self._seq + 1, self._received, msg, call, reply))
        except (OverflowError, ValueError, TypeError) as error:
            # One value that does not fit must not end the link, or the loop that tells of others as well.
            log.exception("a %s cannot be sent", type(msg).__name__)
            raise LinkError(f"a {type(msg).__name__} cannot be sent: {error}.") from error
        self._seq += 1
        self._acked_by_us = self._received
        self._transport.write(frame)
        if self._seq - self._acked_by_peer > MAX_UNACKED:
            self._finish(f"the peer has not acknowledged {MAX_UNACKED} frames")
        elif self._transport.get_write_buffer_size() > MAX_BUFFERED:
            self._finish(f"the peer does not read: {MAX_BUFFERED} bytes wait")

    def _received_envelope(self, envelope: wire.Envelope) -> None:
        self._received = envelope.seq
        self._acked_by_peer = max(self._acked_by_peer, envelope.ack)
        if not self.ready.done():
            self._handshake(envelope.msg)
            return
        if self._received - self._acked_by_us >= ACK_EVERY:
            self._acked_by_us = self._received
            self._send(wire.Error(slug="ack", detail=""), reply=-1)
        if envelope.reply:
            future = self._calls.get(envelope.reply)
            if future is not None and not future.done():
                future.set_result(envelope.msg)
            return
        if self._handler is None:
            self._early.append(envelope)
        else:
            self._dispatch(envelope)

    def _dispatch(self, envelope: wire.Envelope) -> None:
        assert self._handler is not None
        try:
            result = self._handler(self, envelope.msg)
        except Exception as error:
            log.exception("handler of %s failed", type(envelope.msg).__name__)
            if envelope.call:
                self._reply(
                    envelope.call, wire.Error(slug="internal", detail=f"{type(error).__name__}: {error}")
                )
            return
        if inspect.isawaitable(result):
            task = self._loop.create_task(self._finish_dispatch(envelope, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif envelope.call and result is not None:
            self._reply(envelope.call, result)

    async def _finish_dispatch(
        self, envelope: wire.Envelope, result: Awaitable[wire.AnyMessage | None]
    ) -> None:
        try:
            answer = await result
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("handler of %s failed", type(envelope.msg).__name__)
            answer = wire.Error(slug="internal", detail=f"{type(error).__name__}: {error}")
        if envelope.call and answer is not None:
            self._reply(envelope.call, answer)

    def _reply(self, number: int, msg: wire.AnyMessage) -> None:
        if not self.is_open:
            return
        try:
            self._send(msg, reply=number)
        except LinkClosed:
            return
        except LinkError as error:
            self._send(wire.Error(slug="internal", detail=error.message), reply=number)

    def _handshake(self, msg: wire.AnyMessage) -> None:
        if self._accept is None:
            self._handshake_as_client(msg)
        elif not isinstance(msg, wire.Hello):
            self._finish("the first frame was not Hello")
        else:
            refusal = self._accept(self, msg)
            if refusal is not None:
                self._send(wire.Reject(reason=refusal))
                self._finish(refusal)
                return
            self.peer_id, self.role = msg.id, msg.role
            self._deadline.cancel()
            self._send(wire.Welcome(protocol=wire.PROTOCOL, epoch=self._own_epoch))
            self.ready.set_result(msg)

    def _handshake_as_client(self, msg: wire.AnyMessage) -> None:
        if isinstance(msg, wire.Welcome):
            self._deadline.cancel()
            self.peer_epoch = msg.epoch
            self.ready.set_result(msg)
        elif isinstance(msg, wire.Reject):
            self.ready.set_exception(LinkRefused(msg.reason))
            self._finish(msg.reason)
        else:
            self._finish("the first frame was neither Welcome nor Reject")

    def _handshake_late(self) -> None:
        self._finish(f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s")

    def _finish(self, reason: str) -> None:
        if self.closed.done():
            return
        self._deadline.cancel()
        self.closed.set_result(reason)
        if not self.ready.done():
            self.ready.set_exception(LinkClosed(f"the link ended during its handshake: {reason}."))
            # Nobody may be waiting on the accepting side: mark it as seen.
            self.ready.exception()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(LinkClosed(f"the link ended: {reason}.", hint="Try again."))
        self._calls.clear()
        if self._transport is not None:
            self._transport.close()
        for callback in self._on_closed:
            callback(self, reason)
        self._on_closed.clear()


async def connect(address: str, *, role: wire.Role, id: str, token: str) -> Link:
    """Connect to control, or another gateway, at ``unix:/path`` or ``tcp:host:port`` and shake hands.

    Raises ``OSError`` when nobody listens, `LinkRefused`, or `LinkClosed`.
    """
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        _, link = await loop.create_unix_connection(Link, address.removeprefix("unix:"))
    else:
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        _, link = await loop.create_connection(Link, host, int(port))
    link.send(wire.Hello(protocol=wire.PROTOCOL, role=role, token=token, id=id))
    await link.ready
    return link


async def listen(
    addresses: list[str], *, token: str, epoch: int, on_link: Callable[[Link, wire.Hello], None]
) -> list[asyncio.Server]:
    """Listen for gateways or hosts; ``on_link`` gets each that knows the token and must `Link.start` it.

    A leftover unix socket is replaced. Raises ``OSError`` when an address is taken.
    """
    loop = asyncio.get_running_loop()
    strangers: dict[Link, None] = {}

    def meet() -> Link:
        link = Link(accept=accept, epoch=epoch)
        strangers[link] = None
        for end in (link.ready, link.closed):
            end.add_done_callback(lambda _: strangers.pop(link, None))
        if len(strangers) > MAX_STRANGERS:
            next(iter(strangers)).close("too many connections wait for their handshake")
        return link

    def accept(link: Link, hello: wire.Hello) -> str | None:
        if not hmac.compare_digest(hello.token.encode(), token.encode()):
            return "wrong cluster token: give this process the token of <data-dir>/cluster.token"
        if hello.protocol != wire.PROTOCOL:
            return (
                f"protocol {hello.protocol}, and control speaks {wire.PROTOCOL}: use one version everywhere"
            )
        loop.call_soon(on_link, link, hello)
        return None

    servers: list[asyncio.Server] = []
    for address in addresses:
        if address.startswith("unix:"):
            sock = _bind(Path(address.removeprefix("unix:")))
            server = await loop.create_unix_server(meet, sock=sock)
        else:
            host, _, port = address.removeprefix("tcp:").rpartition(":")
            server = await loop.create_server(meet, host, int(port))
        servers.append(server)
    return servers


def _bind(path: Path) -> socket.socket:
    """A unix socket with mode 0600. Nothing else runs meanwhile: the mask is that of the whole process."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old)
    return sock
