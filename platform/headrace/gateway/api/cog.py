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
from headrace.errors import BadRequest, EndpointNotFound, NotFound, ValidationFailed
from headrace.gateway.api.exchange import TaskExchange, json_response
from headrace.gateway.api.jobs import JobsApi
from headrace.gateway.api.runpod import output_value
from headrace.gateway.auth import require
from headrace.gateway.head import MethodNotAllowed
from headrace.gateway.jobs.service import JobService
from headrace.gateway.request import Request
from headrace.jobs.events import Event
from headrace.jobs.model import ASYNC_RETENTION_S, SYNC_RETENTION_S, Job, NewJob, Webhook
from headrace.jobs.state import COG_WORDS, FINAL
from headrace.jobs.store import IdempotencyConflict

MAX_BODY = 64 << 20
ECHO_BYTES = 256 << 10
"""The input is echoed in a prediction up to this size."""
LONGEST_WAIT_S = 3600.0
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
            raise MethodNotAllowed(f"this route knows only {', '.join(m.decode() for m in allowed)}.")
        if prediction and not _ID.fullmatch(prediction):
            raise ValidationFailed("the prediction's id: use 1 to 128 of A-Z, a-z, 0-9, '_', '.' and '-'.")
        state = self._service.endpoint(record.project, name) if ":" not in name else None
        if state is None or state.route.state == "deleting":
            raise EndpointNotFound(f"no endpoint {name[:80]!r}.", hint="`headrace list` shows what there is.")
        request.key = record.id
        request.target = Route(record, name, prediction, cancel, state.route.timeout_s)
        return (
            min(MAX_BODY, state.route.max_body + ECHO_BYTES) if method != b"GET" and not cancel else 1 << 16
        )

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
        job, is_new = await self._submit(request, route)
        if JobsApi.wants_async(request):
            extra = b"Preference-Applied: respond-async\r\n"
            return json_response(
                request, 202 if is_new or job.state not in FINAL else 200, await self._document(job), extra
            )
        done = await self._service.wait(job.project, job.id, LONGEST_WAIT_S)
        return json_response(request, 200, await self._document(done or job))

    async def _submit(self, request: Request, route: Route) -> tuple[Job, bool]:
        body = _parse(request.body)
        named = route.prediction or body.id or ""
        if body.id is not None and route.prediction and body.id != route.prediction:
            raise ValidationFailed("id: the body names another prediction than the path.")
        if named and not _ID.fullmatch(named):
            raise ValidationFailed("id: use 1 to 128 of A-Z, a-z, 0-9, '_', '.' and '-'.")
        data = bytes(body.input)
        events = tuple(body.webhook_events_filter or ()) or tuple(EVENTS)
        if unknown := set(events) - set(EVENTS):
            raise ValidationFailed(f"webhook_events_filter: {sorted(unknown)} are none of {sorted(EVENTS)}.")
        waits = not JobsApi.wants_async(request)
        new = NewJob(
            id=_job_id(route, named) if named else f"cog-{secrets.token_hex(12)}",
            project=route.record.project,
            endpoint=route.endpoint,
            api="cog",
            input=await self._service.payload("application/json", data),
            key_id=route.record.id,
            fingerprint=hashlib.sha256(data).hexdigest(),
            webhook=Webhook(url=body.webhook, events=events) if body.webhook else None,
            execution_timeout_s=route.timeout_s,
            retention_s=SYNC_RETENTION_S if waits and not named else ASYNC_RETENTION_S,
            context={"name": named, "input": msgspec.Raw(data)}
            if len(data) <= ECHO_BYTES
            else {"name": named},
        )
        new = msgspec.structs.replace(new, context=msgspec.json.decode(msgspec.json.encode(new.context)))
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
        "input": job.context.get("input", {}),
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
    """What a Cog webhook carries: the prediction, with the items so far for ``output``."""
    doc = prediction(event.job, output)
    if event.chunks:
        doc["output"] = [msgspec.Raw(chunk) for chunk in event.chunks]
    return doc


def _job_id(route: Route, name: str) -> str:
    """The job of a prediction that the client named: the same name, the same job."""
    text = f"{route.record.project}/{route.endpoint}/{name}"
    return f"cog-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _parse(body: bytes) -> PredictionBody:
    try:
        return msgspec.json.decode(body, type=PredictionBody)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"the body: {error}.", hint='Send {"input": {...}}.') from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}.", hint='Send {"input": {...}}.') from None
