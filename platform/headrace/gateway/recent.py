"""Requests by their id, while they are here and for a while after: for whoever asks why one waits, or where
its time went. What lives is looked for where it waits and runs; of what has ended a little is kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from headrace import wire
from headrace.gateway.receipt import answer_status, why_waiting
from headrace.jobs.model import Priority
from headrace.jobs.state import JobState, Phase

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt
    from headrace.gateway.call import Call
    from headrace.gateway.endpoints import EndpointState

KEPT = 1000
"""Requests that have ended."""
MAX_TRIES = 20
"""The latest attempts of one that are told of."""
STATES: dict[Phase, JobState] = {
    "admitted": "queued",
    "queued": "queued",
    "claimed": "running",
    "sent": "running",
    "answering": "running",
    "answered": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "timed_out": "timed_out",
}

Try = tuple[int, wire.InstanceRoute, float, float, float, str]
"""Number, instance, since when that was there, when it was sent there, when that ended, and how."""
Brief = tuple[
    str, str, int | None, Priority, Phase, int, float, float, float, float, dict[str, Any] | None, list[Try]
]
"""Id, endpoint, version, priority, phase, status of the answer, when it came, when it is late, when it ended,
seconds it was queued, problem, tries. Times are monotonic seconds, 0.0: not yet."""
Recent = deque[Brief]


def brief(call: Call) -> Brief:
    """What is kept of a request: a bare tuple, since one is made for each."""
    attempts = call.attempts
    ended = call.ended
    one = len(attempts) == 1
    tries = [_try(attempts[0])] if one else [_try(attempt) for attempt in attempts[-MAX_TRIES:]]
    return (
        call.request.id,
        call.state.key,
        call.version,
        call.priority,
        call.phase,
        answer_status(call),
        call.started,
        call.deadline,
        ended,
        call.queued_s(ended or time.monotonic()),
        None if call.error is None else call.error.to_problem(call.request.id),
        tries,
    )


def _try(a: Attempt) -> Try:
    return (a.number, a.instance.route, a.instance.since, a.sent_at, a.ended, a.outcome)


def living(states: Iterable[EndpointState], request_id: str) -> Call | None:
    """The request, if it waits or runs here."""
    return next((call for state in states for call in _calls(state) if call.request.id == request_id), None)


def _calls(state: EndpointState) -> Iterator[Call]:
    yield from state.queue.items()
    for instance in state.instances.values():
        for attempt in instance.running:
            yield attempt.call


def ended(recent: Recent, request_id: str) -> Brief | None:
    """What is kept of the request."""
    return next((found for found in reversed(recent) if found[0] == request_id), None)


def document(found: Brief, gateway: str, waits: Call | None = None) -> dict[str, Any]:
    """The request in the shape of a job; ``waits``: the request itself, if it lives."""
    id, key, version, priority, phase, status, came, late, over, _, problem, tries = found
    shift = time.time() - time.monotonic()

    def moment(at: float) -> float | None:
        return round(at + shift, 6) if at else None

    state = STATES[phase]
    if state == "succeeded" and status >= 400:
        state = "failed"
        told = f"the endpoint answered {status}."
        problem = {"type": "about:blank", "title": "The endpoint's answer", "status": status, "detail": told}
    return {
        "id": id,
        "endpoint": key.partition("/")[2],
        "version": version,
        "api": "sync",
        "state": state,
        "priority": priority,
        "created_at": moment(came),
        "started_at": moment(next((sent for _, _, _, sent, _, _ in tries if sent), 0.0)),
        "finished_at": moment(over),
        "deadline_at": moment(late),
        "attempts": [
            {
                "number": number,
                "gateway": gateway,
                "instance": route.id,
                "started_at": moment(sent),
                "ended_at": moment(end),
                "outcome": outcome or "running",
                "detail": "",
            }
            for number, route, _, sent, end, outcome in tries
        ],
        "lost": sum(outcome in ("lost", "host-lost") for *_, outcome in tries),
        "retried": 0,
        "progress": None,
        "reason": str(problem["detail"]) if problem else "",
        "error": problem,
        "receipt": _receipt(found),
        "waiting": _waiting(waits) if waits is not None and phase in ("admitted", "queued") else None,
        "output": None,
        "output_size": None,
        "output_type": None,
    }


def _receipt(found: Brief) -> dict[str, Any]:
    came, _, over, queued_s, _, tries = found[6:]
    receipt: dict[str, Any] = {"queued_ms": _ms(queued_s), "total_ms": _ms((over or time.monotonic()) - came)}
    if tries:
        _, route, since, sent, end, _ = tries[-1]
        if sent:
            receipt["sent_ms"] = _ms(sent - came)
            receipt["ran_ms"] = _ms((end or time.monotonic()) - sent)
        receipt["instance"] = route.id
        if queued_s and since > came:
            t = route.timings
            receipt |= {
                "tier": route.tier,
                "claim_ms": _ms(t.claim_s),
                "boot_ms": _ms(t.boot_s),
                "import_ms": _ms(t.import_s),
                "load_ms": _ms(t.load_s),
            }
    return receipt


def _waiting(call: Call) -> dict[str, Any]:
    seconds = time.monotonic() - (call.queued_at or call.started)
    kind = "slot" if call.state.group(call.version) else "instance"
    return {"for": kind, "reason": why_waiting(call), "seconds": round(seconds, 3)}


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 3)
