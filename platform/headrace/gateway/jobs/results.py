"""Puts what comes of attempts into the store, with their fences, also while the store is away for a while."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

import msgspec

from headrace.errors import RequestError
from headrace.gateway.jobs.hub import Hub
from headrace.gateway.jobs.lanes import Run
from headrace.gateway.jobs.outcome import Release, judge, payload_fields, receipt_of, started_of
from headrace.gateway.jobs.sink import Outcome
from headrace.gateway.receipt import steps
from headrace.jobs.blobs import FRESH_S, BlobStore
from headrace.jobs.model import INLINE_BYTES, Payload, Result
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

STORE_AGAIN_S = 1.0
KEEP_RESULT_S = 120.0
"""A result that the store does not take is kept so long; then the job runs again, when its lease expires."""
KEEP_LARGE_S = 3600.0
"""The same of outputs that the blob store does not take, while together they are within `KEPT_BYTES`."""
KEPT_BYTES = 256 << 20
UNNAMED_S = FRESH_S + 60.0
"""A blob may be without a name for so long: young ones are not deleted anyway."""


LARGE_BYTES = 128 << 20
"""Bytes of items that are put together at a time."""
ITEMS_AT_ONCE = 1000


class Results:
    """See the module."""

    def __init__(self, store: JobStore, blobs: BlobStore, hub: Hub) -> None:
        self._store = store
        self._blobs = blobs
        self._hub = hub
        self._large = Budget(LARGE_BYTES)
        self._kept = 0

    async def flush(self, run: Run) -> bool:
        """Store stream items in batches as large as came in the meantime. False: the fence is void."""
        job_id, fence = run.key
        try:
            while run.pending and not run.void:
                run.batch, run.pending = run.pending, []
                if not await insist(lambda: self._store.append(job_id, fence, run.seq, run.batch)):
                    return False
                run.seq += len(run.batch)
                if run.client is not None:
                    run.client.stored(sum(len(item) for item in run.batch))
                self._hub.ring(job_id)
        finally:
            run.batch = []
            run.flushing = False
            run.flushed.set()
        return True

    async def settle(self, run: Run, outcome: Outcome) -> Result | None:
        """Store the result, or give the job back. None: nothing was stored, or it came too late."""
        job = run.lease.job
        if run.flushing:
            await run.flushed.wait()
        way = steps(run.call) if run.call is not None else None
        verdict = judge(job, outcome, idempotent=run.idempotent, receipt=receipt_of(job, outcome, way))
        if isinstance(verdict, Release):
            await insist(lambda: self.release(run, verdict))
            return None
        result = verdict.result
        if verdict.stored_bytes:
            payload = await self._together(run, verdict.stored_bytes)
            result = msgspec.structs.replace(result, output=payload)
        if verdict.body is not None:
            payload = payload_fields(verdict)
            if payload.size > INLINE_BYTES:
                payload = await self._put(payload)
            result = msgspec.structs.replace(result, output=payload)
        result = msgspec.structs.replace(
            result, started_at=started_of(outcome), instance=str(result.receipt.get("instance", ""))
        )
        job_id, fence = run.key
        finish = partial(self._store.finish, job_id, fence)
        try:
            stored = await insist(lambda: finish(result, time.time()))
        except Exception as error:
            if isinstance(error, RequestError) and error.status == 503:
                raise
            # It would run again and again, to the same end.
            log.exception("the result of job %s cannot be stored", job_id)
            result = msgspec.structs.replace(unstorable(error, job_id), started_at=result.started_at)
            stored = await insist(lambda: finish(result, time.time()))
        if not stored and run.call is not None:
            run.call.state.meter.late += 1
        return result if stored else None

    async def _together(self, run: Run, size: int) -> Payload:
        """The items that were stored, in the blob store as one output."""
        job_id, fence = run.key
        await self._large.take(size)
        try:
            items: list[bytes] = []
            read = partial(self._store.chunks, job_id, attempt=fence, limit=ITEMS_AT_ONCE)
            while page := await insist(partial(read, after=len(items) - 1)):
                if page[0].attempt != fence:
                    break  # not ours any more: nothing of it will be stored
                items += [chunk.data for chunk in page]
            data = b"[%b]" % b",".join(items)
            items.clear()
            payload = Payload(data=data, size=len(data))
            return await self._put(payload)
        finally:
            self._large.give(size)

    async def _put(self, payload: Payload) -> Payload:
        """The payload in the blob store, also after an outage: what has run is not to run again for that."""
        self._kept += payload.size

        def keep_s() -> float:
            return KEEP_LARGE_S if self._kept <= KEPT_BYTES else KEEP_RESULT_S

        try:
            put = partial(store_payload, self._store, self._blobs, payload)
            return cast(Payload, await insist(put, keep_s))
        finally:
            self._kept -= payload.size

    async def release(self, run: Run, how: Release) -> bool:
        """Give the lease back."""
        job_id, fence = run.key
        return await self._store.release(
            job_id,
            fence,
            time.time(),
            reason=how.reason[:500],
            lost=how.lost,
            delay_s=how.delay_s,
            unsent=how.unsent,
        )


class Budget:
    """So many bytes at a time, first come first served; what is larger goes alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait for room."""
        if not self._queue and self._fits(size):
            self._taken += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It came in the same moment: nobody else would give it back.
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self._taken -= size
        while self._queue and (self._queue[0][1].done() or self._fits(self._queue[0][0])):
            waiting, turn = self._queue.popleft()
            if not turn.done():
                self._taken += waiting
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._size


def unstorable(error: Exception, job_id: str) -> Result:
    """What is kept in place of a result that the store refuses."""
    what = f"the result cannot be stored ({type(error).__name__})."
    problem = RequestError(what, hint="The gateway's log has more.").to_problem(job_id)
    return Result(state="failed", error=problem, reason=what)


async def insist(
    act: Callable[[], Coroutine[Any, Any, Any]], keep_s: Callable[[], float] = lambda: KEEP_RESULT_S
) -> Any:
    """Do it, again and again while the store does not answer, for ``keep_s``."""
    began = time.monotonic()
    while True:
        try:
            return await act()
        except RequestError as error:
            if error.status != 503 or time.monotonic() - began > keep_s():
                raise
            await asyncio.sleep(STORE_AGAIN_S)


async def store_payload(store: JobStore, blobs: BlobStore, payload: Payload) -> Payload:
    """The payload with its data in the blob store.

    The job store knows of the blob before it is put: when nothing comes to name it (a submission that is
    refused, a gateway that dies), a sweep removes it.
    """
    sha256 = await asyncio.to_thread(lambda: hashlib.sha256(payload.data).hexdigest())
    await store.announce_blob(sha256, time.time() + UNNAMED_S)
    await blobs.put(payload.data)
    return msgspec.structs.replace(payload, data=b"", blob=sha256)
