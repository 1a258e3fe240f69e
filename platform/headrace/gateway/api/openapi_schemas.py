"""What the OpenAPI document says of bodies: schemas and shared responses."""

from __future__ import annotations

from typing import Any, get_args

from headrace.jobs.model import Priority
from headrace.jobs.state import COG_WORDS, JOB_MOVES, RUNPOD_WORDS

Doc = dict[str, Any]
TEXT: Doc = {"type": "string"}
WHOLE: Doc = {"type": "integer", "minimum": 0}
NUMBER: Doc = {"type": "number"}
BOOLEAN: Doc = {"type": "boolean"}
OBJECT: Doc = {"type": "object"}
ANY: Doc = {}


def ref(name: str) -> Doc:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Doc) -> Doc:
    """It, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(schema: Doc) -> Doc:
    """A list of it."""
    return {"type": "array", "items": schema}


def record(required: Doc, optional: Doc | None = None) -> Doc:
    """An object; members that are not named may be added later."""
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required)}


def answer(description: str, schema: Doc | None, *media: str, headers: Doc | None = None) -> Doc:
    """A response; ``media`` defaults to JSON."""
    found: Doc = {"description": description}
    if schema is not None:
        found["content"] = {name: {"schema": schema} for name in media or ("application/json",)}
    if headers:
        found["headers"] = headers
    return found


_WHY = {
    400: "Not well-formed for this route", 401: "No key, or one that is not known",
    403: "The key may not do this", 404: "Nothing there",
    405: "Another method is needed", 409: "The state of the thing does not allow it",
    413: "Too large", 415: "Another media type is needed", 422: "Does not match what is expected",
    429: "The queue is full, or the key's rate limit is reached",
    500: "The handler raised, or gave what is not JSON", 502: "The instance died",
    503: "It cannot start, has no capacity, keeps failing, or a part of the platform is away",
    504: "The deadline passed",
}  # fmt: skip


def problems(*statuses: int, head: bool = False) -> Doc:
    """Responses that are problem documents. Those to HEAD have no body."""
    if head:
        return {str(status): {"description": _WHY[status]} for status in statuses}
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}


def problems_or_own(*statuses: int) -> Doc:
    """The same, where an ASGI app may answer in its own way instead."""
    return {
        str(status): {
            "description": _WHY[status],
            "content": {"application/problem+json": {"schema": ref("Problem")}, "*/*": {"schema": ANY}},
        }
        for status in statuses
    }


def openai_problems(*statuses: int) -> Doc:
    """Responses that are errors in OpenAI's shape."""
    return {str(status): {"$ref": f"#/components/responses/OpenAIError{status}"} for status in statuses}


_RETRY: Doc = {
    "Retry-After": {
        "description": "Seconds after which it is worth trying again",
        "schema": {"type": "integer"},
    }
}


def _error(status: int, schema: str, media: str) -> Doc:
    return answer(_WHY[status], ref(schema), media, headers=_RETRY if status in (429, 503) else None)


RESPONSES: Doc = {f"Problem{s}": _error(s, "Problem", "application/problem+json") for s in _WHY} | {
    f"OpenAIError{s}": _error(s, "OpenAIError", "application/json") for s in _WHY
}

_ATTEMPT = record(
    {"number": WHOLE, "gateway": maybe(TEXT), "instance": maybe(TEXT), "started_at": maybe(NUMBER)},
    {"ended_at": maybe(NUMBER), "outcome": TEXT, "detail": maybe(TEXT)},
)
_UNDELIVERED = record(
    {
        "event": TEXT,
        "state": {"enum": ["waiting", "given_up"]},
        "tries": WHOLE,
        "next_at": maybe(NUMBER),
        "detail": TEXT,
    }
)
_FAULT = record({"message": TEXT, "type": maybe(TEXT)}, {"param": maybe(TEXT), "code": ANY})
_USAGE = record({"prompt_tokens": WHOLE, "total_tokens": WHOLE}, {"completion_tokens": WHOLE})
_MESSAGE = record({"role": TEXT}, {"content": ANY})
_SAMPLING: Doc = {
    "stream": maybe(BOOLEAN),
    "stream_options": maybe(OBJECT),
    "max_tokens": maybe({"type": "integer"}),
    "temperature": maybe(NUMBER),
    "user": TEXT,
}
_MODEL_NAME: Doc = {"type": "string", "description": "An endpoint: `name` or `name@version`", "minLength": 1}

_SECONDS: Doc = {"type": "number", "exclusiveMinimum": 0, "maximum": 604_800}

SCHEMAS: Doc = {
    "Problem": record(
        {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT},
        {"hint": TEXT, "request_id": TEXT, "errors": array(ANY), "retry_after": NUMBER},
    ),
    "OpenAIError": record({"error": _FAULT}),
    "Job": record(
        {
            "id": TEXT,
            "endpoint": TEXT,
            "version": maybe(WHOLE),
            "api": TEXT,
            "state": {"enum": list(JOB_MOVES)},
            "priority": {"enum": list(get_args(Priority))},
            "created_at": NUMBER,
            "started_at": maybe(NUMBER),
            "finished_at": maybe(NUMBER),
            "deadline_at": maybe(NUMBER),
            "attempts": {"anyOf": [WHOLE, array(_ATTEMPT)]},
            "lost": WHOLE,
            "retried": WHOLE,
            "progress": ANY,
            "reason": maybe(TEXT),
            "error": maybe(OBJECT),
            "receipt": maybe(OBJECT),
            "waiting": maybe(record({"for": TEXT, "reason": TEXT, "seconds": NUMBER}, {"until": NUMBER})),
            "output": ANY,
            "output_size": maybe(WHOLE),
            "output_type": maybe(TEXT),
        },
        {"webhooks": array(_UNDELIVERED)},
    ),
    "JobBody": record(
        {"endpoint": {"type": "string", "description": "`name` or `name@version`"}},
        {
            "input": ANY,
            "priority": maybe({"enum": list(get_args(Priority))}),
            "webhook": maybe({"anyOf": [TEXT, record({"url": TEXT}, {"events": array(TEXT)})]}),
            "ttl_s": _SECONDS,
            "execution_timeout_s": maybe(_SECONDS),
            "retention_s": maybe(_SECONDS),
            "idempotency_key": maybe({"type": "string", "maxLength": 255}),
        },
    )
    | {"additionalProperties": False},
    "Jobs": record({"items": array(ref("Job")), "next": maybe(TEXT)}),
    "RunPodInput": record(
        {"input": ANY},
        {
            "webhook": maybe({"type": "string", "format": "uri"}),
            "policy": maybe(
                record(
                    {},
                    {
                        "executionTimeout": maybe(
                            {"type": "number", "exclusiveMinimum": 0, "maximum": 604_800_000}
                        ),
                        "ttl": maybe({"type": "number", "exclusiveMinimum": 0, "maximum": 604_800_000}),
                        "lowPriority": maybe(BOOLEAN),
                    },
                )
            ),
        },
    ),
    "RunPodJob": record(
        {"id": TEXT, "status": {"enum": sorted(set(RUNPOD_WORDS.values()))}},
        {"output": ANY, "error": TEXT, "delayTime": WHOLE, "executionTime": WHOLE, "retries": WHOLE},
    ),
    "RunPodItem": record({"output": ANY, "attempt": WHOLE}),
    "RunPodStream": record(
        {"status": {"enum": sorted(set(RUNPOD_WORDS.values()))}, "stream": array(ref("RunPodItem"))}
    ),
    "RunPodHealth": record(
        {
            "jobs": record(dict.fromkeys(("completed", "failed", "inProgress", "inQueue", "retried"), WHOLE)),
            "workers": record(
                dict.fromkeys(("idle", "running", "initializing", "ready", "throttled", "unhealthy"), WHOLE)
            ),
        }
    ),
    "CogInput": record(
        {},
        {
            "input": OBJECT,
            "id": maybe({"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"}),
            "webhook": maybe({"type": "string", "format": "uri"}),
            "webhook_events_filter": maybe(array({"enum": ["start", "output", "logs", "completed"]})),
        },
    ),
    "Prediction": record(
        {
            "id": TEXT,
            "status": {"enum": sorted(set(COG_WORDS.values()))},
            "input": ANY,
            "output": ANY,
            "error": maybe(TEXT),
            "logs": TEXT,
            "metrics": OBJECT,
            "created_at": maybe(TEXT),
            "started_at": maybe(TEXT),
            "completed_at": maybe(TEXT),
        }
    ),
    "Model": record({"id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT}),
    "Models": record({"object": {"const": "list"}, "data": array(ref("Model"))}),
    "ChatRequest": record({"model": _MODEL_NAME, "messages": array(_MESSAGE)}, _SAMPLING),
    "CompletionRequest": record({"model": _MODEL_NAME, "prompt": ANY}, _SAMPLING),
    "EmbeddingRequest": record(
        {"model": _MODEL_NAME, "input": {"anyOf": [TEXT, array(TEXT)]}}, {"user": TEXT}
    ),
    "Completion": record(
        {"id": TEXT, "object": TEXT, "created": WHOLE, "model": TEXT, "choices": array(OBJECT)},
        {"usage": maybe(_USAGE)},
    ),
    "Embeddings": record({"object": TEXT, "data": array(OBJECT), "model": TEXT}, {"usage": maybe(_USAGE)}),
}
