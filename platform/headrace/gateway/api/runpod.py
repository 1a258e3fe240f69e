"""``/v2/{endpoint}/...``: RunPod's wire contract, so that its unmodified client works.

Facts that the client depends on: ``run`` never waits; statuses are RunPod's words; ``stream`` answers an
object with both keys, gives each item once, and knows no CANCELLED (its loop would never end): FAILED there.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, unquote

import msgspec

from headrace import wire
from headrace.errors import (
    BodyTooLarge,
    Conflict,
    EndpointNotFound,
    MethodNotAllowed,
    NotFound,
    ValidationFailed,
)
from headrace.gateway.api.exchange import TaskExchange, json_response
from headrace.gateway.api.given import (
    check_head,
    check_input,
    deadline_of,
    decode,
    key_of,
    wanted_priority,
)
from headrace.gateway.api.waiting import answered, server_timing
from headrace.gateway.auth import require
from headrace.gateway.jobs.documents import is_json
from headrace.gateway.jobs.service import JobService, Workers
from headrace.gateway.request import Request
from headrace.jobs.events import Event
from headrace.jobs.model import ASYNC_RETENTION_S, SYNC_RETENTION_S, Job, NewJob, Payload, Webhook
from headrace.jobs.state import FINAL, RETRYABLE, RUNPOD_WORDS

RUN_BYTES = 10_000_000
RUNSYNC_BYTES = 20_000_000
DEFAULT_WAIT_MS, SHORTEST_WAIT_MS, LONGEST_WAIT_MS = 90_000, 1_000, 300_000
BESIDE_BYTES = 256 << 10
"""What may be in a body beside the input."""
DEFAULT_TTL_S = 86_400.0
SYNC_ID = "sync-"
"""So the ids of ``runsync`` begin."""
STREAM_ITEMS = 1000
"""Items in one answer of ``stream``."""
_PATH = re.compile(r"/v2/([^/]+)/(run|runsync|purge-queue|health|status|stream|cancel|retry)(?:/([^/]+))?")
_GET = frozenset({"health", "status", "stream"})
_WITH_ID = frozenset({"status", "stream", "cancel", "retry"})

Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400_000)]


class Policy(msgspec.Struct):
    """RunPod's execution policy; times in milliseconds."""

    executionTimeout: Milliseconds | None = None
    ttl: Milliseconds | None = None
    lowPriority: bool | None = None


class RunBody(msgspec.Struct):
    """Body of ``run`` and ``runsync``. Members that are not known are ignored, as RunPod does."""

    input: msgspec.Raw
    webhook: str | None = None
    policy: Policy | None = None


class Route(NamedTuple):
    """What a path named."""

    record: wire.KeyRecord
    endpoint: str
    action: str
    job_id: str
    wait_s: float
    max_input: int
    """``max_body`` of the endpoint."""
    timeout_s: float
    """Of the endpoint."""


class RunpodApi:
    """See the module."""

    def __init__(self, service: JobService) -> None:
        self._service = service
        service.documents["runpod"] = webhook_document

    @staticmethod
    def knows(path: str) -> bool:
        """Whether the path is of this contract."""
        return _PATH.fullmatch(path) is not None

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check key, endpoint and method; gives the body's limit. Raises `RequestError`."""
        path, _, query = request.head.target.decode("latin-1").partition("?")
        found = _PATH.fullmatch(path)
        if found is None:
            raise NotFound("nothing here.")
        name, action, job_id = unquote(found[1]), found[2], unquote(found[3] or "")
        require(record, ("invoke",), "call endpoints")
        if bool(job_id) != (action in _WITH_ID):
            raise NotFound(f"{action} {'takes' if action in _WITH_ID else 'takes no'} job id in its path.")
        method = request.head.method
        if method != (b"GET" if action in _GET else b"POST"):
            wanted = "GET" if action in _GET else "POST"
            raise MethodNotAllowed(f"{action} is a {wanted} request.", allow=[wanted])
        state = self._service.endpoint(record.project, name) if ":" not in name else None
        if state is None or state.route.state == "deleting":
            raise EndpointNotFound(f"no endpoint {name[:80]!r}.", hint="`headrace list` shows what there is.")
        wait_s = _wait(query) if action == "runsync" else 0.0
        largest, longest = state.route.max_body, state.route.timeout_s
        request.key = record.id
        request.target = Route(record, name, action, job_id, wait_s, largest, longest)
        if action not in ("run", "runsync"):
            return 1 << 16
        check_head(request.head)
        return min(RUN_BYTES if action == "run" else RUNSYNC_BYTES, largest + BESIDE_BYTES)

    def start(self, request: Request) -> None:
        """Answer a request that `admit` let in."""
        TaskExchange(request, self._answer)

    async def _answer(self, exchange: TaskExchange) -> bytes:
        request = exchange.request
        route: Route = request.target
        project, service = route.record.project, self._service
        match route.action:
            case "run" | "runsync":
                return await self._run(request, route)
            case "status":
                found = await self._document(await self._job(route))
            case "stream":
                found = await self._stream(await self._job(route))
            case "cancel":
                await self._job(route)
                job = await service.cancel(project, route.job_id)
                found = {"id": route.job_id, "status": RUNPOD_WORDS[job.state] if job else "CANCELLED"}
            case "retry":
                found = await self._retry(route)
            case "purge-queue":
                found = {"removed": await service.purge(project, route.endpoint), "status": "completed"}
            case _:
                found = await self._health(route)
        return json_response(request, 200, found)

    async def _run(self, request: Request, route: Route) -> bytes:
        sync = route.action == "runsync"
        body = decode(request.body, RunBody, hint='Send {"input": ...}.')
        policy = body.policy or Policy()
        key, deadline = key_of(request.head), deadline_of(request.head)
        data = bytes(body.input)
        check_input(data, route.max_input)
        ttl = policy.ttl / 1000 if policy.ttl else DEFAULT_TTL_S
        longest = min((policy.executionTimeout or math.inf) / 1000, route.timeout_s)
        new = NewJob(
            id=f"{SYNC_ID if sync else ''}{secrets.token_hex(16)}",
            project=route.record.project,
            endpoint=route.endpoint,
            api="runpod",
            input=self._service.payload("application/json", data),
            key_id=route.record.id,
            idempotency_key=key,
            fingerprint=hashlib.sha256(data).hexdigest() if key else "",
            priority=wanted_priority(request.head) or ("low" if policy.lowPriority else "normal"),
            webhook=Webhook(url=body.webhook) if body.webhook else None,
            # Who waits for the answer gives up then, wherever the time went.
            ttl_s=min(ttl, deadline) if sync and deadline else ttl,
            execution_timeout_s=min(longest, deadline) if deadline else longest,
            retention_s=SYNC_RETENTION_S if sync else ASYNC_RETENTION_S,
        )
        job, _ = await self._service.submit(new)
        if not sync:
            return json_response(request, 200, {"id": job.id, "status": RUNPOD_WORDS[job.state]})
        # With a key the client may come back, and with a webhook it hears of the end.
        nobody = key is None and body.webhook is None
        done = await answered(self._service, request, job, route.wait_s, cancel=nobody)
        if done is None or done.state not in FINAL:
            return json_response(request, 200, {"id": job.id, "status": "IN_PROGRESS"})
        return json_response(request, 200, await self._document(done), server_timing(done))

    async def _stream(self, job: Job) -> dict[str, Any]:
        """The items of the newest attempt that no gateway has given yet. What is there when the job is final
        is all. ``attempt`` is ours: where it changes, the items before it are void."""
        chunks = await self._service.store.take_chunks(job.id, limit=STREAM_ITEMS)
        status = "FAILED" if job.state == "cancelled" else RUNPOD_WORDS[job.state]
        items = [{"output": msgspec.Raw(chunk.data), "attempt": chunk.attempt} for chunk in chunks]
        return {"status": status, "stream": items}

    async def _retry(self, route: Route) -> dict[str, Any]:
        job = await self._job(route)
        if job.state not in RETRYABLE:
            raise Conflict(
                f"job {job.id} is {RUNPOD_WORDS[job.state]}: only FAILED and TIMED_OUT jobs run again."
            )
        again = await self._service.retry(job.project, job.id)
        return {"id": job.id, "status": RUNPOD_WORDS[again.state] if again else "IN_QUEUE"}

    async def _health(self, route: Route) -> dict[str, Any]:
        counts = await self._service.counts(route.record.project, route.endpoint)
        state = self._service.endpoint(route.record.project, route.endpoint)
        slots = max((i.concurrency for i in state.instances.values()), default=1) if state else 1
        workers = spread(self._service.workers(route.record.project, route.endpoint), counts.running, slots)
        return {
            "jobs": {
                "completed": counts.succeeded,
                "failed": counts.failed + counts.timed_out,
                "inProgress": counts.running,
                "inQueue": counts.queued,
                "retried": counts.retried,
            },
            "workers": workers._asdict(),
        }

    async def _job(self, route: Route) -> Job:
        job = await self._service.get(route.record.project, route.job_id)
        if job is None or job.endpoint != route.endpoint:
            raise NotFound(
                f"no job {route.job_id[:80]!r} of endpoint {route.endpoint!r}.",
                hint="Jobs are kept for 30 min after their end, those of runsync for 1 min.",
            )
        return job

    async def _document(self, job: Job) -> dict[str, Any]:
        output: bytes | None = None
        if job.output is not None:
            limit = RUNSYNC_BYTES if job.id.startswith(SYNC_ID) else RUN_BYTES
            if job.output.size > limit:
                raise BodyTooLarge(
                    f"the result of job {job.id} has {job.output.size} bytes, above {limit}.",
                    hint=f"GET /api/v1/jobs/{job.id}/output gives it whole.",
                    limit=limit,
                )
            output = await self._service.body(job.output)
        return job_document(job, output)


def job_document(job: Job, output: bytes | None) -> dict[str, Any]:
    """A job as RunPod shows it; times in milliseconds."""
    doc: dict[str, Any] = {"id": job.id, "status": RUNPOD_WORDS[job.state]}
    if job.started_at is not None:
        doc["delayTime"] = max(0, round((job.started_at - job.created_at) * 1000))
        if job.finished_at is not None:
            doc["executionTime"] = max(0, round((job.finished_at - job.started_at) * 1000))
    if job.retried:
        doc["retries"] = job.retried
    if job.progress is not None and job.state == "running":
        doc["output"] = job.progress
    if job.output is not None and output is not None:
        doc["output"] = output_value(job.output, output)
    if job.error is not None:
        doc["error"] = str(job.error.get("detail") or job.error.get("title") or "failed")
    return doc


def spread(workers: Workers, jobs: int, slots: int) -> Workers:
    """The workers that one gateway sees, with at least as many running as all gateways' jobs need; ``slots``:
    what one runs at once. What other gateways call without a job is not seen."""
    running = min(workers.ready, max(workers.running, math.ceil(jobs / slots)))
    return workers._replace(running=running, idle=workers.ready - running)


def webhook_document(event: Event, output: bytes | None) -> dict[str, Any]:
    """What a RunPod webhook carries. Of an output that is too large for one it says so, and where it is."""
    doc = job_document(event.job, output)
    if event.job.output is not None and output is None:
        doc["error"] = left_out(event.job.id, event.job.output)
    return doc


def left_out(job_id: str, output: Payload) -> str:
    """What a webhook says in place of an output that it does not carry."""
    return f"the output has {output.size} bytes, too many for a webhook: GET /api/v1/jobs/{job_id}/output"


def output_value(payload: Payload, data: bytes) -> Any:
    """JSON as it is, text as a string, other bytes in base64 (msgspec's form of bytes)."""
    if is_json(payload.content_type):
        return msgspec.Raw(data or b"null")
    if payload.content_type.startswith("text/"):
        return data.decode("utf-8", "replace")
    return data


def _wait(query: str) -> float:
    text = parse_qs(query, max_num_fields=50).get("wait", [str(DEFAULT_WAIT_MS)])[-1]
    if not (text.isascii() and text.isdigit() and SHORTEST_WAIT_MS <= int(text[:12]) <= LONGEST_WAIT_MS):
        raise ValidationFailed(f"wait: use milliseconds from {SHORTEST_WAIT_MS} to {LONGEST_WAIT_MS}.")
    return int(text) / 1000
