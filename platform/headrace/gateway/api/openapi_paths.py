"""The paths that the gateway answers by itself, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from headrace.gateway.api.openapi_schemas import (
    ANY,
    OBJECT,
    TEXT,
    WHOLE,
    answer,
    openai_problems,
    problems,
    problems_or_own,
    record,
    ref,
)

Doc = dict[str, Any]
_CALL = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504)
_API = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503)
_JOB_STATES = "queued, running, succeeded, failed, cancelled or timed_out; several with commas"


def _path(name: str, about: str = "") -> Doc:
    found: Doc = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return found | {"description": about} if about else found


def _query(name: str, about: str, schema: Doc) -> Doc:
    return {"name": name, "in": "query", "required": False, "description": about, "schema": schema}


def _header(name: str, about: str, schema: Doc) -> Doc:
    return {"name": name, "in": "header", "required": False, "description": about, "schema": schema}


_WAIT = _query("wait", "Seconds to wait for its end", {"type": "number", "minimum": 0, "maximum": 300})
_KEY = _header(
    "Idempotency-Key",
    "The same key gives the same answer",
    {"type": "string", "minLength": 1, "maxLength": 255},
)
_UNSTORED = _header(
    "X-Headrace-If-Unstored",
    "What is done with a call with a key while the job store takes nothing",
    {"type": "string", "enum": ["run"]},
)
_TIMEOUT = _header(
    "X-Headrace-Timeout", "Seconds until the caller gives up", {"type": "number", "exclusiveMinimum": 0}
)
_PRIORITY = _header(
    "X-Headrace-Priority", "Its place in the queue", {"type": "string", "enum": ["low", "normal", "high"]}
)
_PREFER = _header("Prefer", "Answer at once", {"type": "string", "enum": ["respond-async"]})
_ENDPOINT = _path("endpoint", "Its name")


def _op(
    id: str,
    summary: str,
    responses: Doc,
    *parameters: Doc,
    body: Doc | None = None,
    media: tuple[str, ...] = ("application/json",),
    required: bool = True,
) -> Doc:
    found: Doc = {"operationId": id, "summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = {"required": required, "content": {name: {"schema": body} for name in media}}
    return found


def _call(id: str, summary: str, *parameters: Doc, body: bool) -> Doc:
    responses = {
        "200": answer(
            "What the handler returned; a stream of what it yielded",
            ANY,
            "application/json", "application/x-ndjson", "text/event-stream", "application/octet-stream",
            "*/*",
        ),
        "202": answer("With `Prefer: respond-async`: the stored job", ref("Job")),
        "default": answer("Whatever an ASGI app answers", ANY, "*/*"),
        **problems_or_own(*_CALL),
    }  # fmt: skip
    given = (*parameters, _TIMEOUT, _PRIORITY, *((_KEY, _UNSTORED, _PREFER) if body else ()))
    return _op(id, summary, responses, *given, body=ANY if body else None, required=False)


_NAMED = _path("endpoint", "`name` or `name@version`")
_BELOW = _path("path", "Of an ASGI app; may have several segments")
_CALLS: Doc = {
    "/e/{endpoint}": {
        "get": _call("call_get", "Call an endpoint; the query holds the arguments", _NAMED, body=False),
        "post": _call("call", "Call an endpoint", _NAMED, body=True),
    },
    "/e/{endpoint}/{path}": {
        "get": _call("call_path_get", "GET a path of an ASGI app", _NAMED, _BELOW, body=False),
        "post": _call("call_path", "POST to a path of an ASGI app", _NAMED, _BELOW, body=True),
    },
}

_JOB = {"200": answer("The job", ref("Job")), **problems(*_API)}
_ID = _path("id", "The job's id")
_JOBS: Doc = {
    "/api/v1/jobs": {
        "get": _op(
            "list_jobs", "List jobs, newest first",
            {"200": answer("A page", ref("Jobs")), **problems(*_API)},
            _query("endpoint", "Only of this endpoint", TEXT), _query("state", _JOB_STATES, TEXT),
            _query("limit", "At most so many", {"type": "integer", "minimum": 1, "maximum": 1000}),
            _query("cursor", "`next` of the page before", TEXT),
        ),
        "post": _op(
            "submit_job", "Submit a job; answered when it is stored",
            {
                "202": answer(
                    "The stored job", ref("Job"),
                    headers={"Location": {"schema": TEXT}, "Idempotent-Replayed": {"schema": TEXT}},
                ),
                **problems(*_API),
            },
            _KEY, _TIMEOUT, _PRIORITY, body=ref("JobBody"),
        ),
    },
    "/api/v1/jobs/{id}": {"get": _op("show_job", "A job, or a request by its id", _JOB, _ID, _WAIT)},
    "/api/v1/jobs/{id}/output": {
        "get": _op(
            "job_output", "The output alone", {"200": answer("As it is", ANY, "*/*"), **problems(*_API)},
            _ID, _WAIT,
        )
    },
    "/api/v1/jobs/{id}/stream": {
        "get": _op(
            "job_stream", "Its stream items, also while it runs",
            {"200": answer("Items", ANY, "text/event-stream", "application/x-ndjson"), **problems(*_API)},
            _ID, _query("after", "`attempt.seq` of the last item that is known", TEXT),
            _query("format", "ndjson: one item per line", {"type": "string", "enum": ["sse", "ndjson"]}),
        )
    },
    "/api/v1/jobs/{id}/cancel": {"post": _op("cancel_job", "Cancel a job or a request", _JOB, _ID)},
    "/api/v1/jobs/{id}/retry": {"post": _op("retry_job", "Run a failed or timed-out job again", _JOB, _ID)},
    "/api/v1/endpoints/{name}/purge": {
        "post": _op(
            "purge_jobs", "Remove an endpoint's queued jobs",
            {"200": answer("How many", record({"endpoint": TEXT, "removed": WHOLE})), **problems(*_API)},
            _path("name"),
        )
    },
    "/api/v1/webhooks/secret": {
        "get": _op(
            "webhook_secret", "What webhooks are signed with",
            {"200": answer("The secret (Standard Webhooks)", record({"key": TEXT})), **problems(*_API)},
        )
    },
}  # fmt: skip

_GIVEN = (_KEY, _TIMEOUT, _PRIORITY)
_TIMED = {"Server-Timing": {"schema": TEXT}}
_TIMED_JOB = answer("The job, with its receipt when it has ended", ref("RunPodJob"), headers=_TIMED)
_RUNPOD_JOB = {"200": answer("The job", ref("RunPodJob")), **problems(*_API)}
_MS: Doc = {"type": "integer", "minimum": 1000, "maximum": 300_000}
_RUNPOD: Doc = {
    "/v2/{endpoint}/run": {
        "post": _op("runpod_run", "Submit", _RUNPOD_JOB, _ENDPOINT, *_GIVEN, body=ref("RunPodInput"))
    },
    "/v2/{endpoint}/runsync": {
        "post": _op(
            "runpod_runsync", "Submit and wait", {**_RUNPOD_JOB, "200": _TIMED_JOB}, _ENDPOINT,
            _query("wait", "Milliseconds", _MS), *_GIVEN, body=ref("RunPodInput"),
        )
    },
    "/v2/{endpoint}/status/{id}": {"get": _op("runpod_status", "Status", _RUNPOD_JOB, _ENDPOINT, _ID)},
    "/v2/{endpoint}/stream/{id}": {
        "get": _op(
            "runpod_stream", "Items that were not given yet",
            {"200": answer("Items", ref("RunPodStream")), **problems(*_API)}, _ENDPOINT, _ID,
        )
    },
    "/v2/{endpoint}/cancel/{id}": {"post": _op("runpod_cancel", "Cancel", _RUNPOD_JOB, _ENDPOINT, _ID)},
    "/v2/{endpoint}/retry/{id}": {"post": _op("runpod_retry", "Run again", _RUNPOD_JOB, _ENDPOINT, _ID)},
    "/v2/{endpoint}/purge-queue": {
        "post": _op(
            "runpod_purge", "Remove what is queued",
            {
                "200": answer("How many", record({"removed": WHOLE, "status": {"const": "completed"}})),
                **problems(*_API),
            },
            _ENDPOINT,
        )
    },
    "/v2/{endpoint}/health": {
        "get": _op(
            "runpod_health", "Jobs and workers",
            {"200": answer("Counts", ref("RunPodHealth")), **problems(*_API)}, _ENDPOINT,
        )
    },
}  # fmt: skip

_PREDICTED = {"200": answer("The prediction", ref("Prediction"), headers=_TIMED), **problems(*_API)}
_ACCEPTED = _PREDICTED | {"202": answer("It has begun", ref("Prediction"))}
_PREDICTION = {
    "name": "id", "in": "path", "required": True, "description": "The prediction's",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$"},
}  # fmt: skip
_COG: Doc = {
    "/cog/{endpoint}/predictions": {
        "post": _op("cog_predict", "Predict", _ACCEPTED, _ENDPOINT, _PREFER, *_GIVEN, body=ref("CogInput"))
    },
    "/cog/{endpoint}/predictions/{id}": {
        "get": _op("cog_get", "A prediction", _PREDICTED, _ENDPOINT, _PREDICTION),
        "put": _op(
            "cog_put", "Predict under an id; the same id again is the same prediction", _ACCEPTED,
            _ENDPOINT, _PREDICTION, _PREFER, _TIMEOUT, _PRIORITY, body=ref("CogInput"),
        ),
    },
    "/cog/{endpoint}/predictions/{id}/cancel": {
        "post": _op(
            "cog_cancel", "Cancel", {"200": answer("An empty object", OBJECT), **problems(*_API)},
            _ENDPOINT, _PREDICTION,
        )
    },
}  # fmt: skip


def _health(id: str, summary: str, schema: Doc, ready: bool = False) -> Doc:
    """Without a key."""
    responses = {"200": answer("OK", schema), **problems(405)}
    if ready:
        responses["503"] = answer("Not ready", record({"status": TEXT, "reason": TEXT}))
    return {"get": _op(id, summary, responses) | {"security": []}}


_PLATFORM: Doc = {
    "/": {
        "get": _op(
            "root", "What this is",
            {
                "200": answer("OK", record({"name": TEXT, "version": TEXT})),
                **problems(401, 403, 405, 429, 503),
            },
        )
    },
    "/healthz": _health("healthz", "The gateway lives", record({"status": TEXT})),
    "/readyz": _health("readyz", "It takes requests", record({"status": TEXT}), ready=True),
    "/metrics": {
        "get": _op(
            "metrics", "Prometheus metrics; scope `metrics`",
            {
                "200": answer("Metrics", TEXT, "text/plain", "application/openmetrics-text"),
                **problems(401, 403, 405, 429, 503),
            },
        )
    },
}  # fmt: skip
PATHS: Doc = _CALLS | _JOBS | _RUNPOD | _COG | _PLATFORM

_OPENAI_ERRORS = openai_problems(*_CALL, 405)


def _openai(prefix: str, under: str, *parameters: Doc) -> Doc:
    """The same paths, below an endpoint's or by themselves."""

    def call(id: str, summary: str, body: str, gives: str, *, stream: bool) -> Doc:
        found = answer("What the endpoint answers", ref(gives))
        if stream:
            found["content"]["text/event-stream"] = {"schema": ANY}
        responses = {
            "200": found,
            "4XX": answer("An error of the endpoint's own", ANY, "application/json", "*/*"),
            **_OPENAI_ERRORS,
        }
        given = (*parameters, _TIMEOUT, _PRIORITY, _KEY, _UNSTORED)
        return {"post": _op(under + id, summary, responses, *given, body=ref(body))}

    models = {"200": answer("Endpoints that the key may call", ref("Models")), **_OPENAI_ERRORS}
    model = {"200": answer("The model", ref("Model")), **_OPENAI_ERRORS}
    chat = call("chat", "Chat; `stream` as server-sent events", "ChatRequest", "Completion", stream=True)
    return {
        f"{prefix}/v1/chat/completions": chat,
        f"{prefix}/v1/completions": call(
            "completions", "Go on with a text", "CompletionRequest", "Completion", stream=True
        ),
        f"{prefix}/v1/embeddings": call(
            "embeddings", "Vectors of texts", "EmbeddingRequest", "Embeddings", stream=False
        ),
        f"{prefix}/v1/models": {"get": _op(under + "models", "List models", models, *parameters)},
        f"{prefix}/v1/models/{{model}}": {
            "get": _op(under + "model", "One model", model, *parameters, _path("model"))
        },
    }


OPENAI_PATHS: Doc = _openai("", "openai_") | _openai("/v2/{endpoint}/openai", "runpod_openai_", _ENDPOINT)
