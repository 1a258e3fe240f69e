"""What the checks of `headrace.jobs.conformance` work with: a store, a clock of their own, short words."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from headrace.jobs.model import Counts, Ended, Job, Lease, NewJob, Payload, Result
from headrace.jobs.store import JobStore

PROJECT = "proj"
LEASE_S = 10.0
Open = Callable[[], Awaitable[JobStore]]


@dataclass
class Harness:
    """How to check one kind of store.

    ``open`` opens the same data at every call, by itself as another process would. The data is empty at the
    first call of a check.
    """

    open: Open


@dataclass
class Bench:
    """A store under check. ``now`` moves only when a check moves it."""

    open: Open
    store: JobStore
    now: float = field(default_factory=lambda: float(int(time.time())))

    async def submit(self, job_id: str, *, data: bytes = b"{}", **more: Any) -> Job:
        """Store a job that is new."""
        job, new = await self.store.submit(self.new(job_id, data=data, **more), self.now)
        assert new, f"{job_id} is not new"
        return job

    def new(
        self, job_id: str, *, data: bytes = b"{}", project: str = PROJECT, endpoint: str = "e", **more: Any
    ) -> NewJob:
        """A job to be submitted."""
        values: dict[str, Any] = {"input": Payload(data=data, size=len(data))} | more
        return NewJob(id=job_id, project=project, endpoint=endpoint, **values)

    async def lease(
        self, limit: int = 10, *, owner: str = "w1", endpoint: str = "e", store: JobStore | None = None
    ) -> Sequence[Lease]:
        """Lease jobs for `LEASE_S`."""
        return await (store or self.store).lease(
            owner, PROJECT, endpoint, limit=limit, now=self.now, until=self.now + LEASE_S
        )

    async def lease_one(self, *, owner: str = "w1", endpoint: str = "e") -> Lease:
        """Lease the one job that there is."""
        leases = await self.lease(owner=owner, endpoint=endpoint)
        assert len(leases) == 1, f"leased {len(leases)} jobs, not one"
        return leases[0]

    async def sent(self, *leases: Lease, at: float | None = None) -> None:
        """Instances have these jobs now."""
        for lease in leases:
            sent_at = self.now if at is None else at
            assert await self.store.note(lease.job.id, lease.fence, instance="i-1", sent_at=sent_at)

    async def finish(self, lease: Lease, result: Result | None = None) -> bool:
        """Finish an attempt; by default it succeeded."""
        return await self.store.finish(lease.job.id, lease.fence, result or succeeded(), self.now)

    async def release(
        self,
        lease: Lease,
        *,
        lost: bool,
        reason: str = "given back",
        delay_s: float = 0.0,
        unsent: bool = False,
    ) -> bool:
        """Give a lease back."""
        return await self.store.release(
            lease.job.id, lease.fence, self.now, reason=reason, lost=lost, delay_s=delay_s, unsent=unsent
        )

    async def get(self, job_id: str) -> Job:
        """A job that must be there."""
        job = await self.store.get(PROJECT, job_id)
        assert job is not None, f"{job_id} is gone"
        return job

    async def expect(self, job_id: str, state: str) -> Job:
        """A job that must be in a state."""
        job = await self.get(job_id)
        assert job.state == state, f"{job_id} is {job.state}, not {state}"
        return job

    async def counts(self, endpoint: str = "e") -> Counts:
        """Counts of an endpoint."""
        return await self.store.counts(PROJECT, endpoint)

    def ended(self) -> list[Ended]:
        """Collects what the store tells of jobs that it ends by itself, from now on."""
        found: list[Ended] = []
        self.store.ended = found.append
        return found

    async def reopen(self) -> None:
        """Close the store and open its data again."""
        await self.store.close()
        self.store = await self.open()


def succeeded(data: bytes = b"1", *, blob: str = "", size: int | None = None) -> Result:
    """A good result."""
    size = len(data) if size is None else size
    return Result(state="succeeded", output=Payload(data=b"" if blob else data, blob=blob, size=size))


def failed(detail: str = "broken") -> Result:
    """A result of an attempt that failed for good."""
    return Result(
        state="failed", error={"type": "urn:headrace:handler-error", "detail": detail}, reason=detail
    )


@asynccontextmanager
async def opened(harness: Harness) -> AsyncIterator[Bench]:
    """A bench with an open store."""
    bench = Bench(harness.open, await harness.open())
    try:
        yield bench
    finally:
        await bench.store.close()
