"""``GET /api/openapi.json``: one OpenAPI 3.1 document of all that the gateway answers.

Control gives the management API from its own table of routes (`whole` takes that part in); the rest is
described in `headrace.gateway.api.openapi_paths`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.gateway.api.health import VERSION
from headrace.gateway.api.openapi_paths import OPENAI_PATHS, PATHS
from headrace.gateway.api.openapi_schemas import RESPONSES, SCHEMAS, problems

Doc = dict[str, Any]
TITLE = "Headrace"
DESCRIPTION = (
    "A serverless inference platform. Errors are RFC 9457 problem documents with a stable `type`; "
    "under `/v1` they have OpenAI's shape. Answers carry `X-Headrace-Request-Id`."
)
MANAGEMENT_ERRORS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 504)
_METHODS = ("get", "put", "post", "delete", "head", "patch", "options")


def whole(management: bytes) -> bytes:
    """The document; ``management`` is control's part of it, as JSON."""
    part: Doc = msgspec.json.decode(management)
    paths: Doc = {}
    for path, item in part.get("paths", {}).items():
        paths[path] = {method: _managed(method, op) for method, op in item.items()}
    paths |= PATHS | OPENAI_PATHS
    found = part.get("components", {})
    document = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": {path: _tagged(path, item) for path, item in sorted(paths.items())},
        "security": [{"bearer": []}, {"bare": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
                "bare": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "The key alone, as RunPod's client may send it",
                },
            },
            "schemas": {**found.get("schemas", {}), **SCHEMAS},
            "responses": RESPONSES,
        },
    }  # fmt: skip
    return msgspec.json.encode(document)


def _managed(method: str, operation: Doc) -> Doc:
    """An operation of control: what may go wrong on the way there is the gateway's to tell."""
    responses = {code: answer for code, answer in operation["responses"].items() if code != "default"}
    return operation | {"responses": problems(*MANAGEMENT_ERRORS, head=method == "head") | responses}


def _tagged(path: str, item: Doc) -> Doc:
    tag = next(
        (
            tag
            for start, tag in (
                ("/api/v1/jobs", "jobs"), ("/api/v1/webhooks", "jobs"), ("/api/", "management"),
                ("/e/", "calls"), ("/cog/", "cog"), ("/v1/", "openai"),
            )
            if path.startswith(start)
        ),
        "platform",
    )  # fmt: skip
    if path.startswith("/v2/"):
        tag = "openai" if "/openai/" in path else "runpod"
    return {key: value | {"tags": [tag]} if key in _METHODS else value for key, value in item.items()}
