"""Replies, pages and parameters that all handlers share."""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from headrace import wire
from headrace.control.model import Endpoint, World
from headrace.errors import PROBLEM_CONTENT_TYPE, EndpointNotFound, RequestError, ValidationFailed

T = TypeVar("T")
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_WAIT_S = 60.0
_encoder = msgspec.json.Encoder()


def reply(value: Any, status: int = 200) -> wire.ApiReply:
    """A JSON answer."""
    return wire.ApiReply(status=status, body=_encoder.encode(value))


def problem(error: RequestError) -> wire.ApiReply:
    """An RFC 9457 answer."""
    doc = error.to_problem()
    return wire.ApiReply(status=error.status, body=_encoder.encode(doc), content_type=PROBLEM_CONTENT_TYPE)


def limit_of(call: wire.ApiCall, default: int = DEFAULT_LIMIT) -> int:
    """``?limit=``, between 1 and `MAX_LIMIT`. Raises `ValidationFailed`."""
    text = call.query.get("limit")
    if text is None:
        return default
    if not text.isdecimal() or not text.strip("0"):
        raise ValidationFailed(f"limit={text!r}: use a number from 1 to {MAX_LIMIT}.")
    return min(MAX_LIMIT, int(text[:9]))


def wait_of(call: wire.ApiCall) -> float:
    """``?wait=`` in seconds, at most `MAX_WAIT_S`. Raises `ValidationFailed`."""
    text = call.query.get("wait", "0")
    try:
        wait = float(text)
    except ValueError:
        wait = -1.0
    if not wait >= 0:
        raise ValidationFailed(f"wait={text!r}: use a number of seconds.")
    return min(MAX_WAIT_S, wait)


def pack_cursor(value: Any) -> str:
    """An opaque cursor that holds ``value``."""
    return base64.urlsafe_b64encode(_encoder.encode(value)).decode().rstrip("=")


def unpack_cursor(call: wire.ApiCall, type: type[T]) -> T | None:
    """``?cursor=`` as given out before; None without one. Raises `ValidationFailed`."""
    text = call.query.get("cursor")
    if not text:
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=type)
    except (binascii.Error, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise ValidationFailed("cursor: use the `next` of the page before.") from error


def page(call: wire.ApiCall, items: Sequence[dict[str, Any]], key: str = "id") -> wire.ApiReply:
    """A page of items that are in memory, ordered by ``key``."""
    after, limit = unpack_cursor(call, str), limit_of(call)
    ordered = sorted(items, key=lambda item: str(item[key]))
    if after is not None:
        ordered = [item for item in ordered if str(item[key]) > after]
    more = len(ordered) > limit
    shown = ordered[:limit]
    return reply({"items": shown, "next": pack_cursor(str(shown[-1][key])) if more else None})


def find(world: World, project: str, name: str) -> Endpoint:
    """The endpoint of that name. Raises `EndpointNotFound` naming the closest."""
    endpoint = world.endpoints.get(f"{project}/{name}")
    if endpoint is not None:
        return endpoint
    close = closest(world, project, name)
    hint = f"Did you mean {close!r}?" if close else "`headrace list` shows the endpoints."
    raise EndpointNotFound(f"no endpoint {name!r}.", hint=hint, closest=close)


def closest(world: World, project: str, name: str) -> str | None:
    """The name nearest to a wrong one. Bounded: among tens of thousands only likely ones are compared."""
    likely: list[str] = []
    name = name[:80].lower()
    few = len(world.endpoints) < 200
    for endpoint in world.endpoints.values():
        other = endpoint.name
        if endpoint.project != project:
            continue
        alike = other[:2] == name[:2] or other[-3:] == name[-3:]
        if few or (alike and abs(len(other) - len(name)) <= 3):
            likely.append(other)
            if len(likely) == 500:
                break
    found = difflib.get_close_matches(name, likely, n=1, cutoff=0.5)
    return found[0] if found else None
