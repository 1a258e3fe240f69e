"""The native jobs API, served by the gateway itself: ``/api/v1/jobs...``, ``/api/v1/endpoints/{name}/purge``,
and calls to ``/e/{endpoint}`` with ``Prefer: respond-async``."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec

from headrace import wire
from headrace.errors import (
    Conflict,
    EndpointNotFound,
    Forbidden,
    NotFound,
    ValidationFailed,
    VersionNotFound,
)
from headrace.gateway.api.exchange import TaskExchange, json_response
from headrace.gateway.api.given import (
    check_input,
    checked_key,
    deadline_of,
    decode,
    key_of,
    wanted_priority,
    wrong_method,
)
from headrace.gateway.api.native import Target
from headrace.gateway.api.plain import PlainCalls
from headrace.gateway.auth import may_call, require, require_endpoint
from headrace.gateway.jobs.attempt import FORWARD
from headrace.gateway.jobs.lanes import SYNC_PREFIX
from headrace.gateway.jobs.service import JobService
from headrace.gateway.request import Request
from headrace.gateway.respond import response
from headrace.jobs.model import NewJob, Payload, Priority, Webhook
from headrace.jobs.state import FINAL, JOB_MOVES, RETRYABLE, JobState
from headrace.jobs.store import StoreUnavailable

MAX_BODY = 64 << 20
MAX_WAIT_S = 300.0
DEFAULT_TTL_S = 86_400.0
_ROUTES = re.compile(
    rb"/api/v1/(?:(jobs)(?:/([^/]+)(?:/(output|stream|cancel|retry))?)?|endpoints/([^/]+)/purge"
    rb"|(webhooks/secret))"
)
_METHODS = {"jobs": (b"GET", b"POST"), "cancel": (b"POST",), "retry": (b"POST",), "purge": (b"POST",)}
_CURSOR = re.compile(r"[0-9]{1,19}")
_PREFER_ASYNC = re.compile(rb"(?:^|[,;\s])respond-async(?:$|[,;\s])", re.IGNORECASE)
_WEBHOOK_EVENTS = frozenset({"start", "output", "logs", "completed"})

Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400)]
Found = TypeVar("Found")


class WebhookBody(msgspec.Struct, forbid_unknown_fields=True):
    """Whom to tell."""

    url: str
    events: tuple[str, ...] = ()


class JobBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/jobs``."""

    endpoint: str
    """``name`` or ``name@version``."""
    input: msgspec.Raw = msgspec.Raw(b"{}")
    priority: Priority | None = None
    webhook: str | WebhookBody | None = None
    ttl_s: Seconds = DEFAULT_TTL_S
    execution_timeout_s: Seconds | None = None
    retention_s: Seconds | None = None
    idempotency_key: str | None = None


class Route(NamedTuple):
    """What a path named."""

    record: wire.KeyRecord
    kind: str
    """``jobs``, ``job``, ``output``, ``stream``, ``cancel``, ``retry``, ``purge`` or ``secret``."""
    name: str = ""
    """Of the job, or of the endpoint."""


class JobsApi:
    """See the module."""

    def __init__(self, service: JobService, plain: PlainCalls) -> None:
        self._service = service
        self._plain = plain

    @staticmethod
    def knows(path: bytes) -> bool:
        """Whether the path (without its query) is one of these; others under ``/api/v1`` are control's."""
        return _ROUTES.fullmatch(path) is not None

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check key and method; gives the body's limit. Raises `RequestError`."""
        found = _ROUTES.fullmatch(request.head.target.partition(b"?")[0])
        if found is None:
            raise NotFound("nothing here.")
        _, job_id, action, endpoint, secret = found.groups()
        if secret:
            route = Route(record, "secret")
            require(record, ("deploy",), "read the webhook secret")
        else:
            require(record, ("invoke",), "use jobs")
            if endpoint is not None:
                route = Route(record, "purge", unquote(endpoint.decode("latin-1")))
            elif job_id is None:
                route = Route(record, "jobs")
            else:
                kind = action.decode() if action else "job"
                route = Route(record, kind, unquote(job_id.decode("latin-1")))
        allowed = _METHODS.get(route.kind, (b"GET",))
        method = b"GET" if request.head.method == b"HEAD" else request.head.method
        if method not in allowed:
            raise wrong_method(allowed, also=["HEAD"] if b"GET" in allowed else ())
        request.key = record.id
        request.target = route
        return MAX_BODY if method == b"POST" else 0

    def start(self, request: Request) -> None:
        """Answer a request that `admit` let in."""
        TaskExchange(request, self._answer)

    @staticmethod
    def wants_async(request: Request) -> bool:
        """Whether a call to ``/e/`` is to become a job."""
        prefer = request.head.prefer
        return bool(prefer) and _PREFER_ASYNC.search(prefer) is not None

    def start_call(self, request: Request, target: Target, project: str) -> None:
        """Make a job of a call to ``/e/``."""

        async def work(exchange: TaskExchange) -> bytes:
            head = request.head
            content_type = head.content_type.decode("latin-1")
            key = key_of(head)
            new = self._new_job(
                request, project, target, Payload(content_type=content_type, data=request.body), key
            )
            new = msgspec.structs.replace(
                new,
                method=head.method.decode("latin-1"),
                path=target.path.decode("latin-1"),
                priority=target.priority,
                execution_timeout_s=target.timeout_s,
                # Of the caller's headers a handler of its own needs them; a function's are ours.
                context={FORWARD: head.forward.decode("latin-1")}
                if target.state.route.handler == "asgi"
                else {},
            )
            return await self._submitted(request, new)

        TaskExchange(request, work)

    # -- routes -----------------------------------------------------------------------------------

    async def _answer(self, exchange: TaskExchange) -> bytes | None:  # noqa: PLR0911 - one per route
        request = exchange.request
        route: Route = request.target
        project = route.record.project
        if route.record.endpoints:
            await self._guard(request, route)
        match route.kind:
            case "jobs" if request.head.method == b"POST":
                return await self._create(request, project)
            case "jobs":
                return await self._list(request, project)
            case "job":
                return await self._one(request, project, route.name)
            case "output":
                return await self._output(request, project, route.name)
            case "stream":
                await self._stream(exchange, project, route.name)
                return None
            case "cancel" | "retry":
                return await self._move(request, project, route)
            case "secret":
                webhooks = self._service.webhooks
                if webhooks is None:
                    _ = self._service.store  # raises StoreUnavailable
                    raise NotFound("no webhooks here.")
                return json_response(request, 200, {"key": webhooks.secret(project)})
        count = await self._service.purge(project, route.name)
        if not count and self._service.endpoint(project, route.name) is None:
            raise EndpointNotFound(
                f"no endpoint {route.name[:80]!r}.", hint="`headrace list` shows what there is."
            )
        return json_response(request, 200, {"endpoint": route.name, "removed": count})

    async def _guard(self, request: Request, route: Route) -> None:
        """A key with a list of endpoints knows no jobs of others. Raises `Forbidden`, `NotFound`."""
        record = route.record
        if route.kind == "jobs":
            if request.head.method != b"POST":
                name = _query(request).get("endpoint", "")
                if not name:
                    raise Forbidden(
                        "this key sees jobs of some endpoints only.", hint="Ask with ?endpoint=NAME."
                    )
                require_endpoint(record, name)
        elif route.kind not in ("purge", "secret"):
            if (plain := await self._unstored(record.project, route.name)) is not None:
                name = str(plain["endpoint"])
            else:
                job = _known(await self._service.get(record.project, route.name), route.name)
                name = job.endpoint.removeprefix(SYNC_PREFIX)
            if not may_call(record, name):
                _known(None, route.name)

    async def _unstored(self, project: str, job_id: str) -> dict[str, Any] | None:
        """A call that only a gateway knows, this one or another."""
        found = self._plain.find(project, job_id)
        if found is None and not self._plain.elsewhere(job_id):
            return None
        away: StoreUnavailable | None = None
        try:
            if await self._service.get(project, job_id) is not None:
                return None
        except StoreUnavailable as error:
            away = error
        found = found or await self._plain.ask(project, job_id)
        if found is None and away is not None:
            raise away
        return found

    async def _create(self, request: Request, project: str) -> bytes:
        body = decode(request.body, JobBody, what="the job")
        head = request.head
        name, at, wanted = body.endpoint.partition("@")
        require_endpoint(request.target.record, name)
        state = self._service.endpoint(project, name) if ":" not in name else None
        if state is None or state.route.state == "deleting":
            raise EndpointNotFound(f"no endpoint {name[:80]!r}.", hint="`headrace list` shows what there is.")
        version: int | None = None
        if at:
            known = state.route.versions or (state.route.version,)
            if not wanted.isascii() or not wanted.isdigit() or len(wanted) > 9 or int(wanted) not in known:
                raise VersionNotFound(
                    f"endpoint {name} has no version {wanted[:40]!r}.", versions=sorted(known)
                )
            version = int(wanted)
        data = bytes(body.input)
        check_input(data, state.route.max_body)
        # What the body says counts more than what the headers say.
        deadline, priority = deadline_of(head), wanted_priority(head)
        timeout_s = body.execution_timeout_s or min(deadline or math.inf, state.route.timeout_s)
        priority = body.priority or priority or "normal"
        target = Target(state, version, b"/", timeout_s, False, priority)
        key = key_of(head)
        if key and body.idempotency_key and key != body.idempotency_key:
            raise ValidationFailed("two different idempotency keys, one in the body and one in the header.")
        key = checked_key(key or body.idempotency_key or None)
        new = self._new_job(request, project, target, Payload(data=data), key)
        changes: dict[str, Any] = {"ttl_s": body.ttl_s, "execution_timeout_s": timeout_s}
        if body.retention_s is not None:
            changes["retention_s"] = body.retention_s
        if body.webhook is not None:
            hook = WebhookBody(body.webhook) if isinstance(body.webhook, str) else body.webhook
            if unknown := set(hook.events) - _WEBHOOK_EVENTS:
                raise ValidationFailed(
                    f"webhook.events: {sorted(unknown)} are none of {sorted(_WEBHOOK_EVENTS)}."
                )
            changes["webhook"] = Webhook(url=hook.url, events=hook.events)
        return await self._submitted(request, msgspec.structs.replace(new, **changes))

    def _new_job(
        self, request: Request, project: str, target: Target, body: Payload, key: str | None
    ) -> NewJob:
        digest = hashlib.sha256()
        for part in (request.head.method, target.path, str(target.version).encode(), body.data):
            digest.update(b"%d:%b" % (len(part), part))
        return NewJob(
            id=f"job_{secrets.token_hex(12)}",
            project=project,
            endpoint=target.state.route.endpoint.partition("/")[2],
            input=self._service.payload(body.content_type, body.data),
            version=target.version,
            key_id=request.key,
            idempotency_key=key,
            fingerprint=digest.hexdigest(),
            priority=target.priority,
            ttl_s=DEFAULT_TTL_S,
            execution_timeout_s=target.timeout_s,
        )

    async def _submitted(self, request: Request, new: NewJob) -> bytes:
        job, is_new = await self._service.submit(new)
        extra = b"Location: /api/v1/jobs/%b\r\n" % job.id.encode()
        if not is_new:
            extra += b"Idempotent-Replayed: true\r\n"
        if request.head.prefer:
            extra += b"Preference-Applied: respond-async\r\n" if self.wants_async(request) else b""
        return json_response(request, 202, await self._service.document(job), extra)

    async def _list(self, request: Request, project: str) -> bytes:
        query = _query(request)
        states: list[JobState] = []
        for word in filter(None, query.get("state", "").split(",")):
            if word not in JOB_MOVES:
                raise ValidationFailed(f"state: {word[:40]!r} is none of {', '.join(JOB_MOVES)}.")
            states.append(word)
        limit = int(_number(query, "limit", 100.0, 1.0, 1000.0))
        cursor = query.get("cursor") or None
        if cursor is not None and not _CURSOR.fullmatch(cursor):
            raise ValidationFailed("cursor: not the `next` of a page.", hint="Begin again without it.")
        endpoint = query.get("endpoint") or None
        page, cursor = await self._service.list(
            project, endpoint=endpoint, states=states, limit=limit, cursor=cursor
        )
        items = [await self._service.document(job) for job in page]
        return json_response(request, 200, {"items": items, "next": cursor})

    async def _one(self, request: Request, project: str, job_id: str) -> bytes:
        wait_s = _number(_query(request), "wait", 0.0, 0.0, MAX_WAIT_S)
        if (plain := await self._unstored(project, job_id)) is not None:
            if wait_s:
                plain = _known(await self._plain.wait(project, job_id, wait_s), job_id)
            return json_response(request, 200, plain)
        job = _known(await self._service.wait(project, job_id, wait_s), job_id)
        doc = await self._service.document(job, attempts=True)
        doc["webhooks"] = await self._service.undelivered(job)
        return json_response(request, 200, doc)

    async def _output(self, request: Request, project: str, job_id: str) -> bytes:
        wait_s = _number(_query(request), "wait", 0.0, 0.0, MAX_WAIT_S)
        job = _known(await self._service.wait(project, job_id, wait_s), job_id)
        if job.output is None:
            if job.state not in FINAL:
                raise Conflict(
                    f"job {job_id} is {job.state}: it has no output yet.", hint="Ask with ?wait=60."
                )
            raise NotFound(f"job {job_id} {job.state.replace('_', ' ')} and has no output.")
        return response(
            200,
            await self._service.body(job.output),
            job.output.content_type or "application/octet-stream",
            request_id=request.id,
            close=request.client.closes(request),
            head_only=request.head.method == b"HEAD",
            extra=b"Cache-Control: no-store\r\nContent-Security-Policy: sandbox\r\n",
        )

    async def _stream(self, exchange: TaskExchange, project: str, job_id: str) -> None:
        request, service = exchange.request, self._service
        query = _query(request)
        after: tuple[int, int] | None = None
        if text := query.get("after", ""):
            attempt, _, seq = text.partition(".")
            if not (attempt.isdigit() and seq.isdigit() and len(text) < 30):
                raise ValidationFailed("after: not `attempt.seq`, for example 1.41.")
            after = int(attempt), int(seq)
        _known(await service.get(project, job_id), job_id)
        lines = "ndjson" in query.get("format", "")
        exchange.begin(b"application/x-ndjson" if lines else b"text/event-stream; charset=utf-8")
        async for chunk in service.stream(project, job_id, after=after):
            if lines:
                text_line = b'{"attempt":%d,"seq":%d,"item":%b}\n' % (chunk.attempt, chunk.seq, chunk.data)
            else:
                text_line = b"id: %d.%d\ndata: %b\n\n" % (chunk.attempt, chunk.seq, chunk.data)
            await exchange.send(text_line)
        job = await service.get(project, job_id)
        if job is not None:
            end = msgspec.json.encode({"state": job.state, "error": job.error})
            await exchange.send(b'{"end":%b}\n' % end if lines else b"event: end\ndata: %b\n\n" % end)
        exchange.finish()

    async def _move(self, request: Request, project: str, route: Route) -> bytes:
        service = self._service
        if await self._unstored(project, route.name) is not None:
            if route.kind == "retry":
                raise Conflict("a call without an Idempotency-Key is not stored.", hint="Send it again.")
            plain = _known(await self._plain.cancel(project, route.name), route.name)
            return json_response(request, 200, plain)
        if route.kind == "cancel":
            job = _known(await service.cancel(project, route.name), route.name)
        else:
            before = _known(await service.get(project, route.name), route.name)
            if before.state not in RETRYABLE:
                raise Conflict(
                    f"job {route.name} is {before.state}: only failed and timed-out jobs run again."
                )
            job = _known(await service.retry(project, route.name), route.name)
        return json_response(request, 200, await service.document(job))


def _known(job: Found | None, job_id: str) -> Found:
    if job is None:
        raise NotFound(
            f"no job {job_id[:80]!r}.",
            hint="Jobs are kept for 30 min after their end. A call without an Idempotency-Key is known while "
            "its gateway lives, which keeps the last 1000.",
        )
    return job


def _query(request: Request) -> dict[str, str]:
    query = request.head.target.partition(b"?")[2]
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=50))


def _number(query: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = query.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValidationFailed(f"{name}: not a number from {low:g} to {high:g}.")
    return value
