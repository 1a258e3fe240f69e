"""``/cog/{endpoint}/predictions...``: Cog's wire contract (Replicate's), so that its clients work.

A prediction is a job. It is made with POST, or with PUT under an id of the client's (the same id again is
the same prediction); answered when it is final, or at once with ``Prefer: respond-async``. A failure of the
handler is HTTP 200 with ``status: failed``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from headrace import wire
from headrace.errors import EndpointNotFound, NotFound, ValidationFailed
from headrace.gateway.api.exchange import TaskExchange, json_response
from headrace.gateway.api.given import (
    check_head,
    check_input,
    deadline_of,
    decode,
    key_of,
    wanted_priority,
    wrong_method,
)
from headrace.gateway.api.jobs import JobsApi
from headrace.gateway.api.runpod import left_out, output_value
from headrace.gateway.api.waiting import answered, server_timing
from headrace.gateway.auth import require
from headrace.gateway.jobs.service import JobService
from headrace.gateway.request import Request
from headrace.jobs.events import Event
from headrace.jobs.model import ASYNC_RETENTION_S, SYNC_RETENTION_S, Job, NewJob, Webhook
from headrace.jobs.state import COG_WORDS, FINAL
from headrace.jobs.store import IdempotencyConflict

MAX_BODY = 64 << 20
BESIDE_BYTES = 256 << 10
"""What may be in a body beside the input."""
ECHO_BYTES = 256 << 10
"""The input is echoed in a prediction up to this size."""
LONGEST_WAIT_S = 3600.0
DEFAULT_TTL_S = 86_400.0
EVENTS = {"start": "start", "output": "output", "logs": "logs", "completed": "completed"}
_PATH = re.compile(r"/cog/([^/]+)/predictions(?:/([^/]+)(/cancel)?)?")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class PredictionBody(msgspec.Struct):
    """Body of a prediction. Members that are not known are ignored, as Cog does."""

    input: msgspec.Raw = msgspec.Raw(b"{}")
    id: str | None = None
    webhook: str | None = None
    webhook_events_filter: tuple[str, ...] | None = None


class Route(NamedTuple):
    """What a path named."""

    record: wire.KeyRecord
    endpoint: str
    prediction: str
    cancel: bool
    timeout_s: float
    """Of the endpoint."""
    max_input: int
    """``max_body`` of the endpoint."""


class CogApi:
    """See the module."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        service.documents["cog"] = webhook_document

    @staticmethod
    def knows(path: str) -> bool:
        """Whether the path is of this contract."""
        return _PATH.fullmatch(path) is not None

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check key, endpoint and method; gives the body's limit. Raises `RequestError`."""
        found = _PATH.fullmatch(request.head.target.decode("latin-1").partition("?")[0])
        if found is None:
            raise NotFound("nothing here.")
        name, prediction, cancel = unquote(found[1]), unquote(found[2] or ""), bool(found[3])
        require(record, ("invoke",), "call endpoints")
        method = request.head.method
        allowed = (b"POST",) if cancel or not prediction else (b"GET", b"PUT")
        if method not in allowed:
            raise wrong_method(allowed)
        if prediction and not _ID.fullmatch(prediction):
            raise ValidationFailed("the prediction's id: use 1 to 128 of A-Z, a-z, 0-9, '_', '.' and '-'.")
        state = self._service.endpoint(record.project, name) if ":" not in name else None
        if state is None or state.route.state == "deleting":
            raise EndpointNotFound(f"no endpoint {name[:80]!r}.", hint="`headrace list` shows what there is.")
        request.key = record.id
        largest = state.route.max_body
        request.target = Route(record, name, prediction, cancel, state.route.timeout_s, largest)
        if method == b"GET" or cancel:
            return 1 << 16
        check_head(request.head)
        return min(MAX_BODY, largest + BESIDE_BYTES)

    def start(self, request: Request) -> None:
        """Answer a request that `admit` let in."""
        TaskExchange(request, self._answer)

    async def _answer(self, exchange: TaskExchange) -> bytes:
        request = exchange.request
        route: Route = request.target
        if route.cancel:
            job = await self._known(route)
            await self._service.cancel(job.project, job.id)
            return json_response(request, 200, {})
        if request.head.method == b"GET":
            return json_response(request, 200, await self._document(await self._known(route)))
        body = decode(request.body, PredictionBody, hint='Send {"input": {...}}.')
        job, is_new = await self._submit(request, route, body)
        if JobsApi.wants_async(request):
            extra = b"Preference-Applied: respond-async\r\n"
            return json_response(
                request, 202 if is_new or job.state not in FINAL else 200, await self._document(job), extra
            )
        # Under its id or key the client may come back, and with a webhook it hears of the end.
        nobody = not (route.prediction or body.id or body.webhook or request.head.idempotency_key)
        done = await answered(self._service, request, job, LONGEST_WAIT_S, cancel=nobody) or job
        return json_response(request, 200, await self._document(done), server_timing(done))

    async def _submit(self, request: Request, route: Route, body: PredictionBody) -> tuple[Job, bool]:
        named = route.prediction or body.id or ""
        if body.id is not None and route.prediction and body.id != route.prediction:
            raise ValidationFailed("id: the body names another prediction than the path.")
        if named and not _ID.fullmatch(named):
            raise ValidationFailed("id: use 1 to 128 of A-Z, a-z, 0-9, '_', '.' and '-'.")
        data = bytes(body.input)
        check_input(data, route.max_input)
        echo = data.decode("utf-8", "replace") if len(data) <= ECHO_BYTES else ""
        events = tuple(body.webhook_events_filter or ()) or tuple(EVENTS)
        if unknown := set(events) - set(EVENTS):
            raise ValidationFailed(f"webhook_events_filter: {sorted(unknown)} are none of {sorted(EVENTS)}.")
        waits = not JobsApi.wants_async(request)
        deadline = deadline_of(request.head)
        new = NewJob(
            id=_job_id(route, named) if named else f"cog-{secrets.token_hex(12)}",
            project=route.record.project,
            endpoint=route.endpoint,
            api="cog",
            input=self._service.payload("application/json", data),
            key_id=route.record.id,
            # A prediction that the client named has its id for a key.
            idempotency_key=None if named else key_of(request.head),
            fingerprint=_fingerprint(data),
            priority=wanted_priority(request.head) or "normal",
            webhook=Webhook(url=body.webhook, events=events) if body.webhook else None,
            # Who waits for the answer gives up then, wherever the time went.
            ttl_s=min(deadline, DEFAULT_TTL_S) if waits and deadline else DEFAULT_TTL_S,
            execution_timeout_s=min(route.timeout_s, deadline) if deadline else route.timeout_s,
            retention_s=SYNC_RETENTION_S if waits and not named else ASYNC_RETENTION_S,
            # As text: what it holds (numbers above 64 bits, NUL) is nothing to the store.
            context={"name": named, "input": echo},
        )
        job, is_new = await self._service.submit(new)
        if job.fingerprint != new.fingerprint:
            raise IdempotencyConflict(
                f"prediction {named!r} has another input.", hint="Give each prediction an id of its own."
            )
        return job, is_new

    async def _known(self, route: Route) -> Job:
        job = await self._service.get(route.record.project, route.prediction)
        if job is None:
            job = await self._service.get(route.record.project, _job_id(route, route.prediction))
        if job is None or job.endpoint != route.endpoint:
            raise NotFound(
                f"no prediction {route.prediction!r} of endpoint {route.endpoint!r}.",
                hint="Predictions are kept for 30 min after their end.",
            )
        return job

    async def _document(self, job: Job) -> dict[str, Any]:
        output = await self._service.body(job.output) if job.output is not None else None
        return prediction(job, output)


def prediction(job: Job, output: bytes | None) -> dict[str, Any]:
    """A job as Cog shows it."""
    doc: dict[str, Any] = {
        "id": job.context.get("name") or job.id,
        "status": COG_WORDS[job.state],
        "input": msgspec.Raw(str(job.context.get("input") or "{}").encode()),
        "output": output_value(job.output, output) if job.output is not None and output is not None else None,
        "error": None,
        "logs": "",
        "metrics": {},
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "completed_at": _time(job.finished_at),
    }
    if job.error is not None and job.state in ("failed", "timed_out"):
        doc["error"] = str(job.error.get("detail") or job.error.get("title") or "failed")
    elif job.state == "timed_out":
        doc["error"] = job.reason or "timed out"
    if job.started_at is not None and job.finished_at is not None:
        doc["metrics"] = {"predict_time": round(job.finished_at - job.started_at, 6)}
    return doc


def webhook_document(event: Event, output: bytes | None) -> dict[str, Any]:
    """What a Cog webhook carries: the prediction, while it runs with the items so far for ``output`` (null
    when they are above 1 MiB)."""
    doc = prediction(event.job, output)
    if event.job.output is not None and output is None:
        doc["error"] = left_out(event.job.id, event.job.output)
    if event.chunks:
        doc["output"] = [msgspec.Raw(chunk) for chunk in event.chunks]
    return doc


def _job_id(route: Route, name: str) -> str:
    """The job of a prediction that the client named: the same name, the same job."""
    text = f"{route.record.project}/{route.endpoint}/{name}"
    return f"cog-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _fingerprint(data: bytes) -> str:
    """The same for the same input, however it is spaced and its members are ordered (but a large one)."""
    if len(data) <= ECHO_BYTES:
        data = msgspec.json.encode(decode(data, object, what="the input"), order="sorted")
    return hashlib.sha256(data).hexdigest()
