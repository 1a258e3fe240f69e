"""The table of routes of the management API, and its OpenAPI document, which is made from the table."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace import wire
from headrace.control.api import endpoints, keys, logs, platform, secrets
from headrace.control.api.replies import problem, reply
from headrace.control.parts import Parts
from headrace.control.specs import DeploymentRequest
from headrace.errors import (
    BadRequest,
    Forbidden,
    HeadraceError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    StorageFull,
)
from headrace.sqlite_writer import disk_is_full

log = logging.getLogger("headrace.control")
Handler = Callable[[Parts, wire.ApiCall, dict[str, str]], Awaitable[wire.ApiReply]]


@dataclass(frozen=True)
class Route:
    """One operation."""

    method: str
    path: str
    handler: Handler
    summary: str
    query: tuple[str, ...] = ()
    status: int = 200
    body: str = ""
    """Media type of its body; empty: none."""
    request: type | dict[str, Any] | None = None
    """Of its JSON body: the type that it is read as, or a schema."""
    listed: bool = False
    """Whether it answers with a page of items."""
    also: tuple[int, ...] = ()
    """Further statuses that are no error."""
    scope: str = "deploy"
    """What a key needs for it; ``admin`` may do everything."""


_PAGE = ("limit", "cursor")
_JSON = "application/json"


async def _document(parts: Parts, call: wire.ApiCall, params: dict[str, str]) -> wire.ApiReply:
    return reply(openapi())


_NAT: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 1000}, {"type": "null"}]}
_SCALE: dict[str, Any] = {
    "type": "object",
    "properties": {"min": _NAT, "max": _NAT, "to": {"type": "integer", "minimum": 0, "maximum": 1000}},
}
_ROLLBACK: dict[str, Any] = {
    "type": "object", "properties": {"version": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
}  # fmt: skip
_LAUNCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "provider": {"type": "string"}, "count": {"type": "integer", "minimum": 1}, "cpu": {"type": "number"},
        "memory": {"type": ["integer", "string"]}, "gpu": {"type": "object"}, "labels": {"type": "object"},
        "region": {"type": "string"}, "instance_type": {"type": "string"}, "spot": {"type": "boolean"},
    },
}  # fmt: skip

ROUTES: tuple[Route, ...] = (
    Route("GET", "/status", platform.status, "Counts and versions of the running platform"),
    Route("GET", "/openapi.json", _document, "This document"),
    Route("HEAD", "/bundles/{sha256}", platform.head_bundle, "Whether a bundle is stored"),
    Route(
        "PUT", "/bundles/{sha256}", platform.put_bundle, "Store a bundle", (), 201,
        "application/octet-stream",
        also=(200,),
    ),
    Route(
        "POST", "/deployments", platform.deploy, "Deploy endpoints", status=202, body=_JSON,
        request=DeploymentRequest,
    ),
    Route("GET", "/deployments/{id}", platform.show_deployment, "Progress of a deployment", ("wait",)),
    Route("DELETE", "/deployments/{id}", platform.cancel_deployment, "Cancel a deployment", status=202),
    Route("GET", "/endpoints", endpoints.list_endpoints, "List endpoints", _PAGE, listed=True),
    Route("GET", "/endpoints/{name}", endpoints.show, "Describe an endpoint"),
    Route("GET", "/endpoints/{name}/openapi.json", endpoints.openapi, "The endpoint's OpenAPI document"),
    Route("DELETE", "/endpoints/{name}", endpoints.delete, "Delete an endpoint", status=202),
    Route(
        "POST", "/endpoints/{name}/scale", endpoints.scale, "Scale an endpoint", body=_JSON, request=_SCALE
    ),
    Route(
        "POST", "/endpoints/{name}/rollback", endpoints.rollback, "Go back a version", (), 202, _JSON,
        _ROLLBACK,
    ),
    Route(
        "GET", "/endpoints/{name}/logs", logs.read, "Read logs", ("cursor", "limit", "wait", "instance"),
        listed=True,
    ),
    Route("GET", "/instances", platform.instances, "List instances", (*_PAGE, "endpoint"), listed=True),
    Route("GET", "/hosts", platform.hosts, "List hosts", _PAGE, listed=True),
    Route(
        "GET", "/runtimes", platform.runtimes, "List runtimes: where they are, and what they can do", _PAGE,
        listed=True,
    ),
    Route("GET", "/nodes", platform.nodes, "List nodes", _PAGE, listed=True),
    Route(
        "POST", "/nodes", platform.nodes, "Launch nodes", status=202, body=_JSON, request=_LAUNCH, listed=True
    ),
    Route("GET", "/nodes/{id}", platform.nodes, "Describe a node"),
    Route("DELETE", "/nodes/{id}", platform.nodes, "Drain and terminate a node", status=202),
    Route("GET", "/providers", platform.nodes, "List providers and their offers", listed=True),
    Route("GET", "/keys", keys.list_keys, "List API keys", _PAGE, listed=True, scope="admin"),
    Route(
        "POST", "/keys", keys.create, "Create an API key, shown once", (), 201, _JSON, keys.KeyBody,
        scope="admin",
    ),
    Route("DELETE", "/keys/{id}", keys.revoke, "Revoke an API key", scope="admin"),
    Route("GET", "/secrets", secrets.list_secrets, "List secrets, without their values", _PAGE, listed=True),
    Route(
        "PUT", "/secrets/{name}", secrets.put, "Store a secret, or a new version of it", body=_JSON,
        request=secrets.SecretBody,
        also=(201,),
    ),
    Route("DELETE", "/secrets/{name}", secrets.delete, "Delete a secret that no endpoint uses"),
    Route(
        "POST", "/secrets/rotate-key", secrets.rotate_key, "Seal all secrets with a new key", scope="admin"
    ),
)  # fmt: skip


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.replace(".", r"\.")) + "$")


_COMPILED = tuple((route, _pattern(route.path)) for route in ROUTES)


async def handle(parts: Parts, call: wire.ApiCall) -> wire.ApiReply:
    """Answer one request; what goes wrong is a problem document, never an exception."""
    try:
        _allowed(call, "deploy")
        route, params = _find(call)
        _allowed(call, route.scope)
        return await route.handler(parts, call, params)
    except RequestError as error:
        return problem(error)
    except HeadraceError as error:
        return problem(BadRequest(error.message, hint=error.hint))
    except Exception as error:
        if disk_is_full(error):
            return problem(
                StorageFull(
                    "no space is left on the disk of the data directory: nothing was changed.",
                    hint="Free some and try again.",
                )
            )
        log.exception("%s %s failed", call.method, call.path)
        return problem(
            RequestError(f"{call.method} {call.path} failed.", hint="Control's log has the traceback.")
        )


def _allowed(call: wire.ApiCall, scope: str) -> None:
    if "admin" not in call.scopes and scope not in call.scopes:
        what = "manage keys" if scope == "admin" else "manage the platform"
        raise Forbidden(f"this key may not {what}.", hint=f"Use a key with the scope {scope}.")


def _find(call: wire.ApiCall) -> tuple[Route, dict[str, str]]:
    path = call.path.rstrip("/") or "/"
    methods: list[str] = []
    for route, pattern in _COMPILED:
        match = pattern.match(path)
        if match is None:
            continue
        if route.method == call.method:
            return route, match.groupdict()
        methods.append(route.method)
    if methods:
        hint = f"Use {' or '.join(methods)}."
        raise MethodNotAllowed(f"no route {call.method} {call.path}.", hint=hint, allow=methods)
    raise NotFound(f"no route {call.path}.", hint="GET /api/openapi.json lists the routes.")


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the management API; gateways add what they answer themselves."""
    types = [route.request for route in ROUTES if isinstance(route.request, type)]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault("/api/v1" + route.path, {})[route.method.lower()] = _operation(route)
    problem_schema = {"type": "object", "properties": {"type": _TEXT, "title": _TEXT, "detail": _TEXT}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace management API", "version": platform.VERSION},
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas | {"Page": _PAGE_SCHEMA},
            "responses": {
                "Problem": {
                    "description": "What went wrong and what to do next (RFC 9457)",
                    "content": {"application/problem+json": {"schema": problem_schema}},
                }
            },
        },
    }


_TEXT = {"type": "string"}
_QUERY: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
    "wait": {"type": "number", "minimum": 0},
}
_PAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object"}},
        "next": {"anyOf": [_TEXT, {"type": "null"}]},
    },
    "required": ["items", "next"],
}


def _operation(route: Route) -> dict[str, Any]:
    found = re.findall(r"\{(\w+)\}", route.path)
    named = _TEXT | {"minLength": 1}
    parameters = [{"name": n, "in": "path", "required": True, "schema": named} for n in found]
    parameters += [
        {"name": n, "in": "query", "required": False, "schema": _QUERY.get(n, _TEXT)} for n in route.query
    ]
    answer: dict[str, Any] = {"description": "OK"}
    if route.method != "HEAD":
        schema = {"$ref": "#/components/schemas/Page"} if route.listed else {"type": "object"}
        answer["content"] = {_JSON: {"schema": schema}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', route.path)}",
        "parameters": parameters,
        "responses": {str(status): answer for status in (route.status, *route.also)}
        | {"default": {"$ref": "#/components/responses/Problem"}},
    }
    if route.body:
        body: dict[str, Any] = {"type": "string", "format": "binary"}
        if isinstance(route.request, type):
            body = {"$ref": f"#/components/schemas/{route.request.__name__}"}
        elif route.request is not None:
            body = route.request
        operation["requestBody"] = {"required": True, "content": {route.body: {"schema": body}}}
    return operation
