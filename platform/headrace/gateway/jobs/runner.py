"""The gateway as a worker: leases jobs within what its instances can take, runs each as a `Call`, and
stores what came of it with the fence of its lease."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from headrace.errors import EndpointNotFound, RequestError
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.jobs.attempt import begin, deadline_passed, sent_before, take_over
from headrace.gateway.jobs.hub import Hub
from headrace.gateway.jobs.lanes import Lane, Lanes, Run
from headrace.gateway.jobs.leases import LEASE_S, TAKE_BACK_S, Leases
from headrace.gateway.jobs.looks import Looks
from headrace.gateway.jobs.outcome import Release
from headrace.gateway.jobs.results import STORE_AGAIN_S, Budget, Results
from headrace.gateway.jobs.sink import JobClient, Outcome
from headrace.gateway.routing import RoutingTable
from headrace.jobs.blobs import BlobStore
from headrace.jobs.model import Job, Lease, Priority, Result
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

LARGE_INPUT_BYTES = 256 << 20
"""Inputs from the blob store that are held at a time (one may be larger)."""
MAX_DOOMED = 100
SETTLE_S = 2.0
"""For giving leases back at the end of a stop."""

Finished = Callable[[Job, Result], None]
MakeClient = Callable[[Run, Callable[[Outcome], None]], JobClient]


class Runner:
    """See the module. ``finished`` hears of stored results; ``client_for`` makes the sinks of sync calls."""

    def __init__(  # noqa: PLR0917
        self,
        store: JobStore,
        blobs: BlobStore,
        dispatcher: Dispatcher,
        table: RoutingTable,
        owner: str,
        hub: Hub,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._dispatcher = dispatcher
        self._table = table
        self.owner = owner
        self._hub = hub
        self._results = Results(store, blobs, hub)
        self._leases = Leases(store, owner, self._spawn, self._void, self._moved, self._returned)
        self._inputs = Budget(LARGE_INPUT_BYTES)
        self._lanes = Lanes()
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._over_all: asyncio.Future[None] | None = None
        self._looks = Looks(
            store,
            table,
            dispatcher,
            self._lanes,
            pump=self._pump,
            give_back=self._returned,
            doom=lambda lane: self._spawn(self._doom(lane)),
        )
        self.finished: Finished = lambda job, result: None
        self.client_for: MakeClient | None = None
        dispatcher.on_room = self.room

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look for jobs."""
        self._spawn(self._looks.run())
        self._spawn(self._leases.beat(self._runs.values, self.look))

    async def stop(self, grace_s: float) -> None:
        """Lease nothing more, give back what has not begun, let the rest end within ``grace_s``, then
        give that back, too."""
        self._stopping = True
        for lane in self._lanes.all():
            held, lane.held = list(lane.held), type(lane.held)()
            for run in held:
                self._give_back(run, "its gateway stopped")
        if self._runs:
            await asyncio.wait([self._all_over()], timeout=grace_s)
        for run in list(self._runs.values()):
            if not run.settling:
                self._end_call(run)
                self._give_back(run, "its gateway stopped")
        if self._runs:
            await asyncio.wait([self._all_over()], timeout=SETTLE_S)
        await self.abandon()

    async def abandon(self) -> None:
        """End at once, and leave the leases to expire (as a crash does)."""
        self._stopping = True
        for run in list(self._runs.values()):
            self._end_call(run)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _all_over(self) -> asyncio.Future[None]:
        """Done when no run is left."""
        self._over_all = asyncio.get_running_loop().create_future()
        return self._over_all

    # -- for the service ------------------------------------------------------------------------

    def hint(self, project: str, endpoint: str, priority: Priority = "normal") -> None:
        """A job was stored: look for it now."""
        lane = self._lanes.of(project, endpoint)
        lane.heard(priority)
        self._pump(lane)

    def runs_here(self, job_id: str) -> bool:
        """Whether this gateway has the job's lease."""
        return job_id in self._runs

    def run_of(self, job_id: str) -> Run | None:
        """The job, if this gateway has its lease."""
        return self._runs.get(job_id)

    @asynccontextmanager
    async def purging(self, project: str, endpoint: str) -> AsyncIterator[None]:
        """Around a purge. What instances have, get meanwhile, or have ended is not purged: the store must
        know of it. What waited here was purged, too."""
        lane = self._lanes.of(project, endpoint)
        lane.purging += 1
        try:
            runs = [run for run in self._runs.values() if run.lane is lane and run.purgeable]
            await asyncio.gather(*(self._leases.mark(run, run.instance) for run in runs))
            yield
        except BaseException:
            # The store may carry it out nevertheless, for as long as statements may take.
            asyncio.get_running_loop().call_later(TAKE_BACK_S, lane.purged)
            raise
        lane.purged()
        await self._leases.prolong([*lane.held, *(run for run in lane.sent if not run.sent_at)])
        self.look()

    def abort(self, job_id: str) -> None:
        """The job was cancelled: end its attempt here; nothing of it is stored any more."""
        run = self._runs.get(job_id)
        if run is not None and not run.settling:
            self._void(run)

    def look(self) -> None:
        """Something changed for many jobs: look at the store soon."""
        self._looks.soon()

    def room(self, state: EndpointState) -> None:
        """From the dispatcher: there may be a free slot."""
        lane = self._lanes.at(state.key)
        if lane is not None:
            self._pump(lane)

    # -- lanes ----------------------------------------------------------------------------------

    def _pump(self, lane: Lane) -> None:
        if self._stopping:
            return
        state = self._dispatcher.state(lane.key)
        if state is None:
            return
        lane.missing_since = 0.0
        while (run := lane.place(state)) is not None:
            lane.held.remove(run)
            self._send(run, state)
        if not lane.sync:
            state.held = len(lane.held)
            age = max(0.0, time.time() - lane.oldest_at) if lane.oldest_at else 0.0
            self._dispatcher.stored(state, lane.waiting, age)
        if lane.waiting and not lane.leasing and time.monotonic() >= lane.retry_at:
            want = lane.want(state)
            if want > 0:
                lane.leasing = True
                self._spawn(self._lease(lane, want))

    async def _lease(self, lane: Lane, want: int) -> None:
        lane.ask()
        leases: list[Lease] = []
        now, asked = time.time(), time.monotonic()
        try:
            leases = list(
                await self._store.lease(
                    self.owner, lane.project, lane.stored_as, limit=want, now=now, until=now + LEASE_S
                )
            )
            lane.took_over(want, leases)
        except RequestError as error:
            log.warning("cannot lease jobs of %s: %s", lane.key, error)
            self._no_lease(lane, now)
        except Exception:
            log.exception("cannot lease jobs of %s", lane.key)
            if not leases:
                self._no_lease(lane, now)
        finally:
            lane.leasing = False
        for lease in leases:
            self._take(lane, lease, asked)
        self._pump(lane)

    def _no_lease(self, lane: Lane, at: float) -> None:
        lane.retry_at = time.monotonic() + STORE_AGAIN_S
        self._leases.unanswered(lane, at)

    def _take(self, lane: Lane, lease: Lease, asked: float) -> None:
        run = Run(lease, lane, leased_at=asked)
        self._runs[lease.job.id] = run
        if self._stopping:
            self._give_back(run, "its gateway stopped")
        elif lease.job.input.blob:
            lane.sent.add(run)
            self._spawn(self._fetch(run))
        else:
            lane.hold(run)

    async def _fetch(self, run: Run) -> None:
        """Get a large input from the blob store."""
        job = run.lease.job
        await self._inputs.take(job.input.size)
        if run.void or self._stopping:
            self._inputs.give(job.input.size)
            return
        run.borrowed = job.input.size
        try:
            data = await self._blobs.get(job.input.blob)
        except RequestError as error:
            run.lane.sent.discard(run)
            self._ended(run, Outcome(error=error))
            return
        job = msgspec.structs.replace(job, input=msgspec.structs.replace(job.input, data=data))
        run.lease = msgspec.structs.replace(run.lease, job=job)
        run.lane.sent.discard(run)
        if not run.void:
            run.lane.hold(run)
            self._pump(run.lane)

    async def _doom(self, lane: Lane) -> None:
        """Fail jobs of an endpoint that is not there any more."""
        error = EndpointNotFound(f"endpoint {lane.key} was deleted.")
        now = time.time()
        try:
            leases = await self._store.lease(
                self.owner, lane.project, lane.stored_as, limit=MAX_DOOMED, now=now, until=now + LEASE_S
            )
            for lease in leases:
                run = self._runs[lease.job.id] = Run(lease, lane)
                self._ended(run, Outcome(error=error))
        except RequestError:
            log.warning("cannot end the jobs of %s", lane.key)
            self._leases.unanswered(lane, now)
        finally:
            lane.leasing = False

    # -- one run ----------------------------------------------------------------------------------

    def _send(self, run: Run, state: EndpointState) -> None:
        if (late := deadline_passed(run.lease.job)) is not None:
            self._ended(run, Outcome(error=late))
            return

        def done(outcome: Outcome) -> None:
            self._ended(run, outcome)

        if run.lane.sync and self.client_for is not None:
            client = self.client_for(run, done)
        else:
            client = JobClient(done, None if run.lane.sync else lambda items: self._items(run, items))
        run.client, run.idempotent = client, state.route.idempotent
        run.lane.sent.add(run)
        job = run.lease.job
        if job.attempts - job.unsent > 1:
            run.asking = True
            self._spawn(self._take_over(run, state))
        else:
            begin(self._dispatcher, run, state, self._leases)

    async def _take_over(self, run: Run, state: EndpointState) -> None:
        """Another attempt was before this one: it may have ended without its gateway."""
        taken = False
        try:
            taken = await take_over(run, state)
        except Exception:
            log.exception("asking for the answer of job %s failed", run.lease.job.id)
        run.asking = False
        if taken or run.void or run.settling:
            return
        if (error := sent_before(run)) is not None:
            self._ended(run, Outcome(error=error))
        else:
            begin(self._dispatcher, run, state, self._leases)

    def _moved(self, run: Run) -> None:
        """An instance has it: the next one may wait in the queue."""
        lane = run.lane
        if run.call is not None and (run.call.state.queue or lane.urgent or (lane.waiting and not lane.held)):
            asyncio.get_running_loop().call_soon(self._pump, lane)

    def _items(self, run: Run, items: list[bytes]) -> None:
        run.pending.extend(items)
        if not run.flushing:
            run.flushing = True
            run.flushed.clear()
            self._spawn(self._flush(run))

    async def _flush(self, run: Run) -> None:
        if not await self._results.flush(run):
            self._void(run)

    def _ended(self, run: Run, outcome: Outcome) -> None:
        """The attempt is over (called by its call, or before it had one)."""
        lane = run.lane
        lane.sent.discard(run)
        if run.void or run.settling:
            return
        if run.sent_at and outcome.status:
            lane.took(max(0.0, time.time() - run.sent_at))
        run.settling = True
        lane.settling += 1
        outcome.instance = run.instance
        outcome.accepted, outcome.started_at = run.accepted, run.sent_at
        self._spawn(self._settle(run, outcome))
        if outcome.error is not None:
            asyncio.get_running_loop().call_soon(self._pump, lane)

    async def _settle(self, run: Run, outcome: Outcome) -> None:
        job = run.lease.job
        result: Result | None = None
        try:
            result = await self._results.settle(run, outcome)
            if result is not None:
                self.finished(job, result)
        finally:
            run.lane.settling -= 1
            self._forget(run)
            self._hub.ring(job.id)
            if result is None:
                self._looks.soon()

    def _returned(self, run: Run) -> None:
        """It got no slot here: for another gateway, or in another order."""
        if not run.settling and not run.void:
            if run in run.lane.held:
                run.lane.held.remove(run)
            self._end_call(run)
            self._give_back(run, "")

    def _give_back(self, run: Run, reason: str) -> None:
        run.settling = True
        run.lane.sent.discard(run)
        run.lane.settling += 1
        self._spawn(self._give(run, Release(reason, lost=True, unsent=not run.accepted)))

    async def _give(self, run: Run, how: Release) -> None:
        try:
            await self._results.release(run, how)
            run.lane.waiting += 1
        except RequestError as error:
            log.warning("job %s: its lease will expire: %s", run.lease.job.id, error)
        finally:
            run.lane.settling -= 1
            self._forget(run)

    def _void(self, run: Run) -> None:
        run.void = True
        self._end_call(run)
        self._forget(run)
        self._hub.ring(run.lease.job.id)
        self._pump(run.lane)

    def _end_call(self, run: Run) -> None:
        if run.client is not None:
            run.client.forget()
        if run.call is not None:
            run.call.cancel()

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.lease.job.id) is run:
            del self._runs[run.lease.job.id]
            self._inputs.give(run.borrowed)
            run.borrowed = 0
            if not self._runs and self._over_all is not None and not self._over_all.done():
                self._over_all.set_result(None)
        run.lane.sent.discard(run)
        if run in run.lane.held:
            run.lane.held.remove(run)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a job's attempt was not stored", exc_info=error)
