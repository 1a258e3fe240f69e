"""Makes the `Call` of a job's attempt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from headrace.errors import DeadlineExceeded
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.head import Head
from headrace.gateway.jobs.lanes import Run
from headrace.gateway.jobs.recall import KEEP_LINE, recall
from headrace.gateway.request import Request
from headrace.jobs.model import Job

if TYPE_CHECKING:
    from headrace.gateway.client import ClientConnection

ACCEPT = b"Accept: text/event-stream, application/json;q=0.9, */*;q=0.8\r\n"
"""Streams come as events: their errors cannot be taken for items."""
FORWARD = "forward"
"""Member of a job's context: header lines that travel with the request."""


def request_of(job: Job, client: object) -> Request:
    """The request that the job stands for."""
    request = Request(cast("ClientConnection", client))
    body = job.input.data
    head = Head(job.method.encode("latin-1"), job.path.encode("latin-1"))
    head.http10 = True
    head.has_body = bool(body)
    head.content_length = len(body) if body or job.method != "GET" else -1
    head.content_type = job.input.content_type.encode("latin-1", "replace")
    forward = job.context.get(FORWARD)
    if isinstance(forward, str):
        head.forward = forward.encode("latin-1")
    else:
        head.forward = b"Host: headrace\r\nContent-Type: %b\r\n%b" % (head.content_type, ACCEPT)
    head.forward += KEEP_LINE
    head.traceparent = job.traceparent.encode("latin-1", "replace")
    request.id = job.id
    request.head = head
    request.body = body
    request.ready = True
    return request


def timeout_of(job: Job, now: float) -> float:
    """Seconds that an attempt which begins now may take."""
    rest = job.deadline_at - now if job.deadline_at is not None else job.execution_timeout_s
    return min(job.execution_timeout_s, rest)


def deadline_passed(job: Job) -> DeadlineExceeded | None:
    """Why an attempt need not begin; None when it may."""
    if timeout_of(job, time.time()) > 0:
        return None
    return DeadlineExceeded("the job's time to live passed while it was queued.", where="queued")


async def take_over(run: Run, state: EndpointState) -> bool:
    """Whether an earlier attempt had ended and an instance gave its answer, which is the run's now."""
    job, client = run.lease.job, run.client
    assert client is not None
    answer = await recall(list(state.instances.values()), job.id, timeout_of(job, time.time()))
    if answer and not run.void and not run.settling:
        request = request_of(job, client)
        client.serves(request)
        client.reply(request, answer)
    return bool(answer)


def begin(dispatcher: Dispatcher, run: Run, state: EndpointState) -> None:
    """Hand the attempt to the dispatcher."""
    job, client = run.lease.job, run.client
    assert client is not None
    request = request_of(job, client)
    client.serves(request)
    timeout_s = max(0.001, timeout_of(job, time.time()))
    call = Call(
        dispatcher,
        request,
        state,
        job.version,
        job.path.encode("latin-1"),
        timeout_s,
        # Jobs that don't ask for more come after sync calls.
        priority=job.priority if run.urgent else "low",
        key=job.key_id,
    )
    call.attempt = max(1, job.attempts)
    run.call = call
    dispatcher.submit(call)
