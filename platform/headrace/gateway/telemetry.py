"""Counts how requests end: called once per request, plain arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.gateway.jobs.sink import JobClient
from headrace.gateway.receipt import answer_status
from headrace.gateway.recent import brief

if TYPE_CHECKING:
    from headrace.gateway.call import Call

CLIENT_LEFT = 99
"""In place of a status: its class is `headrace.observe.metrics.CANCELLED`."""


def status_of(call: Call) -> int:
    """What the client was answered; `CLIENT_LEFT` when it left before."""
    if call.error is not None:
        return call.error.status
    if call.phase == "cancelled" or not call.attempts:
        return CLIENT_LEFT
    return answer_status(call) or 200


def count_call(call: Call) -> None:
    """The call has come to its end."""
    meter, attempts = call.state.meter, call.attempts
    # Jobs are counted when their result is stored; sync calls with a key have a client of another type.
    client: object = call.request.client
    job = type(client) is JobClient
    if not job:
        meter.request(status_of(call), call.ended - call.started)
        call.dispatcher.recent.append(brief(call))
    for attempt in attempts:
        meter.attempts[attempt.outcome] += 1
    # What goes back to the store waits on.
    if call.queued_at and not (job and call.phase == "cancelled"):
        meter.queue.add(call.queued_s(call.ended))
        if attempts:
            instance = attempts[-1].instance
            if instance.since > call.queued_at and not instance.greeted:
                instance.greeted = True
                meter.cold_start(instance.route.tier, instance.route.timings.total_s)
