"""Everything under ``/api/v1``: authenticated here, answered by control."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from headrace import wire
from headrace.errors import (
    PROBLEM_CONTENT_TYPE,
    BadRequest,
    ControlAway,
    DeadlineExceeded,
    HeadraceError,
    RequestError,
    from_problem,
)
from headrace.gateway.api import openapi
from headrace.gateway.control_link import ControlLink
from headrace.gateway.request import Request
from headrace.gateway.respond import problem_lines, response

log = logging.getLogger("headrace.gateway")

CALL_TIMEOUT_S = 120.0
MAX_BUNDLE = 64 << 20
MAX_BODY = 32 << 20
MAX_CALLS = 256
"""Management requests under way at once."""
PREFIX = b"/api/v1"


class AdminApi:
    """See the module. ``store_state`` tells of the job store, which gateways know and control does not."""

    def __init__(self, control: ControlLink, store_state: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._control = control
        self._store_state = store_state
        self._under_way = 0

    def limit(self, request: Request) -> int:
        """Largest body of this route in bytes."""
        return MAX_BUNDLE if request.head.target.startswith(PREFIX + b"/bundles/") else MAX_BODY

    def start(self, request: Request, record: wire.KeyRecord) -> None:
        """Pass the request to control."""
        if self._under_way >= MAX_CALLS:
            request.client.fail(
                request,
                ControlAway(f"{MAX_CALLS} management requests are under way.", hint="Try again later."),
            )
            return
        AdminExchange(self, request, record)

    async def answer(self, request: Request, record: wire.KeyRecord) -> bytes:
        """Control's answer as a response. Raises `RequestError`."""
        path, _, query = request.head.target.partition(b"?")
        below = path[len(PREFIX) :] if path.startswith(PREFIX) else b"/openapi.json"
        call = wire.ApiCall(
            method=request.head.method.decode("ascii"),
            path=_text(below) or "/",
            query=dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=100)),
            body=request.body,
            project=record.project,
            key_id=record.id,
            scopes=record.scopes,
        )
        self._under_way += 1
        try:
            reply = await self._control.call(call, CALL_TIMEOUT_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"control did not answer within {CALL_TIMEOUT_S:g} s.", where="control"
            ) from None
        finally:
            self._under_way -= 1
        if isinstance(reply, wire.Error):
            raise from_slug(reply)
        if not isinstance(reply, wire.ApiReply):
            raise RequestError(f"control answered with {type(reply).__name__}.")
        body = reply.body
        if reply.status == 200 and call.method == "GET":
            if call.path == "/openapi.json":
                body = openapi.whole(body)
            elif call.path.rstrip("/") == "/status":
                found = msgspec.json.decode(body, type=dict[str, Any])
                body = msgspec.json.encode(found | {"store": await self._store_state()})
        extra = b"Cache-Control: no-store\r\n"
        if reply.content_type == PROBLEM_CONTENT_TYPE:
            extra += problem_lines(reply.status, msgspec.json.decode(body, type=dict[str, Any]))
        return response(
            reply.status,
            body,
            reply.content_type,
            request_id=request.id,
            close=request.client.closes(request),
            head_only=request.head.method == b"HEAD",
            extra=extra,
        )


class AdminExchange:
    """One management request; hanging up ends the wait for its answer."""

    def __init__(self, api: AdminApi, request: Request, record: wire.KeyRecord) -> None:
        self._request = request
        request.exchange = self
        self._task = asyncio.get_running_loop().create_task(self._run(api, record))

    async def _run(self, api: AdminApi, record: wire.KeyRecord) -> None:
        request = self._request
        try:
            data = await api.answer(request, record)
        except RequestError as error:
            request.client.fail(request, error)
        except (HeadraceError, ValueError) as error:
            request.client.fail(request, BadRequest(str(error)))
        except Exception as error:
            log.exception("management request failed")
            request.client.fail(
                request, RequestError(f"{type(error).__name__} in the gateway: its log has more.")
            )
        else:
            request.client.reply(request, data)

    def cancel(self) -> None:
        """The client is gone."""
        self._task.cancel()

    def pause(self) -> None:
        """Nothing to pause: the answer is one piece."""

    def resume(self) -> None:
        """Nothing was paused."""

    def fail(self, error: RequestError) -> None:
        """Wait no longer for control."""
        self._task.cancel()
        self._request.client.fail(self._request, error)


def from_slug(error: wire.Error) -> RequestError:
    """The `RequestError` that a reply names."""
    found = from_problem(500, {"type": error.slug, "detail": error.detail})
    found.extra = {}
    return found


def _text(path: bytes) -> str:
    text = unquote(path.decode("latin-1"), errors="strict")
    if "\0" in text or "/../" in text + "/":
        raise BadRequest("the path holds a part that means nothing here.")
    return text
