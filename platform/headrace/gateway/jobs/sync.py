"""Sync calls with an ``Idempotency-Key``: stored before they run, answered from what was stored.

The same key gets the same answer, also while the call still runs, through another gateway, or after the
death of the one that ran it. An answer that is a stream is passed on as it comes and is not kept. A client
that made the key by itself may have the call run without it while the store takes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from headrace.errors import Conflict, DeadlineExceeded, HeadraceError, QueueFull, RequestError
from headrace.gateway.api.native import Target
from headrace.gateway.call import Call
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.jobs.attempt import FORWARD
from headrace.gateway.jobs.lanes import SYNC_PREFIX, Run
from headrace.gateway.jobs.outcome import REFUSED
from headrace.gateway.jobs.service import JobService
from headrace.gateway.jobs.sink import JobClient, Outcome
from headrace.gateway.refusals import full_error
from headrace.gateway.request import Request
from headrace.gateway.respond import response
from headrace.gateway.room import Ticket, make_room
from headrace.jobs.blobs import BlobsUnavailable
from headrace.jobs.model import SYNC_RETENTION_S, Job, NewJob
from headrace.jobs.state import FINAL
from headrace.jobs.store import StoreUnavailable

log = logging.getLogger("headrace.gateway")

MAX_KEY_CHARS = 255
HANG_UP_GRACE_S = 3.0
"""A call whose client hung up goes on for so long: the client may come back with the same key, through any
gateway. Whoever waits is in the store (`NewJob.waiter`), so that the last one of all gateways decides."""
ANSWER_MARGIN_S = 5.0


class SyncCalls:
    """See the module."""

    def __init__(self, service: JobService, owner: str) -> None:
        self._service = service
        self._owner = owner
        self._live: dict[str, SyncExchange] = {}

    def start(
        self, request: Request, target: Target, project: str, key: str, plain: Callable[[Request], None]
    ) -> None:
        """Answer the request, in a task of its own. ``plain`` starts it as a call without a key."""
        exchange = SyncExchange(self, request)
        exchange.plain = plain if may_run_unstored(request, target) else None
        request.exchange = exchange
        exchange.task = asyncio.get_running_loop().create_task(self._run(exchange, target, project, key))

    def client_for(self, run: Run, done: Callable[[Outcome], None]) -> JobClient:
        """The sink of a sync call's attempt."""
        exchange = self._live.get(run.lease.job.id)
        if exchange is not None:
            exchange.leave_queue()
        return SyncClient(done, exchange)

    async def _run(self, exchange: SyncExchange, target: Target, project: str, key: str) -> None:
        request = exchange.request
        try:
            await self._answer(exchange, target, project, key)
        except RequestError as error:
            exchange.refuse(error)
        except HeadraceError as error:
            exchange.refuse(RequestError(str(error)))
        except Exception as error:
            log.exception("request %s failed in the gateway", request.id)
            exchange.refuse(RequestError(f"{type(error).__name__} in the gateway: its log has more."))

    async def _answer(self, exchange: SyncExchange, target: Target, project: str, key: str) -> None:
        service, request = self._service, exchange.request
        new = self._new_job(request, target, project, key)
        exchange.ticket = await self._admit(new, target.state)
        # From here on the call may run at any moment, and its answer may be a stream.
        self._live[new.id] = exchange
        try:
            try:
                job, is_new = await self._store(exchange, new, target.state)
            except (StoreUnavailable, BlobsUnavailable) as error:
                return exchange.run_plain(error)
            request.client.release_body(request)
            found: Job | None = job
            if job.state not in FINAL:
                # Whoever joins a call has a deadline of its own; the call has that of the first.
                patience = max(0.0, target.timeout_s - (time.monotonic() - exchange.came))
                patience += ANSWER_MARGIN_S if is_new else 0.0
                found = await service.wait(project, job.id, patience, while_draining=True)
                if found is not None and found.state not in FINAL:
                    self._left(exchange, free_key=target.state.route.idempotent)
        except asyncio.CancelledError:
            if not exchange.given_up:
                self._left(exchange, free_key=target.state.route.idempotent)
            raise
        finally:
            exchange.leave_queue()
            for id in {new.id, exchange.job_id}:
                if self._live.get(id) is exchange:
                    del self._live[id]
        if exchange.streamed:
            return
        if found is None:
            raise Conflict("the call's answer is not kept any more.", hint="Use a new Idempotency-Key.")
        await self._reply(exchange, found, replayed=not is_new)
        if not is_new:
            # The call counts where it runs; this client's request is another one.
            status = int(found.receipt.get("status") or (found.error or {}).get("status") or 500)
            target.state.meter.request(status, time.monotonic() - exchange.came)

    async def _store(self, exchange: SyncExchange, new: NewJob, state: EndpointState) -> tuple[Job, bool]:
        """Store the call, or find the one that has its key; (it, whether it begins now).

        One that was refused before it ran begins anew.
        """
        service = self._service
        job, is_new = await service.submit(new)
        exchange.job_id = job.id
        if is_new:
            return job, True
        if job.state != "failed" or not job.receipt.get(REFUSED):
            exchange.leave_queue()
            return job, False
        if exchange.ticket is None:
            # The key was known, but its call needs a place as any new one does.
            exchange.ticket = self._enter(new, state)
        self._live[job.id] = exchange
        await service.retry(new.project, job.id)
        # Again, to wait for it: it had ended.
        job, _ = await service.submit(new)
        return job, True

    async def _admit(self, new: NewJob, state: EndpointState) -> Ticket | None:
        """Let a call in; None: one with its key was let in before. Raises `QueueFull`."""
        try:
            return self._enter(new, state)
        except QueueFull:
            if not await self._service.has_key(new):
                raise
        return None

    @staticmethod
    def _enter(new: NewJob, state: EndpointState) -> Ticket:
        """A place in the queue, or on the way there. Raises `QueueFull`."""
        others = make_room(state, new.key_id, new.input.size)
        if others is None:
            raise full_error(state)
        for other in others:
            other.fail(full_error(state))
        return state.coming.enter(new.key_id, new.input.size)

    def _new_job(self, request: Request, target: Target, project: str, key: str) -> NewJob:
        if len(key) > MAX_KEY_CHARS:
            raise RequestError(f"Idempotency-Key: longer than {MAX_KEY_CHARS} characters.", http_status=400)
        head, body = request.head, request.body
        content_type = head.content_type.decode("latin-1")
        digest = hashlib.sha256()
        for part in (head.method, target.path, str(target.version).encode(), head.content_type, body):
            digest.update(b"%d:%b" % (len(part), part))
        return NewJob(
            id=request.id,
            project=project,
            endpoint=SYNC_PREFIX + target.state.route.endpoint.partition("/")[2],
            input=self._service.payload(content_type, body),
            version=target.version,
            method=head.method.decode("latin-1"),
            path=target.path.decode("latin-1"),
            api="sync",
            key_id=request.key,
            idempotency_key=key,
            fingerprint=digest.hexdigest(),
            priority=target.priority,
            ttl_s=target.timeout_s,
            execution_timeout_s=target.timeout_s,
            max_attempts=1 + target.state.route.retries if target.state.route.idempotent else 1,
            retention_s=SYNC_RETENTION_S,
            waiter=(self._owner, request.id),
            context={FORWARD: head.forward.decode("latin-1")},
        )

    def _left(self, exchange: SyncExchange, *, free_key: bool) -> None:
        """A client waits no more. When it was the last one, and none comes back, the call is cancelled.

        It has not come to its end then: the same key runs it again, where that is allowed (``free_key``).
        """
        waiter = exchange.request.id
        # So long the call keeps its place.
        ticket, exchange.ticket = exchange.ticket, None

        async def abandon() -> None:
            try:
                await asyncio.sleep(HANG_UP_GRACE_S)
                await self._service.abandon(waiter, free_key=free_key)
            except RequestError as error:
                log.info("the call of request %s is not cancelled: %s", waiter, error)
            finally:
                if ticket is not None:
                    ticket.leave()

        self._service.spawn(abandon())

    async def _reply(self, exchange: SyncExchange, job: Job, *, replayed: bool) -> None:
        request = exchange.request
        extra = b"Idempotent-Replayed: true\r\n" if replayed else b""
        if job.state not in FINAL:
            raise DeadlineExceeded(
                "the deadline passed while the call went on.",
                hint="Ask again with the same Idempotency-Key.",
            )
        receipt = job.receipt
        for name, value in receipt.get("headers", ()):
            extra += f"{name}: {value}\r\n".encode("latin-1")
        if job.output is not None:
            body = await self._service.body(job.output)
            client = request.client
            exchange.status = int(receipt.get("status", 200))
            client.reply(
                request,
                response(
                    exchange.status,
                    body,
                    job.output.content_type,
                    request_id=job.id,
                    close=client.closes(request),
                    head_only=request.head.method == b"HEAD",
                    extra=extra,
                ),
            )
            return
        if receipt.get("streamed"):
            raise Conflict(
                "the answer to this key was a stream, which is not kept.", hint="Use a new Idempotency-Key."
            )
        exchange.refuse(stored_error(job), extra)


def may_run_unstored(request: Request, target: Target) -> bool:
    """Whether the call may run without the store: its client made the key by itself, for its own retries, and
    the endpoint may run a call twice."""
    return target.state.route.idempotent and request.head.unstored.strip().lower() == b"run"


class SyncExchange:
    """One client that waits for a sync call with a key."""

    def __init__(self, calls: SyncCalls, request: Request) -> None:
        self._calls = calls
        self.request = request
        self.came = time.monotonic()
        self.status = 0
        """Of the answer; 0: there is none yet."""
        self.task: asyncio.Task[None] | None = None
        self.job_id = ""
        """Of the stored call, once it is."""
        self.streamed = False
        """The answer goes to the client as it comes."""
        self.gone = False
        self.given_up = False
        """It was the gateway that left: the client may come back with the same key, through another one."""
        self.sink: SyncClient | None = None
        self.ticket: Ticket | None = None
        self.plain: Callable[[Request], None] | None = None
        """Starts it as a call without a key, where that is allowed."""

    def leave_queue(self) -> None:
        """The call does not wait any more, or its endpoint's queue counts it."""
        if self.ticket is not None:
            self.ticket.leave()

    def run_plain(self, error: RequestError) -> None:
        """The store took nothing. Raises ``error`` unless the call may run without it."""
        if self.plain is None:
            raise error
        log.info("request %s runs without the store: %s", self.request.id, error)
        self.plain(self.request)

    @property
    def call(self) -> Call | None:
        """The call whose answer the client gets as it comes."""
        return self.sink.call if self.sink is not None else None

    def cancel(self) -> None:
        """The client is gone."""
        self.gone = True
        if self.sink is not None:
            self.sink.client_gone()
        if self.task is not None:
            self.task.cancel()

    def pause(self) -> None:
        """The client reads slowly."""
        if self.sink is not None:
            self.sink.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self.sink is not None:
            self.sink.resume()

    def fail(self, error: RequestError) -> None:
        """The gateway gives up. What runs goes on elsewhere, or again, but for a stream that has begun."""
        self.given_up = True
        if self.streamed and (call := self.call) is not None:
            call.fail(error)
        else:
            self.refuse(error)
        self.gone = True
        if self.task is not None:
            self.task.cancel()

    def refuse(self, error: RequestError, extra: bytes = b"") -> None:
        """Answer with a problem, unless a stream has begun."""
        if not self.gone and not self.streamed:
            self.status = int(error.extra.get("http_status", error.status))
            self.request.client.fail(self.request, error, extra)


class SyncClient(JobClient):
    """Collects the answer of a sync call, or passes it on when it is a stream and its client is here."""

    def __init__(self, done: Callable[[Outcome], None], exchange: SyncExchange | None) -> None:
        super().__init__(done)
        self._exchange = exchange
        self._passing = False
        self.keep_timing = True

    def write(self, data: bytes) -> None:
        """See `JobClient.write`."""
        if not self.outcome.status and self._passes(data):
            return
        if not self._passing:
            super().write(data)
            return
        exchange = self._exchange
        if exchange is not None and not exchange.gone and data:
            chunk = data if exchange.request.head.http10 else b"%x\r\n%b\r\n" % (len(data), data)
            exchange.request.client.write(chunk)

    @property
    def call(self) -> Call | None:
        """The call whose answer this is."""
        exchange = self._request.exchange if self._request is not None else None
        return exchange if isinstance(exchange, Call) else None

    def end(self, request: Request) -> None:
        """See `JobClient.end`."""
        exchange = self._exchange
        if self._passing and exchange is not None and not exchange.gone:
            live = exchange.request
            if live.head.http10:
                live.close = True
            else:
                live.client.write(b"0\r\n\r\n")
            exchange.gone = True
            live.client.end(live)
        super().end(request)

    def cut(self, request: Request) -> None:
        """See `JobClient.cut`."""
        exchange = self._exchange
        if self._passing and exchange is not None and not exchange.gone:
            exchange.gone = True
            exchange.request.client.cut(exchange.request)
        super().cut(request)

    def pause(self) -> None:
        """The live client reads slowly."""
        self.writable = False
        if self._passing and self._request is not None and self._request.exchange is not None:
            self._request.exchange.pause()

    def resume(self) -> None:
        """The live client has caught up."""
        self.writable = True
        if self._passing and self._request is not None and self._request.exchange is not None:
            self._request.exchange.resume()

    def client_gone(self) -> None:
        """The live client hung up: a stream is of no use to anybody else."""
        if self._passing and self._request is not None and self._request.exchange is not None:
            self._abort(Conflict("the client hung up in the middle of the stream."))

    def _passes(self, data: bytes) -> bool:
        """Begin to pass the answer on, if it is a stream; ``data`` begins with its head."""
        exchange = self._exchange
        head, _, rest = data.partition(b"\r\n\r\n")
        if exchange is None or exchange.gone or b"\r\ncontent-length:" in head.lower():
            return False
        self._passing = True
        self.read_head(head)
        self.outcome.whole = False
        exchange.streamed, exchange.sink, exchange.status = True, self, self.outcome.status
        live = exchange.request
        head += b"\r\n" if live.head.http10 else b"\r\nTransfer-Encoding: chunked\r\n"
        if live.client.closes(live):
            head += b"Connection: close\r\n"
        live.client.write(head + b"\r\n")
        if rest:
            self.write(rest)
        self.writable = live.client.writable
        return True


def stored_error(job: Job) -> RequestError:
    """The error of a call that ended without an answer of its instance, with its own status."""
    doc: dict[str, Any] = job.error or {
        "type": "urn:headrace:cancelled",
        "title": "Cancelled",
        "status": 409,
        "detail": "the call was cancelled.",
    }
    error = StoredProblem(str(doc.get("detail") or doc.get("title") or job.state))
    error.doc = doc
    error.extra = {"http_status": int(doc.get("status") or 500)}
    if "retry_after" in doc:
        error.extra["retry_after"] = doc["retry_after"]
    return error


class StoredProblem(RequestError):
    """A problem document that was stored, given back as it was."""

    type = "stored-problem"
    doc: dict[str, Any] | None = None

    def to_problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The document."""
        if self.doc is None:
            return super().to_problem(request_id)
        return {**self.doc, "request_id": request_id} if request_id else self.doc
