"""Values of jobs: what is submitted, what is stored, what a worker leases, what it reports.

Times are seconds since the Unix epoch (``..._at``), durations seconds (``..._s``).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from headrace.jobs.state import JobState

Priority = Literal["low", "normal", "high"]
Api = Literal["native", "sync", "runpod", "cog"]
PRIORITY_RANK: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
HIGH_COUNTED = 128
"""No worker leases more at a time."""

INLINE_BYTES = 1 << 20
"""Inputs and outputs above this go to the blob store."""
ASYNC_RETENTION_S = 1800.0
SYNC_RETENTION_S = 60.0


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values here."""


class Payload(Value, frozen=True, kw_only=True):
    """A body: inline, or named in the blob store."""

    content_type: str = "application/json"
    data: bytes = b""
    blob: str = ""
    """SHA-256 (hex) in the blob store; then ``data`` is empty."""
    size: int = 0


class Webhook(Value, frozen=True, kw_only=True):
    """Whom to tell. ``events``: ``start``, ``output``, ``logs``, ``completed``; empty: ``completed``."""

    url: str
    events: tuple[str, ...] = ()


class NewJob(Value, frozen=True, kw_only=True):
    """A job as it is submitted. ``id`` is chosen before, so that it can be named in its input."""

    id: str
    project: str
    endpoint: str
    """Name, without the project."""
    input: Payload
    version: int | None = None
    method: str = "POST"
    path: str = "/"
    api: Api = "native"
    key_id: str = ""
    idempotency_key: str | None = None
    """Unique within (project, endpoint) for as long as the job is kept."""
    fingerprint: str = ""
    """Of the request: the same key with another one is a conflict."""
    priority: Priority = "normal"
    webhook: Webhook | None = None
    ttl_s: float | None = None
    """Must have finished so long after its submission, else ``timed_out``."""
    execution_timeout_s: float = 600.0
    """One attempt may take so long, else ``timed_out``."""
    max_attempts: int = 3
    retention_s: float = ASYNC_RETENTION_S
    """Kept so long after its end."""
    traceparent: str = ""
    waiter: tuple[str, str] | None = None
    """(gateway, id) of a client that waits for its end; see `JobStore.abandon`."""
    context: dict[str, Any] = {}
    """What the API that took it needs again (for example Cog's echo of the input)."""


class Job(Value, frozen=True, kw_only=True):
    """A stored job."""

    id: str
    project: str
    endpoint: str
    api: Api
    state: JobState
    priority: Priority
    version: int | None
    method: str
    path: str
    key_id: str
    input: Payload
    fingerprint: str
    webhook: Webhook | None
    execution_timeout_s: float
    max_attempts: int
    retention_s: float
    traceparent: str
    context: dict[str, Any]
    created_at: float
    deadline_at: float | None
    started_at: float | None = None
    """When an instance got it, in the attempt that runs or ran last; None: none has it. A job that is
    ``running`` without this is leased, and waits in a gateway."""
    finished_at: float | None = None
    queued_at: float | None = None
    """When it was queued again, after an attempt or for a retry; None: never, so at ``created_at``."""
    attempts: int = 0
    """Leases taken so far."""
    lost: int = 0
    """Attempts that ended without a result through no fault of the job (host, node, gateway)."""
    unsent: int = 0
    """Leases that were given back before any instance had the job: they are no attempts."""
    sent: int = 0
    """The fence of the latest lease, since the last retry, in which an instance may have begun; 0: none."""
    retried: int = 0
    output: Payload | None = None
    error: dict[str, Any] | None = None
    """Problem document."""
    receipt: dict[str, Any] = {}
    progress: Any = None
    reason: str = ""
    """Why it waits, or why it died, for people."""


class Waiting(Value, frozen=True, kw_only=True):
    """An endpoint that has queued jobs."""

    project: str
    endpoint: str
    queued: int
    oldest_at: float
    """When the oldest of them was created."""
    best: int | None = None
    """`PRIORITY_RANK` of the next one that may be leased; None: all have to wait for a time."""
    high: int = 0
    """How many of high priority may be leased, counted to `HIGH_COUNTED`."""


class Lease(Value, frozen=True, kw_only=True):
    """The right to work on a job until ``until``. ``fence`` grows with every lease of the job."""

    job: Job
    fence: int
    owner: str
    until: float


class Result(Value, frozen=True, kw_only=True):
    """How an attempt ended."""

    state: Literal["succeeded", "failed", "cancelled", "timed_out"]
    output: Payload | None = None
    error: dict[str, Any] | None = None
    receipt: dict[str, Any] = {}
    reason: str = ""
    started_at: float | None = None
    """When an instance got the job."""
    instance: str = ""


class Attempt(Value, frozen=True, kw_only=True):
    """One attempt, kept for the receipt."""

    number: int
    owner: str
    started_at: float
    ended_at: float | None = None
    instance: str = ""
    outcome: str = ""
    """A final state, ``lost`` (lease ended without a result), or ``fenced`` (result came late)."""
    detail: str = ""


class Chunk(Value, frozen=True, kw_only=True):
    """One item of a stream. Chunks of a new attempt replace those of the old one."""

    attempt: int
    seq: int
    data: bytes


class Delivery(Value, frozen=True, kw_only=True):
    """A webhook to be delivered; ``id`` is stable over all tries (header ``webhook-id``)."""

    id: str
    job: str
    project: str
    event: str
    url: str
    body: bytes
    """An `headrace.jobs.events.Event`, encoded; what is sent is rendered from it."""
    tries: int
    """This one included: from 1."""
    created_at: float


class Undelivered(Value, frozen=True, kw_only=True):
    """A webhook event that its receiver has not taken."""

    event: str
    tries: int
    created_at: float
    next_at: float | None
    """When it is tried again; None: it was given up."""
    detail: str = ""
    """What came of the last try."""


class Ended(NamedTuple):
    """A job that a store has ended by itself."""

    project: str
    endpoint: str
    state: JobState
    created_at: float


class Counts(Value, frozen=True, kw_only=True):
    """Jobs of one endpoint by state (finished ones as long as they are kept), and the oldest queued one."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    retried: int = 0
    oldest_queued_at: float | None = None
