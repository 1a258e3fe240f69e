"""``ANY /e/{endpoint}[@{version}][/{path}]``: find the endpoint in the key's project, and call it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote

from headrace.errors import BadRequest, EndpointNotFound, VersionNotFound
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.request import Request
from headrace.gateway.routing import RoutingTable
from headrace.gateway.tunnel import TunnelCall
from headrace.jobs.model import Priority

MAX_SUGGESTED_FROM = 500
_PRIORITIES: dict[bytes, Priority] = {b"low": "low", b"normal": "normal", b"high": "high"}


class Target(NamedTuple):
    """What the path named."""

    state: EndpointState
    version: int | None
    path: bytes
    timeout_s: float
    upgrade: bool
    priority: Priority


class NativeApi:
    """See the module."""

    def __init__(self, table: RoutingTable, dispatcher: Dispatcher) -> None:
        self._table = table
        self._dispatcher = dispatcher

    def admit(self, request: Request, project: str, allowed: Sequence[str] = ()) -> int:
        """Resolve the path; gives the endpoint's ``max_body``. Raises `RequestError`.

        ``allowed``: names that the key may call, and is told of; empty: all.
        """
        head = request.head
        target = head.target
        end = _segment_end(target, 3)
        segment, path = target[3:end], target[end:]
        if path[:1] != b"/":
            path = b"/" + path
        text = segment.decode("latin-1")
        if "%" in text:
            text = unquote(text)
        name, at, wanted = text.partition("@")
        state = self._dispatcher.state(f"{project}/{name}")
        if state is None or state.route.state == "deleting":
            raise self._unknown(project, name, allowed)
        route = state.route
        version: int | None = None
        if at:
            known = route.versions or (route.version,)
            if not wanted.isascii() or not wanted.isdigit() or len(wanted) > 9 or int(wanted) not in known:
                raise VersionNotFound(
                    f"endpoint {name} has no version {wanted[:40]!r}.",
                    hint=f"It has: {', '.join(str(v) for v in sorted(known))}.",
                    versions=sorted(known),
                )
            version = int(wanted)
        timeout = timeout_of(head.timeout, route.timeout_s)
        priority = priority_of(head.priority)
        # Nothing else is ever switched to: what an app does not know it would answer as a plain request.
        upgrade = head.upgrade.strip().lower() == b"websocket" and route.handler == "asgi"
        request.target = Target(state, version, path, timeout, upgrade, priority)
        # What could never wait is refused at any time, and not only when it would have to.
        return route.max_body if route.max_body <= route.queue_bytes else route.queue_bytes

    def start(self, request: Request) -> None:
        """Call the endpoint."""
        target: Target = request.target
        make = TunnelCall if target.upgrade else Call
        self._dispatcher.submit(
            make(
                self._dispatcher,
                request,
                target.state,
                target.version,
                target.path,
                target.timeout_s,
                priority=target.priority,
                key=request.key,
            )
        )

    def _unknown(self, project: str, name: str, allowed: Sequence[str]) -> EndpointNotFound:
        # Names are lower case.
        shown, name = name[:80], name.lower()
        near: Iterable[str] = self._table.names(project)
        if allowed:
            near = (other for other in near if other in allowed)
        if len(self._table.endpoints) > MAX_SUGGESTED_FROM:
            near = (
                other
                for other in near
                if abs(len(other) - len(name)) <= 3
                and name
                and (other[0] == name[0] or other[-1] == name[-1])
            )
        close = (
            difflib.get_close_matches(name, list(islice(near, MAX_SUGGESTED_FROM)), n=1, cutoff=0.5)
            if len(name) < 80
            else []
        )
        if close:
            return EndpointNotFound(
                f"no endpoint {shown!r}.", hint=f"Did you mean {close[0]!r}?", suggestion=close[0]
            )
        return EndpointNotFound(f"no endpoint {shown!r}.", hint="`headrace list` shows what there is.")


def _segment_end(target: bytes, start: int) -> int:
    slash, query = target.find(b"/", start), target.find(b"?", start)
    if slash < 0:
        slash = len(target)
    return slash if query < 0 else min(slash, query)


def priority_of(value: bytes) -> Priority:
    """``X-Headrace-Priority``. Raises `BadRequest`."""
    if not value:
        return "normal"
    found = _PRIORITIES.get(value.strip().lower())
    if found is None:
        raise BadRequest("X-Headrace-Priority is none of low, normal, high.")
    return found


def timeout_of(value: bytes, limit: float) -> float:
    """The deadline in seconds: the endpoint's, lowered by ``X-Headrace-Timeout``. Raises `BadRequest`."""
    if not value:
        return limit
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise BadRequest("X-Headrace-Timeout is not a number of seconds above 0.")
    return min(seconds, limit)
