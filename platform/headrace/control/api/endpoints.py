"""Endpoints: list, show, delete, scale, roll back."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace import wire
from headrace.control.api.describe import death_item, endpoint_item, environment, instance_item
from headrace.control.api.platform import require_hosts
from headrace.control.api.replies import find, limit_of, pack_cursor, reply, unpack_cursor
from headrace.control.model import Endpoint
from headrace.control.parts import Parts
from headrace.control.specs import as_json
from headrace.errors import Conflict, NotFound, ValidationFailed, VersionNotFound
from headrace.sdk.spec import MAX_INSTANCES, EndpointSpec

Params = dict[str, str]


async def list_endpoints(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """A page in the order of names, straight from the store's index."""
    after, limit = unpack_cursor(call, str) or "", limit_of(call)
    names = await parts.store.page_names(call.project, after, limit + 1)
    items = []
    for name in names[:limit]:
        endpoint = parts.world.endpoints.get(f"{call.project}/{name}")
        if endpoint is not None:
            items.append(endpoint_item(parts.world, endpoint))
    following = pack_cursor(names[limit - 1]) if len(names) > limit else None
    return reply({"items": items, "next": following})


async def show(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """All that is known of one endpoint."""
    return reply(await described(parts, find(parts.world, call.project, params["name"])))


async def described(parts: Parts, endpoint: Endpoint) -> dict[str, Any]:
    """The list's members and the rest."""
    rows = await parts.store.versions(endpoint.project, endpoint.name)
    specs = await parts.store.version_specs(endpoint.project, endpoint.name)
    low, high = endpoint.bounds
    failing = endpoint.failing
    return endpoint_item(parts.world, endpoint) | {
        "spec": msgspec.to_builtins(endpoint.spec),
        "scale": {"min": low, "max": high},
        "versions": [
            {"version": r.version, "created_at": r.created_at, "bundle": r.bundle, "verified": r.verified}
            | environment(msgspec.json.decode(specs[r.version], type=EndpointSpec))
            for r in rows
            if r.version in specs
        ],
        "instances": [instance_item(parts.world, i) for i in endpoint.instances.values() if i.alive],
        "decisions": [msgspec.to_builtins(note) for note in reversed(endpoint.notes or ())],
        "waiting": endpoint.reason or None,
        "last_death": death_item(endpoint.last_death),
        "failures": failing.count if failing else 0,
        "traceback": failing.traceback if failing else "",
        "retry_in_s": max(0.0, failing.until - parts.world.now()) if failing else None,
    }


async def openapi(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """The endpoint's own document, made from its type hints."""
    endpoint = find(parts.world, call.project, params["name"])
    data = None
    if endpoint.version is not None:
        data = await parts.store.version_spec(endpoint.project, endpoint.name, endpoint.version)
    if data is None:
        raise NotFound(f"endpoint {endpoint.name!r} has no working version yet.")
    document = msgspec.json.decode(data)["openapi"]
    if isinstance(info := document.get("info"), dict):
        # The document was made when the file was read: then there was no version yet.
        info["version"] = str(endpoint.version)
    return reply(document)


async def delete(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Remove the endpoint; its requests in flight may finish."""
    endpoint = find(parts.world, call.project, params["name"])
    await parts.lifecycle.delete(endpoint)
    return reply(endpoint_item(parts.world, endpoint), 202)


async def scale(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Override min and max, or start and release instances now."""
    endpoint = _usable(parts, call, params)
    body = as_json(call.body)
    if not isinstance(body, dict) or not body or set(body) - {"min", "max", "to"}:
        raise ValidationFailed("scale: use an object with min, max or to.")
    for name, value in body.items():
        optional = value is None and name != "to"
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not optional and not (whole and 0 <= value <= MAX_INSTANCES):
            raise ValidationFailed(
                f"{name}={value!r:.40}: use a whole number from 0 to {MAX_INSTANCES}.",
                errors=[{"loc": [name]}],
            )
    low = body.get("min", endpoint.min_override)
    high = body.get("max", endpoint.max_override)
    scaling = endpoint.spec.scaling
    least, most = scaling.min if low is None else low, scaling.max if high is None else high
    if most < max(1, least):
        raise ValidationFailed(f"max={most}: use at least max(1, min={least}).", errors=[{"loc": ["max"]}])
    to = body.get("to")
    if to is not None and to > most:
        raise ValidationFailed(f"to={to}: the endpoint's max is {most}.", hint="Raise max as well.")
    if (low, high) != (endpoint.min_override, endpoint.max_override):
        await parts.store.scale(endpoint.project, endpoint.name, low, high)
        endpoint.min_override, endpoint.max_override = low, high
        parts.world.touch(endpoint)
        parts.reconciler.again(endpoint)
    if to is not None:
        # A request that was answered just now must not keep its instance.
        await parts.routes.fresh()
        endpoint = _usable(parts, call, params)
        parts.reconciler.scale_to(endpoint, to)
    return reply(await described(parts, endpoint))


async def rollback(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Make an older version the current one."""
    endpoint = _usable(parts, call, params)
    body = as_json(call.body)
    version = body.get("version") if isinstance(body, dict) else None
    if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
        raise ValidationFailed(f"version={version!r}: use a version's number.", errors=[{"loc": ["version"]}])
    assert endpoint.version is not None
    rows = await parts.store.versions(endpoint.project, endpoint.name)
    if version is None:
        version = next((r.version for r in rows if r.verified and r.version < endpoint.version), None)
        if version is None:
            raise Conflict(f"endpoint {endpoint.name!r} has no version before {endpoint.version}.")
    elif all(r.version != version for r in rows):
        kept = ", ".join(str(r.version) for r in rows)
        raise VersionNotFound(
            f"endpoint {endpoint.name!r} has no version {version}.", hint=f"Kept are {kept}."
        )
    data = await parts.store.version_spec(endpoint.project, endpoint.name, version)
    if data is not None:
        specs = [msgspec.json.decode(data, type=EndpointSpec)]
        parts.vault.require(specs)
        require_hosts(parts, specs)
    deployment = await parts.deployer.rollback(endpoint, version)
    return reply(deployment.to_json(), 202)


def _usable(parts: Parts, call: wire.ApiCall, params: Params) -> Endpoint:
    endpoint = find(parts.world, call.project, params["name"])
    if endpoint.deleting:
        raise Conflict(f"endpoint {endpoint.name!r} is being deleted.")
    if endpoint.version is None:
        raise Conflict(f"endpoint {endpoint.name!r} has no working version yet.", hint="Deploy it first.")
    return endpoint
