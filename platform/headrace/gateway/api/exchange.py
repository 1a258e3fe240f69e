"""An answer that takes its time: a task that ends when its client hangs up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from headrace.errors import BadRequest, HeadraceError, RequestError
from headrace.gateway.answer import error_tail
from headrace.gateway.api.given import too_deep
from headrace.gateway.request import Request
from headrace.gateway.respond import response, status_line

log = logging.getLogger("headrace.gateway")


class TaskExchange:
    """Runs ``work`` for the request. It gives a whole response, or None when it has answered by itself
    (with `begin`, `send` and `finish`); what it raises becomes a problem document."""

    def __init__(self, request: Request, work: Callable[[TaskExchange], Awaitable[bytes | None]]) -> None:
        self.request = request
        self.begun = False
        self.status = 0
        """Of the answer; 0: there is none yet."""
        self._media = b""
        self._writable = asyncio.Event()
        self._writable.set()
        request.exchange = self
        self._task = asyncio.get_running_loop().create_task(self._run(work))

    @property
    def task(self) -> asyncio.Task[None]:
        """Ends when the request is answered."""
        return self._task

    def cancel(self) -> None:
        """The client is gone."""
        self._task.cancel()

    def pause(self) -> None:
        """The client reads slowly."""
        self._writable.clear()

    def resume(self) -> None:
        """The client has caught up."""
        self._writable.set()

    def fail(self, error: RequestError) -> None:
        """End the work, and tell the client why."""
        self._task.cancel()
        self._fail(error)

    # -- streams --------------------------------------------------------------------------------

    def begin(self, content_type: bytes) -> None:
        """Send the head of a streamed answer."""
        request = self.request
        self.begun, self.status = True, 200
        self._media = content_type
        chunked = b"" if request.head.http10 else b"Transfer-Encoding: chunked\r\n"
        close = b"Connection: close\r\n" if request.client.closes(request) else b""
        request.client.write(
            b"%bContent-Type: %b\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            b"X-Headrace-Request-Id: %b\r\n%b%b\r\n"
            % (status_line(200), content_type, request.id.encode(), chunked, close)
        )

    async def send(self, data: bytes) -> None:
        """Send a piece, when the client has room for it."""
        await self._writable.wait()
        http10 = self.request.head.http10
        self.request.client.write(data if http10 else b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """The stream is complete."""
        request = self.request
        if request.head.http10:
            request.close = True
        else:
            request.client.write(b"0\r\n\r\n")
        request.client.end(request)

    # -- inside ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[[TaskExchange], Awaitable[bytes | None]]) -> None:
        request = self.request
        try:
            data = await work(self)
        except RequestError as error:
            self._fail(error)
        except RecursionError:
            self._fail(too_deep())
        except (HeadraceError, ValueError) as error:
            self._fail(BadRequest(str(error)))
        except Exception as error:
            log.exception("request %s failed in the gateway", request.id)
            self._fail(RequestError(f"{type(error).__name__} in the gateway: its log has more."))
        else:
            if data is not None:
                self.status = int(data[9:12])
                request.client.reply(request, data)

    def _fail(self, error: RequestError) -> None:
        request, self.status = self.request, int(error.extra.get("http_status", error.status))
        if not self.begun:
            request.client.fail(request, error)
            return
        tail = error_tail(self._media, error, request.id, b"\n")
        if tail:
            request.client.write(tail if request.head.http10 else b"%x\r\n%b\r\n" % (len(tail), tail))
        request.client.cut(request)


def json_response(request: Request, status: int, value: object, extra: bytes = b"") -> bytes:
    """A whole JSON response."""
    return response(
        status,
        msgspec.json.encode(value),
        "application/json",
        request_id=request.id,
        close=request.client.closes(request),
        head_only=request.head.method == b"HEAD",
        extra=b"Cache-Control: no-store\r\n" + extra,
    )
