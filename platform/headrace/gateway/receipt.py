"""What a request can tell of itself: where its time went, or why it waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt
    from headrace.gateway.call import Call

MAX_KEPT = 20
"""The latest attempts that are kept with a job."""


def steps(call: Call) -> dict[str, Any]:
    """What is kept of the way of a job's attempt: its wait, the start of the instance that it waited for, and
    where several had it, each of these with the time that it ran there."""
    now = time.monotonic()
    found = {"queued_ms": _ms(call.queued_s(now)), **_start(call)}
    if len(call.attempts) > 1:
        found["attempts"] = [_attempt(call, attempt, now) for attempt in call.attempts[-MAX_KEPT:]]
    return found


def answer_status(call: Call) -> int:
    """The status of the instance's answer that the client got; 0: it got none."""
    attempts = call.attempts
    if attempts and attempts[-1].outcome == "answered":
        return attempts[-1].status
    return next((a.status for a in attempts if a.outcome == "answered"), 0)


def why_waiting(call: Call) -> str:
    """Why a queued request waits, and for how long."""
    seconds = time.monotonic() - (call.queued_at or call.started)
    return f"{call.state.why_waiting(call.version)}; for {seconds:.1f} s"


def whereabouts(call: Call) -> str:
    """Where a request is that has come too late, for people; the first word is for programs."""
    return {
        "claimed": "connecting to an instance",
        "sent": "running in an instance",
        "answering": "being answered by an instance",
    }.get(call.phase) or why_waiting(call)


def _start(call: Call) -> dict[str, Any]:
    """How the instance came up that the request waited for; empty when it waited for none."""
    last = call.attempts[-1] if call.attempts else None
    if last is None or not call.queued_at or last.instance.since <= call.queued_at:
        return {}
    route = last.instance.route
    t = route.timings
    return {
        "tier": route.tier,
        "claim_ms": _ms(t.claim_s),
        "boot_ms": _ms(t.boot_s),
        "import_ms": _ms(t.import_s),
        "load_ms": _ms(t.load_s),
    }


def _attempt(call: Call, attempt: Attempt, now: float) -> dict[str, Any]:
    route = attempt.instance.route
    return {
        "number": attempt.number,
        "instance": route.id,
        "host": route.host,
        "claimed_ms": _ms(attempt.started - call.started),
        "sent_ms": _ms(attempt.sent_at - call.started) if attempt.sent_at else None,
        "ran_ms": _ms((attempt.ended or now) - attempt.sent_at) if attempt.sent_at else 0.0,
        "outcome": attempt.outcome or "running",
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
