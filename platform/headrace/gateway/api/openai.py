"""``/v1/...`` and ``/v2/{endpoint}/openai/v1/...``: OpenAI's wire contract, for its unmodified client.

``model`` names the endpoint, which must declare ``api="openai"`` and serves these paths itself. Bodies go
there as they are, and answers come back as they are; the gateway's own errors have OpenAI's shape.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from headrace import wire
from headrace.errors import BadRequest, EndpointNotFound, MethodNotAllowed, NotFound, ValidationFailed
from headrace.gateway.api.exchange import json_response
from headrace.gateway.api.given import decode
from headrace.gateway.api.native import Target, priority_of, timeout_of
from headrace.gateway.api.openai_client import OpenAiClient, call_of
from headrace.gateway.auth import may_call, require
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.jobs.sync import SyncCalls
from headrace.gateway.request import Request, too_large
from headrace.gateway.routing import RoutingTable

MAX_BODY = 64 << 20
"""Of a request whose endpoint is not known before its body is read."""
MAX_LISTED = 1000
_PATH = re.compile(
    r"(?:/v2/([^/]+)/openai)?/v1/(?:(chat/completions|completions|embeddings)|models(?:/([^/]+))?)"
)
_ACCEPT_ENCODING = re.compile(rb"^accept-encoding:[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)


class Body(msgspec.Struct):
    """What the gateway must know of a request's body."""

    model: str | None = None
    stream: bool | None = None


class Route(NamedTuple):
    """What a path named."""

    record: wire.KeyRecord
    endpoint: str
    """Empty: ``model`` names it."""
    call: str
    """What to call, such as ``embeddings``; empty: it is about models."""
    model: str
    """Empty: all models."""


class OpenAiApi:
    """See the module."""

    def __init__(self, table: RoutingTable, dispatcher: Dispatcher, sync: SyncCalls) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._sync = sync

    @staticmethod
    def knows(path: str) -> bool:
        """Whether the path is of this contract."""
        return _PATH.fullmatch(path) is not None

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check key, method and the endpoint that the path names; gives the body's limit.

        Raises `RequestError`.
        """
        head = request.head
        found = _PATH.fullmatch(head.target.decode("latin-1").partition("?")[0])
        if found is None:
            raise NotFound("nothing here.")
        name, call, model = unquote(found[1] or ""), found[2] or "", unquote(found[3] or "")
        require(record, ("invoke",), "call endpoints")
        if head.method not in ((b"POST",) if call else (b"GET", b"HEAD")):
            allowed = ["POST"] if call else ["GET", "HEAD"]
            raise MethodNotAllowed(f"this is a {allowed[0]} request.", allow=allowed)
        limit = MAX_BODY if call else 1 << 16
        if name:
            state, _ = self._find(record, name)
            limit = min(limit, state.route.max_body, state.route.queue_bytes)
        request.key = record.id
        request.target = Route(record, name, call, model)
        return limit

    def start(self, request: Request) -> None:
        """Answer a request that `admit` let in. Raises `RequestError`."""
        route: Route = request.target
        if route.call:
            self._call(request, route)
            return
        if route.model:
            names = [route.endpoint] if route.endpoint else [route.model]
            self._find(route.record, names[0])
            answer = _model(route.model, route.record.project)
        else:
            found = [route.endpoint] if route.endpoint else self._names(route.record)
            answer = {"object": "list", "data": [_model(name, route.record.project) for name in found]}
        request.client.reply(request, json_response(request, 200, answer))

    def _call(self, request: Request, route: Route) -> None:
        body = _parse(request.body)
        name = route.endpoint
        if not name:
            if not body.model:
                raise BadRequest("the body names no model.", param="model", code="missing_required_parameter")
            name = body.model
        state, version = self._find(route.record, name)
        if len(request.body) > (limit := min(state.route.max_body, state.route.queue_bytes)):
            raise too_large(limit)
        head = request.head
        timeout = timeout_of(head.timeout, state.route.timeout_s)
        query = head.target.partition(b"?")
        path = b"/v1/" + route.call.encode() + query[1] + query[2]
        target = Target(state, version, path, timeout, False, priority_of(head.priority))
        request.target = target

        def waits() -> str:
            call = call_of(request.exchange)
            if call is not None and call.phase != "queued":
                return ""
            return "queued" if state.group(version) else "waking"

        if body.stream:
            # What the instance compresses could neither follow a comment nor end with an error of ours.
            head.forward = _ACCEPT_ENCODING.sub(b"", head.forward) + b"Accept-Encoding: identity\r\n"
        connection = request.client
        client = OpenAiClient(connection, request, waits if body.stream else None)
        request.client = client  # type: ignore[assignment]  # it has all that a call uses

        def plain(request: Request) -> None:
            self._dispatcher.submit(
                Call(
                    self._dispatcher,
                    request,
                    state,
                    version,
                    path,
                    timeout,
                    priority=target.priority,
                    key=request.key,
                )
            )

        if head.idempotency_key:
            key = head.idempotency_key.decode("latin-1")
            self._sync.start(request, target, route.record.project, key, plain)
        else:
            plain(request)

    def _find(self, record: wire.KeyRecord, model: str) -> tuple[EndpointState, int | None]:
        """The endpoint (and version) that a model names. Raises `EndpointNotFound`, the same for what is not
        there and for what the key may not call."""
        name, at, wanted = model.partition("@")
        state = None
        if may_call(record, name) and ":" not in name and "/" not in name:
            state = self._dispatcher.state(f"{record.project}/{name}")
        if state is not None and state.route.state != "deleting" and state.route.api == "openai":
            if not at:
                return state, None
            known = state.route.versions or (state.route.version,)
            if wanted.isascii() and wanted.isdigit() and len(wanted) <= 9 and int(wanted) in known:
                return state, int(wanted)
        raise EndpointNotFound(
            f"the model {model[:80]!r} does not exist, or this key may not use it.",
            hint='GET /v1/models lists the endpoints with api="openai".',
            param="model",
        )

    def _names(self, record: wire.KeyRecord) -> list[str]:
        names = []
        for name in self._table.names(record.project):
            state = self._dispatcher.state(f"{record.project}/{name}")
            if (
                state is not None
                and state.route.api == "openai"
                and state.route.state != "deleting"
                and may_call(record, name)
            ):
                names.append(name)
        return sorted(names)[:MAX_LISTED]


def _model(name: str, project: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": project}


def _parse(data: bytes) -> Body:
    try:
        return decode(data, Body)
    except ValidationFailed as error:
        raise BadRequest(error.message, code="invalid_type") from None
    except BadRequest as error:
        raise BadRequest(error.message, code="invalid_json") from None
