"""Jobs as the native API and its webhooks show them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.gateway.jobs.lanes import SYNC_PREFIX
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


def waiting_of(job: Job, state: EndpointState | None, now: float | None = None) -> dict[str, Any] | None:
    """What a queued job waits for, why, and for how long; None for others."""
    if job.state != "queued":
        return None
    seconds = round((time.time() if now is None else now) - job.created_at, 3)
    if state is None or state.route.state == "deleting":
        return {"for": "endpoint", "reason": "its endpoint is not there", "seconds": seconds}
    reason = job.reason or state.route.reason
    if state.route.state == "failed":
        return {"for": "endpoint", "reason": reason or "its endpoint cannot start", "seconds": seconds}
    if not state.group(job.version):
        return {"for": "instance", "reason": reason or "its endpoint is waking", "seconds": seconds}
    ahead = state.stored + state.held
    return {
        "for": "slot",
        "reason": reason or f"all instances are busy; {max(0, ahead - 1)} other jobs wait",
        "seconds": seconds,
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
