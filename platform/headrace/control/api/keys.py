"""API keys: made here and shown once, stored as SHA-256, pushed to all gateways when one comes or goes."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from typing import Annotated, Any, Literal

import msgspec

from headrace import wire
from headrace.control.api.replies import page, reply
from headrace.control.parts import Parts
from headrace.errors import BadRequest, Conflict, NotFound, ValidationFailed
from headrace.sdk.spec import NAME_PATTERN

Params = dict[str, str]
Scope = Literal["invoke", "deploy", "metrics", "admin"]
PREFIX = "hr_"
ADMIN_ID = "admin"
MAX_KEYS = 10_000
MAX_ENDPOINTS = 1000


class RateLimit(msgspec.Struct, forbid_unknown_fields=True):
    """What each gateway takes from the key."""

    requests_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """Default: what one second allows, rounded up."""


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /keys``."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)] = ("invoke",)
    endpoints: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_ENDPOINTS)] = ()
    rate_limit: RateLimit | None = None


async def list_keys(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """All keys of the project; neither keys nor hashes are told."""
    return page(call, [_item(key) for key in parts.routes.keys if key.project == call.project])


async def create(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """A new key. The answer is the only place where it can be read."""
    body = _parse(call.body)
    if len(parts.routes.keys) >= MAX_KEYS:
        raise Conflict(f"there are {MAX_KEYS} keys.", hint="Revoke those that nobody uses.")
    plain = PREFIX + secrets.token_urlsafe(32)
    limit = body.rate_limit
    record = wire.KeyRecord(
        id=f"key_{secrets.token_hex(8)}",
        hash=hashlib.sha256(plain.encode()).hexdigest(),
        project=call.project,
        scopes=tuple(dict.fromkeys(body.scopes)),
        name=body.name,
        endpoints=tuple(sorted(set(body.endpoints))),
        rate=limit.requests_per_s if limit else 0.0,
        burst=(limit.burst or math.ceil(limit.requests_per_s)) if limit else 0,
        created_at=time.time(),
    )
    await parts.store.put_key(record)
    parts.routes.publish_keys([*parts.routes.keys, record])
    return reply(_item(record) | {"key": plain}, 201)


async def revoke(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Remove a key. Gateways hear of it before the caller does; what runs under it goes on."""
    id = params["id"]
    if id == ADMIN_ID:
        raise Conflict(
            "the admin key of admin.key cannot be revoked here.",
            hint="To rotate it: stop the platform, remove <data-dir>/admin.key, start it again.",
        )
    known = next((key for key in parts.routes.keys if key.id == id and key.project == call.project), None)
    if known is None or not await parts.store.delete_key(call.project, id):
        raise NotFound(f"no key {id[:80]!r}.", hint="`headrace keys list` shows their ids.")
    parts.routes.publish_keys([key for key in parts.routes.keys if key.id != id])
    return reply(_item(known) | {"revoked": True})


def _item(key: wire.KeyRecord) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name or key.id,
        "scopes": list(key.scopes),
        "endpoints": list(key.endpoints),
        "rate_limit": {"requests_per_s": key.rate, "burst": key.burst} if key.rate else None,
        "created_at": key.created_at,
    }


def _parse(data: bytes) -> KeyBody:
    try:
        body = msgspec.json.decode(data, type=KeyBody)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"the key: {error}.") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}.") from None
    if not body.name.isprintable():
        raise ValidationFailed("the key: name holds a character that cannot be printed.")
    for name in body.endpoints:
        if NAME_PATTERN.fullmatch(name) is None:
            raise ValidationFailed(f"the key: {name[:80]!r} is no name of an endpoint.")
    wide = sorted({"admin", "deploy"} & set(body.scopes))
    if body.endpoints and wide:
        raise ValidationFailed(
            f"the key: with a list of endpoints it cannot have the scope {wide[0]}, which sees all of them.",
            hint="Make two keys.",
        )
    return body
