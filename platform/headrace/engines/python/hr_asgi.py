"""ASGI 3 applications: HTTP and WebSocket scopes, streamed answers, hang-ups, lifespan."""

from __future__ import annotations

import asyncio
import urllib.parse
from typing import Any, Awaitable, Callable, Dict, Optional, Tuple

import hr_loader
import hr_ws
from hr_connection import Exchange
from hr_failure import handler_failed
from hr_http import header_lines
from hr_problem import Problem
from hr_server import Server
from hr_stream import Framing

Scope = Dict[str, Any]
Event = Dict[str, Any]


def scope_of(x: Exchange, kind: str) -> Scope:
    """The connection scope of a request; our own headers are left out."""
    raw_path, _, query = x.head.target.partition(b"?")
    headers = [(k, v) for k, v in x.head.headers if not k.startswith(b"x-headrace-")]
    scope: Scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1" if x.head.http11 else "1.0",
        "scheme": "http" if kind == "http" else "ws",
        "path": urllib.parse.unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
    if kind == "http":
        scope["method"] = x.head.method.decode()
    else:
        asked = x.head.index.get(b"sec-websocket-protocol", b"").decode("latin-1")
        scope["subprotocols"] = [part.strip() for part in asked.split(",") if part.strip()]
    return scope


class _Cycle:
    """One HTTP request: the app's receive and send."""

    def __init__(self, x: Exchange) -> None:
        self._x = x
        self._body: Optional[bytes] = x.body
        self._status = 0
        self._lines = b""
        self._sized = False
        self._last = b"\n"
        self.gone: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    async def receive(self) -> Event:
        """The body, whole; after it, the client's leaving."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._x.done:
            await asyncio.wait([self.gone])
        return {"type": "http.disconnect"}

    async def send(self, event: Event) -> None:
        """Take the app's answer."""
        x = self._x
        kind = event.get("type")
        if kind == "http.response.start":
            if self._status:
                raise RuntimeError("http.response.start was sent twice")
            self._lines, self._sized = header_lines(event.get("headers"))
            self._status = int(event["status"])
        elif kind == "http.response.body":
            if not self._status:
                raise RuntimeError("http.response.body was sent before http.response.start")
            body, more = bytes(event.get("body") or b""), bool(event.get("more_body"))
            if not more and not x.streaming and not self._sized:
                x.respond(self._status, b"", body, self._lines)
            else:
                x.begin(self._status, b"", self._lines, sized=self._sized)
                x.send(body)
                self._last = body[-1:] or self._last
                if not more:
                    x.end()
            if x.done and not self.gone.done():
                self.gone.set_result(None)
            await x.drain()
        else:
            raise RuntimeError(f"unknown event {kind!r}")

    def last_words(self, problem: bytes) -> bytes:
        """What ends an answer that broke off, in its own form; empty when it has none for that."""
        media = b""
        for line in self._lines.lower().split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name == b"content-type":
                media = value.partition(b";")[0].strip()
        if self._sized or media not in (b"text/event-stream", b"application/x-ndjson"):
            return b""
        error = Framing(media).error(problem)
        return error if self._last == b"\n" else b"\n\n" + error


class AsgiApp:
    """Runs the app once per request, in its own task."""

    def __init__(self, server: Server, loaded: hr_loader.Loaded) -> None:
        self._server = server
        self._app: Callable[..., Awaitable[None]] = loaded.call
        self._loop = asyncio.get_running_loop()
        self._lifespan = Lifespan(loaded.call)

    async def startup(self) -> None:
        """The lifespan's startup. Raises `hr_loader.StartFailed`."""
        await self._lifespan.startup()

    async def shutdown(self) -> None:
        """The lifespan's shutdown. Never raises."""
        await self._lifespan.shutdown()

    def start(self, x: Exchange) -> None:
        """Begin work on an admitted request."""
        if x.head.index.get(b"upgrade", b"").lower() == b"websocket":
            hr_ws.start(self._server, self._app, x, scope_of(x, "websocket"))
            return
        cycle = _Cycle(x)
        task = self._loop.create_task(self._run(x, cycle))

        def cancel() -> None:
            if not cycle.gone.done():
                cycle.gone.set_result(None)
            task.add_done_callback(lambda _: self._server.release(x))
            task.cancel()
            self._server.abandon(x)

        x.cancel = cancel

    async def _run(self, x: Exchange, cycle: _Cycle) -> None:
        problem: Optional[Problem] = None
        header = b""
        try:
            await self._app(scope_of(x, "http"), cycle.receive, cycle.send)
            if not x.done:
                problem = Problem("handler-error", "the ASGI app returned without finishing its answer")
        except BaseException as error:
            if not x.cancelled:
                problem, header = handler_failed(error)
        self._server.release(x)
        if x.done:
            return
        if x.streaming:
            if x.cancelled:
                problem = Problem("deadline-exceeded", "the deadline passed while the answer was streamed")
            last = cycle.last_words(problem.encode(x.request_id)) if problem is not None else b""
            if last:
                x.send(last)
                x.end()
            else:
                x.abort()
        elif problem is not None:
            x.problem(problem, header)


class Lifespan:
    """The app's lifespan protocol; an app that doesn't know it is left in peace."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._to_app: "asyncio.Queue[Event]" = asyncio.Queue(2)
        self._from_app: "asyncio.Queue[Event]" = asyncio.Queue(4)
        self._task: Optional["asyncio.Task[None]"] = None

    async def _say(self, word: str) -> Tuple[Optional[Event], Optional[BaseException]]:
        assert self._task is not None
        await self._to_app.put({"type": f"lifespan.{word}"})
        answer = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result(), None
        answer.cancel()
        return None, self._task.exception()

    async def _guard(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._app(scope, self._to_app.get, self._from_app.put)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"{type(error).__name__} in the lifespan") from error

    async def startup(self) -> None:
        """Wait for the app to be started. Raises `hr_loader.StartFailed` when it says that it failed."""
        self._task = asyncio.ensure_future(self._guard())
        answer, _ = await self._say("startup")
        if answer is not None and answer.get("type") == "lifespan.startup.failed":
            message = answer.get("message") or "the ASGI app's lifespan startup failed"
            raise hr_loader.StartFailed("load-failed", str(message))

    async def shutdown(self) -> None:
        """Tell the app that it ends."""
        if self._task is not None and not self._task.done():
            await self._say("shutdown")
