"""WebSocket (RFC 6455) for ASGI apps: handshake, frames, close; no extensions.

A client that leaves is told to the app as `websocket.disconnect`, and by `ClientLeft` when it sends. An app
that has not returned `Server.cancel_grace_s` later (it may do neither) is cancelled, and from then on it is
work that was cancelled, as in a plain request: it holds its slot until it stops, and an instance in which
nothing else runs ends for it. An app that closes first may go on for the endpoint's timeout.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct
from typing import Any, Awaitable, Callable, Dict, List, Optional, Tuple

from hr_connection import Exchange
from hr_failure import handler_failed
from hr_http import header_lines
from hr_problem import Problem
from hr_server import Server

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_QUEUED = 64
"""Messages that wait for the app before the connection is ended as too fast."""
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class BadFrame(Exception):
    """The peer broke the protocol; ``code`` is the close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ClientLeft(ConnectionError):
    """What is sent on a closed WebSocket raises, as ASGI says (an ``OSError``)."""


class FrameReader:
    """Masked client frames to whole messages, within a size limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._kind = 0
        self._parts: List[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> List[Tuple[int, bytes]]:
        """Complete messages and control frames: (opcode, payload). Raises `BadFrame`."""
        self._buffer += data
        found: List[Tuple[int, bytes]] = []
        while True:
            frame = self._frame()
            if frame is None:
                return found
            message = self._join(*frame)
            if message is not None:
                found.append(message)

    def _frame(self) -> Optional[Tuple[bool, int, bytes]]:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        final, opcode = bool(buffer[0] & 0x80), buffer[0] & 0x0F
        if buffer[0] & 0x70 or not buffer[1] & 0x80:
            raise BadFrame(1002, "a frame has reserved bits or no mask")
        size, at = buffer[1] & 0x7F, 2
        if opcode >= CLOSE and (size > 125 or not final):
            raise BadFrame(1002, "a control frame is too long or fragmented")
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < at + width:
                return None
            size, at = int.from_bytes(buffer[at : at + width], "big"), at + width
        if size + self._size > self._limit:
            raise BadFrame(1009, "the message is too large")
        if len(buffer) < at + 4 + size:
            return None
        mask, payload = bytes(buffer[at : at + 4]), bytes(buffer[at + 4 : at + 4 + size])
        del buffer[: at + 4 + size]
        return final, opcode, unmask(payload, mask)

    def _join(self, final: bool, opcode: int, payload: bytes) -> Optional[Tuple[int, bytes]]:
        if opcode in (CLOSE, PING, PONG):
            return opcode, payload
        if opcode not in (0, TEXT, BINARY) or (opcode == 0) != bool(self._kind):
            raise BadFrame(1002, "a frame is out of place")
        self._kind = self._kind or opcode
        self._parts.append(payload)
        self._size += len(payload)
        if not final:
            return None
        message = (self._kind, b"".join(self._parts))
        self._kind, self._parts, self._size = 0, [], 0
        return message


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Apply a mask; it is its own inverse."""
    if not payload:
        return b""
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(payload), "big")


def frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked server frame."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x80 | opcode, size) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def accept_key(key: bytes) -> bytes:
    """The handshake's answer to the client's key."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324  (the protocol's, no secret)


def check_handshake(x: Exchange) -> bytes:
    """The client's key. Raises `Problem`."""
    index = x.head.index
    key = index.get(b"sec-websocket-key", b"")
    try:
        right = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        right = False
    if x.head.method != b"GET" or index.get(b"sec-websocket-version") != b"13" or not right:
        raise Problem("bad-request", "the WebSocket handshake is malformed: version 13 and a key are needed")
    return key


class Session:
    """One WebSocket: the app's receive and send, and the connection's feed."""

    def __init__(self, x: Exchange, key: bytes, limit: int) -> None:
        self.on_left: Callable[[], None] = lambda: None
        """Called once, when the client has left: not when the app has closed first."""
        self.on_close: Callable[[], None] = lambda: None
        """Called once, when the app has closed, or refused: not when the client has left first."""
        self._x = x
        self._key = key
        self._reader = FrameReader(limit)
        self._state = "connecting"
        self._events: "asyncio.Queue[Dict[str, Any]]" = asyncio.Queue(_MAX_QUEUED + 4)
        self._events.put_nowait({"type": "websocket.connect"})

    @property
    def opened(self) -> bool:
        """Whether the handshake is done."""
        return self._state != "connecting"

    async def receive(self) -> Dict[str, Any]:
        """The app's next event."""
        return await self._events.get()

    async def send(self, event: Dict[str, Any]) -> None:
        """Take an event from the app. Raises `ClientLeft` for a message when the WebSocket is closed."""
        kind = event.get("type")
        if self._state == "closed":
            # Whatever the app makes of it, others have their turn: it may do nothing but send.
            await asyncio.sleep(0)
            if kind == "websocket.send":
                raise ClientLeft("the WebSocket is closed: its client has left, or the app closed it")
            return
        if kind == "websocket.accept" and self._state == "connecting":
            self._accept(event)
        elif kind == "websocket.send" and self._state == "open":
            text = event.get("text")
            payload = text.encode() if text is not None else bytes(event.get("bytes") or b"")
            self._x.conn.write(frame(TEXT if text is not None else BINARY, payload))
            await self._x.drain()
        elif kind == "websocket.close":
            self.on_close()
            if self._state == "connecting":
                self._state = "closed"
                self._x.problem(Problem("forbidden", "the app refused the WebSocket"))
            else:
                self.close(int(event.get("code") or 1000), str(event.get("reason") or ""))
        else:
            raise RuntimeError(f"{kind!r} may not be sent while the WebSocket is {self._state}")

    def _accept(self, event: Dict[str, Any]) -> None:
        lines, _ = header_lines(event.get("headers"))
        if event.get("subprotocol"):
            lines += b"Sec-WebSocket-Protocol: %b\r\n" % str(event["subprotocol"]).encode("latin-1")
        self._x.conn.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(self._key) + b"\r\n" + lines + b"\r\n"
        )
        self._state = "open"
        self._x.conn.upgrade(self)

    def feed(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._state == "closed":
            return
        try:
            for opcode, payload in self._reader.feed(data):
                self._take(opcode, payload)
        except BadFrame as error:
            self.close(error.code, str(error))
            self._left()

    def _take(self, opcode: int, payload: bytes) -> None:
        if self._state == "closed":
            return  # nothing counts after a close frame
        if opcode == PING:
            self._x.conn.write(frame(PONG, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self.close(1000 if code == 1005 else code, "", told=code)
            self._left()
        elif opcode in (TEXT, BINARY):
            if self._events.qsize() >= _MAX_QUEUED:
                raise BadFrame(1008, "messages come faster than the app takes them")
            try:
                event = {"type": "websocket.receive", "text": payload.decode()} if opcode == TEXT else None
            except UnicodeDecodeError as error:
                raise BadFrame(1007, "a text message is not UTF-8") from error
            self._events.put_nowait(event or {"type": "websocket.receive", "bytes": payload})

    def close(self, code: int, reason: str = "", told: Optional[int] = None) -> None:
        """Send a close frame and end the connection."""
        if self._state == "closed":
            return
        self._state = "closed"
        self._events.put_nowait({"type": "websocket.disconnect", "code": told or code, "reason": reason})
        self._x.conn.write(frame(CLOSE, struct.pack("!H", code) + reason.encode()[:120]))
        self._x.head.keep_alive = False
        self._x.end_upgraded()

    def lost(self) -> None:
        """The connection ended without a close frame."""
        if self._state != "closed":
            self._state = "closed"
            self._events.put_nowait({"type": "websocket.disconnect", "code": 1006, "reason": ""})
            self._left()

    def _left(self) -> None:
        tell, self.on_left = self.on_left, lambda: None
        tell()


def of_leaving(error: Optional[BaseException]) -> bool:
    """Whether that, or what it was raised for, is only that the client has left."""
    while error is not None and not isinstance(error, ClientLeft):
        error = error.__cause__ or error.__context__
    return error is not None


def start(server: Server, app: Callable[..., Awaitable[None]], x: Exchange, scope: Dict[str, Any]) -> None:
    """Run the app for one WebSocket; it holds a slot for as long as it lives."""
    try:
        session = Session(x, check_handshake(x), server.max_body)
    except Problem as problem:
        server.release(x)
        x.problem(problem)
        return
    server.no_deadline(x)

    async def run() -> None:
        problem: Optional[Problem] = None
        try:
            await app(scope, session.receive, session.send)
        except BaseException as error:
            if not (x.cancelled or of_leaving(error)):
                problem, _ = handler_failed(error)
        server.release(x)
        if session.opened:
            session.close(1011 if problem else 1000)
        else:
            x.problem(
                problem or Problem("handler-error", "the app neither accepted nor refused the WebSocket")
            )

    loop = asyncio.get_running_loop()
    task = loop.create_task(run())

    def cancel() -> None:
        if not task.done():
            x.cancelled = True
            task.add_done_callback(lambda _: server.release(x))
            task.cancel()
            server.abandon(x)

    def stop() -> None:
        # Its client left before it was accepted, or the instance ends: no grace, as in a plain request.
        session.on_left = lambda: None
        session.lost()
        cancel()

    def left() -> None:
        loop.call_later(server.cancel_grace_s, cancel)

    session.on_left = left
    session.on_close = lambda: server.deadline_again(x)
    x.cancel = stop
