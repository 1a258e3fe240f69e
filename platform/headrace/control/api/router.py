"""The table of routes of the management API, and its OpenAPI document, which is made from the table."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from headrace import wire
from headrace.control.api import endpoints, keys, logs, platform
from headrace.control.api.replies import problem, reply
from headrace.control.parts import Parts
from headrace.errors import BadRequest, Forbidden, HeadraceError, NotFound, RequestError, StorageFull

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
    scope: str = "deploy"
    """What a key needs for it; ``admin`` may do everything."""


_PAGE = ("limit", "cursor")
_JSON = "application/json"


async def _document(parts: Parts, call: wire.ApiCall, params: dict[str, str]) -> wire.ApiReply:
    return reply(openapi())


ROUTES: tuple[Route, ...] = (
    Route("GET", "/status", platform.status, "Counts and versions of the running platform"),
    Route("GET", "/openapi.json", _document, "This document"),
    Route("HEAD", "/bundles/{sha256}", platform.head_bundle, "Whether a bundle is stored"),
    Route("PUT", "/bundles/{sha256}", platform.put_bundle, "Store a bundle", (), 201, "application/zip"),
    Route("POST", "/deployments", platform.deploy, "Deploy endpoints", status=202, body=_JSON),
    Route("GET", "/deployments/{id}", platform.show_deployment, "Progress of a deployment", ("wait",)),
    Route("GET", "/endpoints", endpoints.list_endpoints, "List endpoints", _PAGE),
    Route("GET", "/endpoints/{name}", endpoints.show, "Describe an endpoint"),
    Route("GET", "/endpoints/{name}/openapi.json", endpoints.openapi, "The endpoint's OpenAPI document"),
    Route("DELETE", "/endpoints/{name}", endpoints.delete, "Delete an endpoint", status=202),
    Route("POST", "/endpoints/{name}/scale", endpoints.scale, "Scale an endpoint", body=_JSON),
    Route("POST", "/endpoints/{name}/rollback", endpoints.rollback, "Go back a version", (), 202, _JSON),
    Route(
        "GET", "/endpoints/{name}/logs", logs.read, "Read logs", ("cursor", "limit", "wait", "instance")
    ),
    Route("GET", "/instances", platform.instances, "List instances", (*_PAGE, "endpoint")),
    Route("GET", "/hosts", platform.hosts, "List hosts", _PAGE),
    Route("GET", "/nodes", platform.nodes, "List nodes", _PAGE),
    Route("POST", "/nodes", platform.nodes, "Launch nodes", status=202, body=_JSON),
    Route("GET", "/nodes/{id}", platform.nodes, "Describe a node"),
    Route("DELETE", "/nodes/{id}", platform.nodes, "Drain and terminate a node", status=202),
    Route("GET", "/providers", platform.nodes, "List providers and their offers"),
    Route("GET", "/keys", keys.list_keys, "List API keys", _PAGE, scope="admin"),
    Route("POST", "/keys", keys.create, "Create an API key, shown once", (), 201, _JSON, "admin"),
    Route("DELETE", "/keys/{id}", keys.revoke, "Revoke an API key", scope="admin"),
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
        if _disk_is_full(error):
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


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


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
    hint = f"Use {' or '.join(methods)}." if methods else "GET /api/openapi.json lists the routes."
    raise NotFound(f"no route {call.method} {call.path}.", hint=hint)


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the management API."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        found = re.findall(r"\{(\w+)\}", route.path)
        text = {"type": "string"}
        parameters = [{"name": n, "in": "path", "required": True, "schema": text} for n in found]
        parameters += [{"name": n, "in": "query", "required": False, "schema": text} for n in route.query]
        answer: dict[str, Any] = {"description": "OK"}
        if route.method != "HEAD":
            answer["content"] = {_JSON: {"schema": {"type": "object"}}}
        operation: dict[str, Any] = {
            "summary": route.summary,
            "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', route.path)}",
            "parameters": parameters,
            "responses": {str(route.status): answer, "default": {"$ref": "#/components/responses/Problem"}},
        }
        if route.body:
            schema = {"type": "object"} if route.body == _JSON else {"type": "string", "format": "binary"}
            operation["requestBody"] = {"content": {route.body: {"schema": schema}}}
        paths.setdefault("/api/v1" + route.path, {})[route.method.lower()] = operation
    problem_schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "hint": {"type": "string"},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace management API", "version": platform.VERSION},
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Problem": {
                    "description": "What went wrong and what to do next (RFC 9457)",
                    "content": {"application/problem+json": {"schema": problem_schema}},
                }
            },
        },
    }
