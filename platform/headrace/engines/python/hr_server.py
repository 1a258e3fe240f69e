"""The instance's HTTP server: slots, deadlines, draining, work that does not stop.

What a request means, its app decides. A thread cannot be stopped from outside safely (an exception raised
in it by force would leave locks taken and libraries in pieces), so work on a thread that goes on after its
request was cancelled keeps its slot: a zombie. When nothing but zombies runs, `Server.stuck` is told, and
the instance ends: the slot is not lost for ever, and nobody else's request with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from typing import Callable, List, Optional, Protocol, Set

from hr_connection import Connection, Exchange
from hr_door import ALONE, Door
from hr_kept import Kept
from hr_problem import CONTENT_TYPE, Problem

PROBE = b"x-headrace-probe"
_ON_ITS_WAY_S = 0.05
"""Gateways are told before the instance that it goes: what they sent before arrives within this time."""


class App(Protocol):
    """What answers admitted requests."""

    def start(self, x: Exchange) -> None:
        """Begin work; `Server.release` must follow, exactly once, when it has ended."""
        ...


def _deadline_ms(x: Exchange) -> Optional[float]:
    raw = x.head.index.get(b"x-headrace-deadline-ms")
    if raw is None:
        return None
    try:
        value = float(raw)
    except ValueError:
        return None
    return None if math.isnan(value) else value


class Server:
    """Never more than ``capacity`` requests at once; the rest is refused as not started."""

    def __init__(
        self, token: str, capacity: int, max_body: int, timeout_s: float, cancel_grace_s: float = 5.0
    ) -> None:
        self.token = token.encode()
        self.max_body = max_body
        self.capacity = capacity
        self.draining = False
        self.in_flight = 0
        self.served = 0
        self.connections: Set[Connection] = set()
        self.app: Optional[App] = None
        self.cancel_grace_s = cancel_grace_s
        self.kept = Kept()
        self.door = Door(capacity, lambda: self.in_flight)
        self.stuck: Callable[[], None] = lambda: None
        """Called when all that runs was cancelled longer than ``cancel_grace_s`` ago."""
        self._zombies: Set[Exchange] = set()
        self._timeout_s = timeout_s
        self._active: Set[Exchange] = set()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_at = 0.0
        self._idle: Optional[asyncio.Event] = None
        self._left: Optional[asyncio.Event] = None
        self._server: Optional[asyncio.AbstractServer] = None

    async def listen(self, sock: socket.socket) -> None:
        """Serve a socket that is bound and listening already."""
        loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._left = asyncio.Event()
        sock.setblocking(False)

        def make() -> Connection:
            return Connection(self, loop)

        if sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(make, sock=sock, backlog=1024)
        else:
            self._server = await loop.create_server(make, sock=sock, backlog=1024)

    def handle(self, x: Exchange) -> None:
        """Admit or refuse one request."""
        recalled = x.head.index.get(b"x-headrace-recall")
        if recalled is not None:
            return self.kept.recall(x, recalled.decode("latin-1"))
        if self.draining:
            x.head.keep_alive = False
            return self.refuse(x, b"draining")
        if PROBE in x.head.index:
            # The platform's own question takes no slot: who is full is asked as well, and lets nobody wait.
            assert self.app is not None
            return self.app.start(x)
        if (self.in_flight >= self.door.limit or ALONE in x.head.index) and not self.door.admits(x):
            return None if self.door.parks(x) else self.refuse(x, b"full")
        self.in_flight += 1
        x.slot = True
        self._active.add(x)
        if b"x-headrace-keep" in x.head.index:
            self.kept.begin(x)
        given = _deadline_ms(x)
        allowed = self._timeout_s if given is None else min(self._timeout_s, given / 1000)
        if allowed > 0 or given is not None:
            x.deadline = x.started + allowed
            if self._timer is None or x.deadline < self._timer_at:
                self._arm(x.deadline)
        assert self.app is not None
        self.app.start(x)
        return None

    def refuse(self, x: Exchange, why: bytes) -> None:
        """Not started: the gateway may send it elsewhere freely."""
        problem = Problem(
            "no-capacity", f"the instance is {why.decode()}", "Send the request to another instance."
        )
        x.respond(503, CONTENT_TYPE, problem.encode(x.request_id), b"X-Headrace-Refused: %b\r\n" % why)

    def release(self, x: Exchange) -> None:
        """The work for a request has ended; its slot is free."""
        if not x.slot:
            return
        x.slot = False
        self.in_flight -= 1
        self.served += 1
        if b"x-headrace-keep" in x.head.index:
            # The slot is given back just before the answer: until that is kept, the work counts as running.
            asyncio.get_running_loop().call_soon(self.kept.over, x)
        self._active.discard(x)
        self._zombies.discard(x)
        if self.door.watching:
            self.door.left(x)
        if self._zombies:
            self._check_stuck()
        if self.in_flight == 0 and self._idle is not None:
            self._idle.set()

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self.door.gone(connection)

    def abandon(self, x: Exchange) -> None:
        """The request is cancelled, but its work may go on: it has the grace to notice."""
        if x.slot:
            asyncio.get_running_loop().call_later(self.cancel_grace_s, self._overdue, x)

    def _overdue(self, x: Exchange) -> None:
        if x.slot and x.deadline and self.kept.wanted(x):
            # Only its gateway died: another one waits for the answer, up to the deadline.
            self.abandon(x)
        elif x.slot:
            self._zombies.add(x)
            self._check_stuck()

    def _check_stuck(self) -> None:
        if len(self._zombies) == self.in_flight:
            # What comes now is refused as not started, and goes elsewhere.
            self.draining = True
            self.door.dismiss()
            self.stuck()

    def no_deadline(self, x: Exchange) -> None:
        """This exchange lives as long as its connection (a WebSocket)."""
        x.deadline = 0.0

    def deadline_again(self, x: Exchange) -> None:
        """Its client has all that it gets (the app closed the WebSocket): what goes on has the timeout."""
        if self._timeout_s > 0:
            x.deadline = time.monotonic() + self._timeout_s
            if self._timer is None or x.deadline < self._timer_at:
                self._arm(x.deadline)

    def _arm(self, at: float) -> None:
        # One timer for all: it stays where it is when requests end, and most deadlines are far away.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, at - time.monotonic()) + 0.001, self._expire
        )

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for x in [x for x in self._active if x.deadline and x.deadline <= now]:
            x.deadline = 0.0
            self._time_out(x)
        coming = [x.deadline for x in self._active if x.deadline]
        if coming:
            self._arm(min(coming))

    def _time_out(self, x: Exchange) -> None:
        x.cancelled = True
        cancel: Optional[Callable[[], None]] = x.cancel
        if not x.streaming:
            after = time.monotonic() - x.started
            detail = f"the handler was still running after {after:.3f} s, when the request's deadline passed"
            x.problem(
                Problem("deadline-exceeded", detail, "Raise the endpoint's timeout or ask for less at once.")
            )
        if cancel is not None:
            cancel()

    async def drain(self, grace_s: float) -> bool:
        """Take no new requests, wait for those that run; whether all ended within ``grace_s``."""
        self.draining = True
        self.door.dismiss()
        until = time.monotonic() + max(0.0, grace_s)
        # What is on its way is refused, and goes elsewhere: with its connection it would be lost.
        assert self._left is not None
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._left.wait(), min(_ON_ITS_WAY_S, max(0.0, grace_s)))
        for connection in list(self.connections):
            connection.close_if_idle()
        assert self._idle is not None
        if self.in_flight:
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), max(0.0, until - time.monotonic()))
        return self.in_flight == 0

    def left(self) -> None:
        """Nobody sends requests any more: `drain` need not wait for those on their way."""
        assert self._left is not None
        self._left.set()

    def cut_off(self) -> None:
        """End what still runs, without an answer."""
        running: List[Exchange] = list(self._active)
        for x in running:
            x.cancelled = True
            x.abort()
            if x.cancel is not None:
                x.cancel()

    async def flush(self, wait_s: float) -> None:
        """Wait until clients have taken what was written, at most ``wait_s``."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and any(c.unsent() for c in self.connections):  # noqa: ASYNC110
            # Transports tell when they fall below a mark, not when they are empty.
            await asyncio.sleep(0.002)
