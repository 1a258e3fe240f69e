"""Jobs as the native API and its webhooks show them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.gateway.jobs.lanes import SYNC_PREFIX, Run
from headrace.jobs.events import Event
from headrace.jobs.model import Attempt, Job

if TYPE_CHECKING:
    from headrace.gateway.endpoints import EndpointState

INLINE_OUTPUT_BYTES = 1 << 20


def document(
    job: Job,
    *,
    attempts: Sequence[Attempt] | None = None,
    waiting: dict[str, Any] | None = None,
    output: bytes | None = None,
) -> dict[str, Any]:
    """The job as JSON. ``output`` is the output's bytes when they are at hand and small."""
    doc: dict[str, Any] = {
        "id": job.id,
        "endpoint": job.endpoint.removeprefix(SYNC_PREFIX),
        "version": job.version,
        "api": job.api,
        "state": job.state,
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "deadline_at": job.deadline_at,
        "attempts": job.attempts if attempts is None else [attempt_document(a) for a in attempts],
        "lost": job.lost,
        "retried": job.retried,
        "progress": job.progress,
        "reason": job.reason,
        "error": job.error,
        "receipt": job.receipt,
        "waiting": waiting,
        "output": None,
        "output_size": None,
        "output_type": None,
    }
    if job.output is not None:
        doc["output_size"], doc["output_type"] = job.output.size, job.output.content_type
        if output is not None and len(output) <= INLINE_OUTPUT_BYTES and is_json(job.output.content_type):
            doc["output"] = msgspec.Raw(output or b"null")
    return doc


def attempt_document(attempt: Attempt) -> dict[str, Any]:
    """One attempt."""
    return {
        "number": attempt.number,
        "gateway": attempt.owner,
        "instance": attempt.instance,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "outcome": attempt.outcome or "running",
        "detail": attempt.detail,
    }


def seen(job: Job, run: Run | None) -> Job:
    """The job as it is told: ``running`` only when an instance has it, and ``queued`` while it waits in a
    gateway. ``run``: what this gateway knows, when it has the lease."""
    if job.state != "running":
        return job
    started_at = job.started_at
    if run is not None and run.lease.fence == job.attempts:
        if run.asking:
            return job
        started_at = run.sent_at or None
    if started_at is None:
        return msgspec.structs.replace(job, state="queued", started_at=None)
    return job if started_at == job.started_at else msgspec.structs.replace(job, started_at=started_at)


def waiting_of(
    job: Job, state: EndpointState | None, run: Run | None = None, now: float | None = None
) -> dict[str, Any] | None:
    """What a queued job waits for, why (at present, and before), and since when; None for others."""
    if job.state != "queued":
        return None
    now = time.time() if now is None else now
    found = _waits_for(job, state, run, now)
    if job.reason and job.reason not in found["reason"]:
        found["reason"] += f"; before: {job.reason}"
    found["seconds"] = round(max(0.0, now - (job.queued_at or job.created_at)), 3)
    return found


def _waits_for(  # noqa: PLR0911 - one per reason
    job: Job, state: EndpointState | None, run: Run | None, now: float
) -> dict[str, Any]:
    if state is None or state.route.state == "deleting":
        return {"for": "endpoint", "reason": "its endpoint is not there"}
    group = state.group(job.version)
    if state.route.state == "failed" and not group:
        return {"for": "endpoint", "reason": state.route.reason or "its endpoint cannot start"}
    if state.circuit.open:
        left = state.circuit.until - time.monotonic()
        why = "its endpoint's instances kept failing, the circuit is open: "
        if left <= 0:
            return {"for": "circuit", "reason": why + "one request tries whether it works again"}
        at = time.strftime("%H:%M:%S", time.gmtime(now + left))
        reason = f"{why}nothing is sent before {at} UTC, in {left:.1f} s"
        return {"for": "circuit", "reason": reason, "until": round(now + left, 3)}
    if not group:
        return {"for": "instance", "reason": state.route.reason or "its endpoint is waking"}
    if run is not None and run.queued:
        return {"for": "slot", "reason": state.why_waiting(job.version)}
    others = max(0, state.stored + state.held + len(state.queue) - 1)
    slots = sum(i.concurrency for i in group)
    behind = f"{others} others wait, too"
    if not state.queue and any(i.free(time.monotonic()) for i in group):
        return {"for": "slot", "reason": f"a gateway is about to take it; {behind}"}
    return {
        "for": "slot",
        "reason": f"its endpoint is busy ({len(group)} instances, {slots} slots); {behind}",
    }


def event_document(event: Event, output: bytes | None) -> Any:
    """What the receiver of a native webhook gets."""
    items = [msgspec.Raw(chunk) for chunk in event.chunks]
    doc = {
        "type": f"job.{event.event}",
        "timestamp": event.at,
        "data": document(event.job, output=output),
    }
    if items:
        doc["items"] = items
    return doc


def is_json(content_type: str) -> bool:
    """Whether a media type holds one JSON value."""
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")
