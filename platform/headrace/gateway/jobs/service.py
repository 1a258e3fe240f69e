"""What the APIs know of jobs: submit, look, wait, cancel. They never see a store, a lease or a runner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.errors import GatewayStopping
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.jobs.documents import document, seen, waiting_of
from headrace.gateway.jobs.hub import Hub, rung
from headrace.gateway.jobs.lanes import SYNC_PREFIX
from headrace.gateway.jobs.outbound import check_url
from headrace.gateway.jobs.results import store_payload
from headrace.gateway.jobs.runner import Runner
from headrace.gateway.jobs.webhooks import Document, WebhookSender
from headrace.jobs.blobs import BlobStore
from headrace.jobs.model import INLINE_BYTES, Attempt, Chunk, Counts, Ended, Job, NewJob, Payload, Result
from headrace.jobs.state import FINAL, JobState
from headrace.jobs.store import JobStore, StoreUnavailable
from headrace.observe.tracing import CURRENT

FIRST_POLL_S = 0.2
LAST_POLL_S = 0.5
AWAY_POLL_S = 1.0
"""Between two questions to a store that does not answer."""
LOCAL_POLL_S = 2.0
"""A job that runs here rings when it ends: the store is only asked in case that was missed."""
CHUNKS = 1000


class Workers(NamedTuple):
    """Instances of an endpoint as RunPod counts them."""

    idle: int = 0
    running: int = 0
    initializing: int = 0
    ready: int = 0
    throttled: int = 0
    unhealthy: int = 0


class JobService:
    """See the module. Methods raise `StoreUnavailable` while there is no store."""

    def __init__(self, dispatcher: Dispatcher, hub: Hub, *, webhook_private: bool) -> None:
        self._dispatcher = dispatcher
        self._hub = hub
        self._private = webhook_private
        self._store: JobStore | None = None
        self._blobs: BlobStore | None = None
        self._runner: Runner | None = None
        self.webhooks: WebhookSender | None = None
        self.why_not = "the job store is not open yet"
        self._draining = False
        self.documents: dict[str, Document] = {}
        """What webhooks of an API carry; APIs that are not here get the native document."""

    def attach(self, store: JobStore, blobs: BlobStore, runner: Runner, webhooks: WebhookSender) -> None:
        """The stores are open."""
        self._store, self._blobs, self._runner, self.webhooks = store, blobs, runner, webhooks
        runner.finished = self._finished
        store.ended = self._ended_by_store
        webhooks.documents = self.documents

    def drain(self) -> None:
        """The gateway is about to stop: who waits for a job hears how it stands, and asks another gateway."""
        self._draining = True
        self._hub.ring_all()

    def detach(self) -> None:
        """The gateway stops."""
        self._store = None
        self.why_not = "the gateway is stopping"

    # -- jobs -----------------------------------------------------------------------------------

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Store a job; (job, whether it is new). When this returns it is never lost. A large input goes to
        the blob store first, once nothing else can be wrong with the job.

        Raises `IdempotencyConflict`, `ValidationFailed` for a webhook's URL, `StoreUnavailable`,
        `BlobsUnavailable`.
        """
        store, runner = self._open()
        if not new.traceparent and (current := CURRENT.get()):
            new = msgspec.structs.replace(new, traceparent=current)
        if new.webhook is not None:
            self.check_webhook(new.webhook.url)
        if len(new.input.data) > INLINE_BYTES:
            assert self._blobs is not None
            stored = await store_payload(store, self._blobs, new.input)
            new = msgspec.structs.replace(new, input=stored)
        job, is_new = await store.submit(new, time.time())
        if is_new:
            runner.hint(new.project, new.endpoint, new.priority)
            self._tell_webhooks(job)
        return job, is_new

    async def get(self, project: str, job_id: str) -> Job | None:
        """One job."""
        job = await self.store.get(project, job_id)
        return job and self.seen(job)

    async def list(
        self,
        project: str,
        *,
        endpoint: str | None = None,
        states: Sequence[JobState] = (),
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Newest first, sync calls with a key among them; (page, cursor of the next)."""
        names = None if endpoint is None else (endpoint, SYNC_PREFIX + endpoint)
        return await self.store.list(project, endpoint=names, states=states, limit=limit, cursor=cursor)

    async def has_key(self, new: NewJob) -> bool:
        """Whether a job with its idempotency key is kept already."""
        key = new.idempotency_key
        return key is not None and await self.store.has_key(new.project, new.endpoint, key)

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """All attempts, oldest first."""
        return await self.store.attempts(job_id)

    async def wait(
        self, project: str, job_id: str, timeout_s: float, *, while_draining: bool = False
    ) -> Job | None:
        """The job when it is final, or as it is when the time is up or the gateway drains. None: unknown.

        ``while_draining``: wait on, for an answer that is to be given by this gateway. A store that does not
        answer is asked again until then; raises `StoreUnavailable` after it.
        """
        deadline = time.monotonic() + timeout_s
        bell = self._hub.bell(job_id)
        pause = FIRST_POLL_S
        try:
            while True:
                store = self.store
                try:
                    job = await store.get(project, job_id)
                except StoreUnavailable:
                    left = deadline - time.monotonic()
                    if left <= AWAY_POLL_S or (self._draining and not while_draining):
                        raise
                    # No bell tells of its return. The job goes on: its end is stored when the store is back.
                    await asyncio.sleep(AWAY_POLL_S)
                    continue
                left = deadline - time.monotonic()
                over = left <= 0 or (self._draining and not while_draining)
                if job is None or job.state in FINAL or over:
                    return job and self.seen(job)
                here = self._runner is not None and self._runner.runs_here(job_id)
                await rung(bell, min(LOCAL_POLL_S if here else pause, left))
                pause = min(LAST_POLL_S, pause * 1.3)
        finally:
            self._hub.drop(job_id, bell)

    async def cancel(self, project: str, job_id: str) -> Job | None:
        """Cancelled at once, with the attempt that runs here; final jobs stay what they are."""
        store, runner = self._open()
        now = time.time()
        job = await store.cancel(project, job_id, now)
        if job is not None and job.state == "cancelled":
            runner.abort(job_id)
            self._hub.ring(job_id)
            if job.finished_at == now:
                # It is this call that ended it.
                self._ended(job, job.state)
        return job

    async def abandon(self, waiter: str, *, free_key: bool) -> None:
        """A client that waited for a job (`NewJob.waiter`) is gone; the last one's job is cancelled."""
        store, runner = self._open()
        job = await store.abandon(waiter, time.time(), free_key=free_key)
        if job is not None:
            runner.abort(job.id)
            self._hub.ring(job.id)

    async def retry(self, project: str, job_id: str) -> Job | None:
        """A failed or timed-out job runs again under its id; others stay what they are."""
        store, runner = self._open()
        job = await store.retry(project, job_id, time.time())
        if job is not None and job.state == "queued":
            runner.hint(project, job.endpoint, job.priority)
            self._hub.ring(job_id)
        return job

    async def purge(self, project: str, endpoint: str) -> int:
        """Remove all jobs of the endpoint that no instance has; how many."""
        store, runner = self._open()
        async with runner.purging(project, endpoint):
            return await store.purge(project, endpoint, time.time(), owner=runner.owner)

    async def counts(self, project: str, endpoint: str) -> Counts:
        """Jobs of the endpoint by state."""
        return await self.store.counts(project, endpoint)

    async def stream(
        self, project: str, job_id: str, *, after: tuple[int, int] | None = None
    ) -> AsyncIterator[Chunk]:
        """Items of the job's stream, until it is final. ``after``: (attempt, seq) that was seen last.

        When an item's ``attempt`` is larger than that before, all earlier ones are void. Raises
        `GatewayStopping` where a gateway that stops leaves off.
        """
        attempt, seq = after or (0, -1)
        bell = self._hub.bell(job_id)
        pause = FIRST_POLL_S
        try:
            while True:
                # Asked before the chunks: what is there when the job is final is all.
                job = await self.store.get(project, job_id)
                if job is None:
                    return
                while True:
                    chunks = await self.store.chunks(job_id, attempt=attempt, after=seq, limit=CHUNKS)
                    for chunk in chunks:
                        attempt, seq = chunk.attempt, chunk.seq
                        yield chunk
                    if len(chunks) < CHUNKS:
                        break
                if job.state in FINAL:
                    return
                if self._draining:
                    raise GatewayStopping(
                        "the gateway stops; the job goes on.",
                        hint="Ask again, with after= the id of the last item.",
                        retry_after=1,
                    )
                pause = FIRST_POLL_S if chunks else min(LAST_POLL_S, pause * 1.3)
                await rung(bell, pause)
        finally:
            self._hub.drop(job_id, bell)

    # -- bodies ---------------------------------------------------------------------------------

    @staticmethod
    def payload(content_type: str, body: bytes) -> Payload:
        """The body as an input of a job; `submit` moves a large one to the blob store."""
        return Payload(content_type=content_type, data=body, size=len(body))

    async def body(self, payload: Payload) -> bytes:
        """The bytes, wherever they are."""
        if not payload.blob:
            return payload.data
        self._open()
        assert self._blobs is not None
        return await self._blobs.get(payload.blob)

    # -- beside ---------------------------------------------------------------------------------

    def workers(self, project: str, endpoint: str) -> Workers:
        """Instances of the endpoint as this gateway sees them."""
        state = self._dispatcher.state(f"{project}/{endpoint}")
        if state is None:
            return Workers()
        usable = [i for i in state.instances.values() if i.usable and not i.route.suspect]
        running = sum(1 for i in usable if i.in_flight)
        waits = bool(state.queue) or bool(state.stored) or state.route.state == "deploying"
        stuck = bool(state.route.reason)
        return Workers(
            idle=len(usable) - running,
            running=running,
            initializing=int(waits and not usable and not stuck and state.route.state != "failed"),
            ready=len(usable),
            throttled=int(waits and not usable and stuck and state.route.state != "failed"),
            unhealthy=len(state.instances) - len(usable) + (state.route.state == "failed"),
        )

    def endpoint(self, project: str, endpoint: str) -> EndpointState | None:
        """What the gateway knows of an endpoint."""
        return self._dispatcher.state(f"{project}/{endpoint.removeprefix(SYNC_PREFIX)}")

    def seen(self, job: Job) -> Job:
        """The job as it is told: ``queued`` while it waits for a slot in a gateway."""
        return seen(job, self._runner.run_of(job.id) if self._runner is not None else None)

    async def document(self, job: Job, *, attempts: bool = False) -> dict[str, Any]:
        """The job as the native API shows it."""
        job, output = self.seen(job), job.output
        run = self._runner.run_of(job.id) if self._runner is not None else None
        tries = await self.store.attempts(job.id) if attempts else None
        if tries is not None and job.state == "queued":
            # A lease is no attempt before an instance has the job.
            tries = [attempt for attempt in tries if attempt.outcome]
        return document(
            job,
            attempts=tries,
            waiting=waiting_of(job, self.endpoint(job.project, job.endpoint), run),
            output=output.data if output is not None and not output.blob else None,
        )

    def check_webhook(self, url: str) -> None:
        """Raises `ValidationFailed` for a URL that can never be delivered to."""
        check_url(url, private=self._private)

    async def undelivered(self, job: Job) -> Sequence[dict[str, Any]]:
        """The job's webhook events that were not delivered, as the native API shows them."""
        waits = self.webhooks.why_not if self.webhooks is not None else ""
        return [
            {
                "event": one.event,
                "state": "given_up" if one.next_at is None else "waiting",
                "tries": one.tries,
                "next_at": one.next_at,
                "detail": one.detail if one.next_at is None else waits or one.detail,
            }
            for one in (await self.store.undelivered(job.id) if job.webhook is not None else ())
        ]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside; it ends with the gateway."""
        self._dispatcher.spawn(work)

    def runs_here(self, job_id: str) -> bool:
        """Whether this gateway works on the job now."""
        return self._runner is not None and self._runner.runs_here(job_id)

    @property
    def hub(self) -> Hub:
        """Rings when something happens to a job in this gateway."""
        return self._hub

    @property
    def store(self) -> JobStore:
        """The store. Raises `StoreUnavailable` while it is not open."""
        if self._store is None:
            raise StoreUnavailable(f"{self.why_not}.", hint="Try again in a moment.")
        return self._store

    # -- inside ---------------------------------------------------------------------------------

    def _open(self) -> tuple[JobStore, Runner]:
        store = self.store
        assert self._runner is not None
        return store, self._runner

    def _finished(self, job: Job, result: Result) -> None:
        self._ended(job, result.state)

    def _ended_by_store(self, job: Ended) -> None:
        state = self._dispatcher.state(f"{job.project}/{job.endpoint}")
        if state is not None:  # calls with a key are stored under another name
            state.meter.job(job.state, max(0.0, time.time() - job.created_at))

    def _ended(self, job: Job, how: JobState) -> None:
        state = self._dispatcher.state(f"{job.project}/{job.endpoint}")
        if state is not None and job.api != "sync":
            state.meter.job(how, max(0.0, time.time() - job.created_at))
        self._tell_webhooks(job)

    def _tell_webhooks(self, job: Job) -> None:
        if job.webhook is not None and self.webhooks is not None:
            self.webhooks.hint()
