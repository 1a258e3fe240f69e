"""What the end of an attempt means for its job: a result, or another attempt. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from headrace.errors import (
    TYPE_PREFIX,
    ControlAway,
    DeadlineExceeded,
    EndpointFailed,
    InstanceDied,
    NoCapacity,
    QueueFull,
    RequestError,
)
from headrace.gateway.jobs.sink import Outcome, problem_of
from headrace.jobs.model import Job, Payload, Result

REFUSALS: tuple[type[RequestError], ...] = (QueueFull, NoCapacity, ControlAway, EndpointFailed)
"""The job was not run at all: the reason passes, and the job waits for that."""
REFUSED_STATUS = (429, 503)
RELEASE_DELAY_S = 2.0
LATE = TYPE_PREFIX + DeadlineExceeded.type
REFUSED = "refused"
"""Member of the receipt of a sync call that was never run: the same key may try again."""


@dataclass(frozen=True, slots=True)
class Release:
    """The job goes back to the queue."""

    reason: str
    lost: bool
    delay_s: float = 0.0
    unsent: bool = False
    """No instance has had it: nothing is counted."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt's result; ``body`` is the output, to be stored by its size."""

    result: Result
    body: bytes | None = None
    content_type: str = "application/json"
    stored_bytes: int = 0
    """Bytes of items in the store which together are the output, in place of ``body``."""


def judge(  # noqa: PLR0911 - one per kind of end
    job: Job, outcome: Outcome, *, idempotent: bool, receipt: dict[str, Any]
) -> Ended | Release:
    """What becomes of the job."""
    if job.api == "sync":
        return _sync(job, outcome, receipt)
    error = outcome.error
    if error is not None:
        if isinstance(error, REFUSALS) or (error.status in REFUSED_STATUS and not outcome.status):
            # Room may come at any moment; a store that is away stays away for longer.
            delay_s = RELEASE_DELAY_S if isinstance(error, REFUSALS) else pause_s(job.unsent)
            return Release(str(error), lost=True, delay_s=delay_s, unsent=not outcome.accepted)
        return _ended(error.to_problem(job.id), receipt)
    if outcome.cut:
        problem = outcome.problem or _broke_off(job)
        late = problem.get("type") == LATE
        if idempotent and not late and job.attempts - job.unsent - job.lost < job.max_attempts:
            return Release(str(problem.get("detail", "")), lost=False)
        return _ended(problem, receipt)
    if outcome.problem is not None or outcome.status >= 400:
        return _ended(problem_of(outcome), receipt)
    result = Result(state="succeeded", receipt=receipt)
    if outcome.items is not None and not outcome.whole:
        return Ended(result, stored_bytes=outcome.size)
    return Ended(result, outcome.body if outcome.whole else None, outcome.content_type)


def _sync(job: Job, outcome: Outcome, receipt: dict[str, Any]) -> Ended | Release:
    """A sync call: what the instance answered is the answer, whatever it was."""
    error = outcome.error
    if error is not None and not outcome.status:
        receipt = {**receipt, "headers": outcome.headers} if outcome.headers else receipt
        problem = error.to_problem(job.id)
        if isinstance(error, REFUSALS) or error.status in REFUSED_STATUS:
            receipt = {**receipt, REFUSED: True}
        return _ended(problem, receipt)
    if error is not None or outcome.cut:
        problem = error.to_problem(job.id) if error is not None else outcome.problem or _broke_off(job)
        return _ended(problem, receipt)
    receipt = {**receipt, "status": outcome.status, "headers": outcome.headers, "streamed": not outcome.whole}
    if outcome.status < 400:
        result = Result(state="succeeded", receipt=receipt)
    else:
        result = Result(state="failed", error=problem_of(outcome), receipt=receipt)
    return Ended(result, outcome.body if outcome.whole else None, outcome.content_type)


def receipt_of(
    job: Job, outcome: Outcome, steps: dict[str, Any] | None = None, now: float | None = None
) -> dict[str, Any]:
    """Where the job's time went, in milliseconds, and where it ran. ``steps``: what the gateway saw of it,
    unless the answer was kept from an earlier attempt."""
    now = time.time() if now is None else now
    timings = dict(outcome.timings)
    queue_ms = timings.pop("queue_ms", 0.0)
    if started_at := started_of(outcome, now):
        queue_ms = max(0.0, started_at - job.created_at) * 1e3
    receipt: dict[str, Any] = {"queued_ms": round(queue_ms, 3), **timings, **(steps or {})}
    receipt["total_ms"] = round(max(0.0, now - job.created_at) * 1e3, 3)
    if outcome.instance:
        receipt["instance"] = outcome.instance
    if outcome.items is not None:
        receipt["items"] = outcome.items
    return receipt


def started_of(outcome: Outcome, now: float | None = None) -> float | None:
    """When the attempt began to run; None: it did not."""
    if outcome.started_at or not outcome.status:
        return outcome.started_at or None
    handler_ms = float(outcome.timings.get("handler_ms", 0.0))
    return (time.time() if now is None else now) - handler_ms / 1e3


def pause_s(before: int) -> float:
    """How long a job waits whose input cannot be had, after so many leases without an attempt: 2 ... 60 s."""
    return RELEASE_DELAY_S * min(30.0, 2.0 ** min(before, 10))


def payload_fields(ended: Ended) -> Payload:
    """The output inline; whoever stores it may move it to the blob store."""
    body = ended.body or b""
    return Payload(content_type=ended.content_type or "application/octet-stream", data=body, size=len(body))


def _broke_off(job: Job) -> dict[str, Any]:
    return InstanceDied("the instance died in the middle of its answer.").to_problem(job.id)


def _ended(problem: dict[str, Any], receipt: dict[str, Any]) -> Ended:
    reason = str(problem.get("detail") or problem.get("title") or "")[:500]
    late = problem.get("type") == LATE
    result = Result(state="timed_out" if late else "failed", error=problem, receipt=receipt, reason=reason)
    return Ended(result)
