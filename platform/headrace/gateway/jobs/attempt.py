"""Makes the `Call` of a job's attempt."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, cast

from headrace.errors import DeadlineExceeded, InstanceDied, RequestError
from headrace.gateway.attempt import Attempt
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.head import Head
from headrace.gateway.jobs.lanes import GIVE_BACK_S, Run
from headrace.gateway.jobs.recall import KEEP_LINE, recall
from headrace.gateway.receipt import whereabouts
from headrace.gateway.request import Request
from headrace.gateway.upstream import Upstream, idle_usable
from headrace.jobs.model import Job

if TYPE_CHECKING:
    from headrace.gateway.client import ClientConnection
    from headrace.gateway.jobs.leases import Leases

ACCEPT = b"Accept: text/event-stream, application/json;q=0.9, */*;q=0.8\r\n"
"""Streams come as events: their errors cannot be taken for items."""
FORWARD = "forward"
"""Member of a job's context: header lines that travel with the request."""
SHORTEST_S = 0.001


class JobAttempt(Attempt):
    """One try at one instance; the store is told of it before, where that matters."""

    def begin(self) -> None:
        """See `Attempt.begin`."""
        call = cast(JobCall, self.call)
        if call.run.marks_first:
            # Taken now: when it is our turn at a full instance, the slot is kept for this very connection.
            call.dispatcher.spawn(self._begin_marked(call, self.instance.checkout()))
        else:
            super().begin()

    async def _begin_marked(self, call: JobCall, up: Upstream | None) -> None:
        ours = await self._mark(call)
        if ours and up is not None and idle_usable(up):
            self._transmit(up)
            return
        if up is not None:
            self.instance.keep(up)
        if ours:
            super().begin()

    async def _mark(self, call: JobCall) -> bool:
        """Whether the store knows of it, and it is still to be sent."""
        try:
            ours = await call.leases.mark(call.run, self.instance.route.id)
        except RequestError as error:
            # It was not sent, and will not be before the store answers.
            call.fail(error)
            return False
        if not ours and not self.outcome:
            call.leases.void(call.run)
        return ours and not self.outcome


class JobCall(Call):
    """A `Call` that waits within the job's time to live, and has its execution timeout from the moment that
    an instance gets it. One that no instance takes for long goes back to the store."""

    __slots__ = ("_wait_until", "leases", "run")
    attempt_type = JobAttempt
    stored = admitted = True

    def __init__(
        self, dispatcher: Dispatcher, request: Request, state: EndpointState, run: Run, leases: Leases
    ) -> None:
        job = run.lease.job
        self.run = run
        self.leases = leases
        super().__init__(
            dispatcher,
            request,
            state,
            job.version,
            job.path.encode("latin-1"),
            left_of(job, time.time()),
            # Jobs that don't ask for more come after sync calls, but as what waits longest has its share.
            priority=job.priority if run.urgent else "low",
            key=job.key_id,
        )
        self.attempt = max(1, job.attempts - job.unsent)
        if self.stored:
            # It has waited in the store already.
            self._waited = max(0.0, time.time() - (job.queued_at or job.created_at))
            self.queued_at = self.started - self._waited
        self._wait_until = math.inf if run.lane.sync else self.started + GIVE_BACK_S

    def queue(self) -> None:
        """See `Call.queue`: the time to live goes on, the execution timeout does not."""
        super().queue()
        self.leases.waits(self.run)
        left = left_of(self.run.lease.job, time.time())
        if not self.run.accepted:
            left = min(left, self._wait_until - time.monotonic())
        self._arm(left)

    def sending(self, attempt: Attempt) -> None:
        """See `Call.sending`."""
        begins = self.phase == "claimed"
        super().sending(attempt)
        if begins:
            self._arm(timeout_of(self.run.lease.job, time.time()))
            self.leases.sent(self.run)

    def _arm(self, seconds: float) -> None:
        seconds = max(SHORTEST_S, seconds)
        self._timer.cancel()
        self.deadline = time.monotonic() + seconds
        self._timer = self.dispatcher.loop.call_later(seconds, self._expired)

    def _too_late(self) -> None:
        job, where = self.run.lease.job, whereabouts(self)
        sent = bool(self.run.sent_at)
        if job.api == "sync":
            what = f"the deadline of {job.execution_timeout_s:g} s"
        elif left_of(job, time.time()) <= SHORTEST_S:
            what = "the job's time to live"
        elif sent or self.run.accepted:
            what = f"the execution timeout of {job.execution_timeout_s:g} s"
        else:
            self.leases.give_back(self.run)
            return
        error = DeadlineExceeded(f"{what} passed while the request was {where}.", where=where.split()[0])
        self.fail(error, "timed_out")


class KeyedCall(JobCall):
    """A sync call with a key: it counts in its endpoint's queue as any other sync call does."""

    __slots__ = ()
    stored = False


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


def left_of(job: Job, now: float) -> float:
    """Seconds that the job may still wait."""
    return job.deadline_at - now if job.deadline_at is not None else job.execution_timeout_s


def timeout_of(job: Job, now: float) -> float:
    """Seconds that an attempt which begins now may take."""
    return min(job.execution_timeout_s, left_of(job, now))


def deadline_passed(job: Job) -> DeadlineExceeded | None:
    """Why an attempt need not begin; None when it may."""
    if left_of(job, time.time()) > 0:
        return None
    return DeadlineExceeded("the job's time to live passed while it was queued.", where="queued")


def sent_before(run: Run) -> InstanceDied | None:
    """Why a job must not be sent again: an instance may have begun with it, and its endpoint is not
    idempotent. None: it may."""
    if run.idempotent or not 0 < run.lease.job.sent < run.lease.fence:
        return None
    return InstanceDied(
        "an instance had accepted it once; then the gateway that waited for the answer died or lost touch "
        "with the job store, and no instance has kept one. It is not sent again, since the endpoint is not "
        "idempotent.",
        hint="It may have run: check before you send it again.",
    )


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


def begin(dispatcher: Dispatcher, run: Run, state: EndpointState, leases: Leases) -> None:
    """Hand the attempt to the dispatcher."""
    job, client = run.lease.job, run.client
    assert client is not None
    request = request_of(job, client)
    client.serves(request)
    kind = KeyedCall if run.lane.sync else JobCall
    run.call = call = kind(dispatcher, request, state, run, leases)
    dispatcher.submit(call)
