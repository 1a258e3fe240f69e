"""Generators as streamed answers (events, or one JSON value per line), pulled as the client takes them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncIterator, Callable, Optional

from hr_connection import Exchange
from hr_failure import handler_failed
from hr_outputs import Outputs
from hr_problem import Problem


class Framing:
    """How items look on the wire; the client's Accept header decides."""

    def __init__(self, accept: bytes) -> None:
        self._events = b"text/event-stream" in accept.lower()
        self.content_type = b"text/event-stream; charset=utf-8" if self._events else b"application/x-ndjson"

    def item(self, data: bytes) -> bytes:
        """One item, encoded as JSON."""
        return b"data: " + data + b"\n\n" if self._events else data + b"\n"

    def error(self, document: bytes) -> bytes:
        """A failure after the first item."""
        return (
            b"event: error\ndata: " + document + b"\n\n" if self._events else b'{"error":' + document + b"}\n"
        )


class Writer:
    """The answer's side of a stream; its head waits for the first item, so an early failure has a status."""

    def __init__(self, x: Exchange) -> None:
        self._x = x
        self._framing = Framing(x.head.index.get(b"accept", b""))

    def item(self, data: bytes) -> None:
        """Send one item."""
        if not self._x.streaming:
            self._x.begin(200, self._framing.content_type)
        self._x.send(self._framing.item(data))

    def end(self, error: Optional[BaseException]) -> None:
        """Finish, with the failure when there was one."""
        x = self._x
        if x.done:
            return
        problem, header = _problem_of(error)
        if x.cancelled and x.streaming:
            problem = Problem("deadline-exceeded", "the deadline passed while the stream was running")
        if problem is None:
            if not x.streaming:
                x.begin(200, self._framing.content_type)
        elif x.streaming:
            x.send(self._framing.error(problem.encode(x.request_id)))
        else:
            x.problem(problem, header)
            return
        x.end()


def _problem_of(error: Optional[BaseException]) -> "tuple[Optional[Problem], bytes]":
    if error is None:
        return None, b""
    if isinstance(error, Problem):
        return error, b""
    return handler_failed(error)


class SyncStream:
    """A sync generator on one thread (its thread-locals stay valid), one item ahead of the client."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, x: Exchange, outputs: Outputs, make: Callable[[], Any]
    ) -> None:
        self._loop = loop
        self._x = x
        self._outputs = outputs
        self._make = make
        self._writer = Writer(x)
        self._credit = threading.Semaphore(1)
        self.on_end: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """End the generator at its next item."""
        self._credit.release()

    def run(self) -> None:
        """On the thread: pull items while there is credit."""
        error: Optional[BaseException] = None
        generator: Any = None
        try:
            generator = iter(self._make())
            while True:
                # Released by the client's progress, its hang-up and the deadline: one of them comes.
                self._credit.acquire()
                if self._x.cancelled:
                    break
                try:
                    item = next(generator)
                except StopIteration:
                    break
                self._loop.call_soon_threadsafe(self._push, self._outputs.encode_json(item))
        except BaseException as raised:
            error = raised
        try:
            close = getattr(generator, "close", None)
            if close is not None:
                close()
        except BaseException as raised:
            error = error or raised
        self._loop.call_soon_threadsafe(self._end, error)

    def _push(self, data: bytes) -> None:
        self._writer.item(data)
        self._x.when_writable(self._credit.release)

    def _end(self, error: Optional[BaseException]) -> None:
        self.on_end()
        self._writer.end(error)


async def run_async(
    x: Exchange, outputs: Outputs, make: Callable[[], AsyncIterator[Any]], release: Callable[[Exchange], None]
) -> None:
    """An async generator, pulled when the client has taken what was sent. Never raises."""
    writer = Writer(x)
    error: Optional[BaseException] = None
    generator: Any = None
    try:
        generator = make()
        async for item in generator:
            writer.item(outputs.encode_json(item))
            await x.drain()
            if x.cancelled:
                break
    except BaseException as raised:
        error = None if x.cancelled else raised
    try:
        close = getattr(generator, "aclose", None)
        if close is not None:
            await close()
    except BaseException as raised:
        error = error or (None if x.cancelled else raised)
    release(x)
    writer.end(error)
