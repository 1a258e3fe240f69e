"""The contract of job stores. SQLite and PostgreSQL obey it; `headrace.jobs.conformance` checks both.

Whatever a method returns has been committed. All methods may be called from one event loop by many tasks at
once; writes are grouped into few commits. Methods raise `StoreUnavailable` when the store does not answer.
What workers write always can be kept: JSON with numbers of any size, and text in which U+FFFD takes the place
of NUL and of surrogates. A record that cannot be read keeps no other job from its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from headrace import errors
from headrace.jobs.model import (
    Attempt,
    Chunk,
    Counts,
    Delivery,
    Ended,
    Job,
    Lease,
    NewJob,
    Result,
    Undelivered,
    Waiting,
)
from headrace.jobs.state import JobState

StoreUnavailable = errors.StoreUnavailable
IdempotencyConflict = errors.IdempotencyConflict

MAX_LOST = 100
"""So many lost attempts (since the submission or the last retry) end a job as ``job-lost``, when no deadline
ended it before: something about it may be what kills its workers."""


TAKE_BYTES = 8 << 20
NOTED_S = 2.0
"""A lease so old is noted when an instance has the job; before, that may be on its way."""


class JobStore(Protocol):
    """See the module. ``now`` is always the caller's clock, in seconds since the Unix epoch."""

    ended: Callable[[Ended], None]
    """Told, once it is committed, of each job that a call here has ended by itself: with its time to live, or
    with the last attempt that it had. For whoever counts; does nothing until it is set."""

    async def close(self) -> None:
        """Commit what is queued and close."""

    # -- clients ------------------------------------------------------------------------------

    async def submit(self, new: NewJob, now: float) -> tuple[Job, bool]:
        """Store a job; (job, whether it is new). A known idempotency key gives the job it has, and so does
        a known id in the same project and endpoint (a submit that is repeated because its answer was lost).
        ``new.waiter`` waits from now on for the job that is given, unless it has ended.

        Raises `IdempotencyConflict` when that one's fingerprint differs, or the id is somebody else's.
        """
        ...

    async def get(self, project: str, job_id: str) -> Job | None:
        """One job."""
        ...

    async def has_key(self, project: str, endpoint: str, idempotency_key: str) -> bool:
        """Whether a job with the key is kept."""
        ...

    async def list(
        self,
        project: str,
        *,
        endpoint: str | tuple[str, ...] | None = None,
        states: Sequence[JobState] = (),
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Newest first, without inputs and outputs' data; (page, cursor of the next one: decimal digits).

        ``endpoint``: only of this one, or of any of these. ``states``: only in these; none given: in any. A
        job that is leased, and that no instance has, is told as ``running`` and found under ``queued``.
        """
        ...

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """All attempts, oldest first."""
        ...

    async def chunks(
        self, job_id: str, *, attempt: int = 0, after: int = -1, limit: int = 1000
    ) -> Sequence[Chunk]:
        """Chunks of the latest attempt: after ``after`` when ``attempt`` is still that one, else all."""
        ...

    async def take_chunks(
        self, job_id: str, *, limit: int = 1000, max_bytes: int = TAKE_BYTES
    ) -> Sequence[Chunk]:
        """The next chunks of the latest attempt that no call has given yet, whichever gateway or client made
        it: each is given once, and after a new attempt has begun they come from its first. At most ``limit``,
        and none after the one with which they have ``max_bytes``."""
        ...

    async def cancel(self, project: str, job_id: str, now: float) -> Job | None:
        """Queued: cancelled at once. Running: cancelled at once too; its worker's fence is void."""
        ...

    async def abandon(self, waiter: str, now: float, *, free_key: bool) -> Job | None:
        """A waiter is gone. When it was the last one, its job is cancelled and, with ``free_key``, lets go of
        its idempotency key, so that the same key runs again. Gives the job if that has just happened.
        """
        ...

    async def announce_blob(self, blob: str, until: float) -> None:
        """A blob is about to be put for what is not stored yet. A sweep after ``until`` gives it unless
        something names it by then: whatever kept that from being stored, the blob does not stay."""
        ...

    async def retry(self, project: str, job_id: str, now: float) -> Job | None:
        """A failed or timed-out job is queued again, same id. Others: unchanged. None: unknown.

        It gets ``max_attempts`` and its time to live anew; result, progress and chunks of before are gone.
        """
        ...

    async def purge(self, project: str, endpoint: str, now: float, *, owner: str | None = None) -> int:
        """Remove all jobs of the endpoint that no instance has: queued ones, and leased ones that wait in a
        gateway; how many.

        ``owner``: the worker that asks, which has noted what instances have of its own, and notes first what
        it sends until this has returned. What others leased in the last `NOTED_S` stays: instances may have
        it, and the store is not told yet.
        """
        ...

    async def counts(self, project: str, endpoint: str) -> Counts:
        """Jobs by state; cheap with any number of jobs."""
        ...

    # -- workers ------------------------------------------------------------------------------

    async def waiting(self, now: float, limit: int = 10_000) -> Sequence[Waiting]:
        """Endpoints with queued jobs; cheap with any number of jobs."""
        ...

    async def lease(
        self, owner: str, project: str, endpoint: str, *, limit: int, now: float, until: float
    ) -> Sequence[Lease]:
        """Take up to ``limit`` queued jobs, high priority first. They are ``running`` now.

        Within a priority API keys (``key_id``) take turns, each with its oldest first: a key that had nothing
        queued is next, however many jobs others have. A job that was released keeps its place, one that was
        retried comes after those of its key.
        Two workers never get the same job (PostgreSQL: SKIP LOCKED).
        """
        ...

    async def take_back(self, owner: str, calls: Sequence[tuple[str, str, float]], now: float) -> int:
        """Queue again what `lease` calls took whose answers never came: (project, endpoint, their ``now``);
        how many. Only what is the owner's still, and noted as with no instance. As with ``unsent`` of
        `release` nothing is counted, and each keeps its place.
        """
        ...

    async def heartbeat(self, owner: str, leases: Sequence[tuple[str, int]], until: float) -> Sequence[str]:
        """Prolong (job id, fence) pairs; gives the ids that are not the owner's any more."""
        ...

    async def note(
        self,
        job_id: str,
        fence: int,
        *,
        instance: str = "",
        progress: bytes | None = None,
        sent_at: float | None = None,
    ) -> bool:
        """Record where the attempt runs, since when (0: not any more, it was refused), or a progress update
        (JSON); False when the fence is void."""
        ...

    async def append(self, job_id: str, fence: int, first_seq: int, items: Sequence[bytes]) -> bool:
        """Append stream chunks of the attempt; False when the fence is void."""
        ...

    async def finish(self, job_id: str, fence: int, result: Result, now: float) -> bool:
        """Store the result, once. False: the fence is void, and the late result was dropped and counted."""
        ...

    async def release(
        self,
        job_id: str,
        fence: int,
        now: float,
        *,
        reason: str,
        lost: bool,
        delay_s: float = 0.0,
        unsent: bool = False,
    ) -> bool:
        """Give the lease back without a result: queued again, not before ``delay_s`` from now.

        ``lost``: through no fault of the job. Else the attempt counts, and the last of ``max_attempts``
        makes the job ``failed`` (problem type ``urn:headrace:job-lost``, with the reason).
        ``unsent``: no instance had it. Then nothing is counted, however often, the lease is no attempt, and
        without a reason the one of before stays. False: the fence is void.
        """
        ...

    async def release_owner(self, owner: str, now: float) -> int:
        """Queue again all that a worker held which is known to be gone (its predecessor, at start). Its
        waiters are gone, too, and may come back elsewhere: what they waited for goes on."""
        ...

    async def dropped(self) -> int:
        """Late results that were dropped since the store was made."""
        ...

    # -- time ---------------------------------------------------------------------------------

    async def sweep(self, now: float, limit: int = 1000, *, leases: bool = True) -> Sequence[str]:
        """Queue again what has an expired lease (or fail it, out of attempts, with the reason); time
        out what is past its deadline; remove what is past its retention. Gives blobs that nothing names now;
        the same one may be given more than once, so that none stays when its deletion was missed.

        Not ``leases``: expired ones stay, since those who hold them could not prolong them. However late it
        gets to its work, nothing ends by it that had not yet ended at ``now``.
        """
        ...

    # -- webhooks -----------------------------------------------------------------------------

    async def due(self, owner: str, now: float, until: float, limit: int = 100) -> Sequence[Delivery]:
        """Take webhooks that are due; they come again at ``until`` unless settled."""
        ...

    async def settle(
        self, delivery_id: str, *, delivered: bool, next_at: float | None, detail: str = ""
    ) -> None:
        """Delivered; or try again at ``next_at``; or (None) given up. Moves queue their events."""
        ...

    async def undelivered(self, job_id: str) -> Sequence[Undelivered]:
        """Webhook events of a job that were not delivered, oldest first, with those that were given up."""
        ...
