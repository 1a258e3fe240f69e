"""Secrets over the management API: their values go in and never come out."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import msgspec

from headrace import wire
from headrace.control.api.replies import page, reply
from headrace.control.parts import Parts
from headrace.control.stored_secrets import SecretRow
from headrace.control.vault import MAX_VALUE
from headrace.errors import BadRequest, SpecError, ValidationFailed
from headrace.sdk.secrets import check_name

log = logging.getLogger("headrace.control")
Params = dict[str, str]
SHAPE = '{"value": "..."}'


class SecretBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT /secrets/{name}``."""

    value: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_VALUE)]

    def __repr__(self) -> str:
        return "SecretBody()"


async def list_secrets(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """All secrets of the project, without their values."""
    return page(call, [_item(parts, row) for row in parts.vault.listed(call.project)], key="name")


async def put(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Store a new version. What runs keeps the old one; new instances get this one."""
    name = _name(params)
    row = await parts.vault.set(call.project, name, _value(name, call.body))
    log.info("secret %s/%s: version %d is set by key %s", row.project, row.name, row.version, call.key_id)
    parts.warm.renew()
    return reply(_item(parts, row), 201 if row.version == 1 else 200)


async def delete(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Forget a secret that no endpoint uses."""
    row = await parts.vault.delete(call.project, _name(params))
    log.info("secret %s/%s is deleted by key %s", row.project, row.name, call.key_id)
    return reply(_item(parts, row) | {"deleted": True})


async def rotate_key(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Seal all secrets of all projects with a new key."""
    count = await parts.vault.rotate()
    log.info("the key of %d secrets is changed by key %s", count, call.key_id)
    return reply({"sealed": count})


def _item(parts: Parts, row: SecretRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": row.version,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "used_by": parts.vault.users(row.project, row.name),
    }


def _name(params: Params) -> str:
    try:
        check_name(params["name"])
    except SpecError as error:
        raise ValidationFailed(error.message, hint=error.hint) from None
    return params["name"]


def _value(name: str, body: bytes) -> str:
    # Neither the decoder's words nor its errors' chain go on: they may hold a part of the value.
    try:
        return msgspec.json.decode(body, type=SecretBody).value
    except msgspec.ValidationError:
        raise ValidationFailed(
            f"secret {name}: the body is not {SHAPE} with 1 to {MAX_VALUE} characters."
        ) from None
    except (msgspec.DecodeError, RecursionError):
        raise BadRequest(f"secret {name}: the body is not JSON.", hint=f"Send {SHAPE}.") from None
