"""One request to an endpoint, from its place in the queue to its last byte, over all its attempts.

Its phases and their legal moves are ``headrace.jobs.state.PHASES``. Everything is a callback: there is no
task per request, only one per new connection.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.errors import DeadlineExceeded, RequestError
from headrace.gateway.attempt import Attempt, Outcome
from headrace.gateway.head import Answer
from headrace.gateway.receipt import whereabouts
from headrace.gateway.request import Request
from headrace.gateway.verdict import Losses, Why
from headrace.jobs.model import PRIORITY_RANK, Priority
from headrace.jobs.state import PHASES, Phase

if TYPE_CHECKING:
    import asyncio

    from headrace.gateway.dispatch import Dispatcher, Trouble
    from headrace.gateway.endpoints import EndpointState, Instance

HEDGE_AGAIN_S = 0.05
"""A slow request that found no room for a copy tries again after so long, or its usual delay."""
MAX_SHUNNED = 8

_order = itertools.count(1)


class IllegalMove(RuntimeError):
    """A phase that cannot follow: a mistake in this module."""


class Call:
    """See the module. Is the `Exchange` of its client.

    ``on_done`` is called once, after the answer was handed over or the request was given up.
    """

    __slots__ = (
        "_hedge", "_losses", "_since", "_timer", "_waited", "alone", "attempt", "attempts", "avoid",
        "deadline", "dispatcher", "ended", "error", "head_request", "head_sent", "key", "live",
        "on_done", "order", "path", "phase", "priority", "queued_at", "rank", "request", "retries_used",
        "size", "started", "state", "version",
    )  # fmt: skip
    attempt_type: type[Attempt] = Attempt
    stored = admitted = False
    """It waits in a store otherwise. The queue has room for it: so it has, or was let in before that."""

    def __init__(  # noqa: PLR0917
        self,
        dispatcher: Dispatcher,
        request: Request,
        state: EndpointState,
        version: int | None,
        path: bytes,
        timeout_s: float,
        *,
        priority: Priority = "normal",
        key: str = "",
    ) -> None:
        self.dispatcher = dispatcher
        self.request = request
        self.state = state
        self.version = version
        self.size = len(request.body)
        self.head_request = request.head.method == b"HEAD"
        self.path = path
        self.priority = priority
        self.rank = PRIORITY_RANK[priority]
        self.key = key
        self.phase: Phase = "admitted"
        self.attempt = 1
        self.attempts: list[Attempt] = []
        """In their order, but those that an instance refused: there may be any number of these."""
        self.live: list[Attempt] = []
        """Those under way: one, or two when hedged."""
        self.retries_used = 0
        self.alone = False
        self.avoid: tuple[str, ...] = ()
        """Instances where it was lost or raised, the last ones."""
        self.order = next(_order)
        self.queued_at = 0.0
        """When it first had to wait; 0.0: never."""
        self.ended = 0.0
        self.head_sent = False
        self.error: RequestError | None = None
        self.on_done: Callable[[Call], None] | None = None
        self._since = 0.0
        self._waited = 0.0
        self._hedge: asyncio.TimerHandle | None = None
        self._losses: Losses | None = None
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        request.exchange = self
        self._timer = dispatcher.loop.call_later(timeout_s, self._expired)
        state.tally.begin(self.started)

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return not PHASES[self.phase]

    @property
    def losses(self) -> Losses:
        """What it has lost so far."""
        if self._losses is None:
            self._losses = Losses(self)
        return self._losses

    @property
    def instance(self) -> Instance | None:
        """Where its last attempt went."""
        return self.attempts[-1].instance if self.attempts else None

    def queued_s(self, now: float) -> float:
        """Seconds it has waited for a slot, over all its attempts."""
        return self._waited + (now - self._since if self.phase == "queued" else 0.0)

    # -- what the dispatcher asks -----------------------------------------------------------

    def queue(self) -> None:
        """It waits for a slot from now on."""
        self._move("queued")
        self._since = time.monotonic()
        if not self.queued_at:
            self.queued_at = self._since

    def claim(self, instance: Instance) -> Attempt:
        """A slot is ours; `Attempt.begin` sends the request there."""
        if self.phase == "queued":
            self._waited += time.monotonic() - self._since
        self._move("claimed")
        return self._new_attempt(instance)

    def second(self, instance: Instance) -> Attempt:
        """Another copy of a slow request goes there; the first answer wins."""
        self.attempt += 1
        return self._new_attempt(instance)

    def fail(self, error: RequestError, final: Phase = "failed") -> None:
        """Answer with a problem document, or end an answer that has begun with an error event."""
        if self.done:
            return
        self.error = error
        winner = self.live[0] if self.live else None
        client, request = self.request.client, self.request
        if self.head_sent:
            if winner is None:
                winner = self.attempts[-1]
            winner.write_error(error)
            self._finish(final, "failed", ok=False)
            client.cut(request)
        else:
            self._finish(final, "failed", ok=False)
            line = b"X-Headrace-Attempt: %d\r\n" % self.attempt if self.attempt > 1 else b""
            client.fail(request, error, line)
        self.told()

    # -- Exchange (the client) --------------------------------------------------------------

    def cancel(self) -> None:
        """The client hung up, or asked for it: what runs is cancelled, and nobody gets an answer."""
        if not self.done:
            self._finish("cancelled", "cancelled", ok=True)
            self.told()

    def no_deadline(self) -> None:
        """From now on it lasts as long as both sides want."""
        self._timer.cancel()

    def pause(self) -> None:
        """The client reads slowly: so do we."""
        for attempt in self.live:
            attempt.pause()

    def resume(self) -> None:
        """The client has caught up."""
        for attempt in self.live:
            attempt.resume()

    # -- what its attempts report -----------------------------------------------------------

    def sending(self, attempt: Attempt) -> None:
        """A connection is there; the request goes out."""
        if self.phase == "claimed":
            self._move("sent")
            route = self.state.route
            if route.hedge_after_s or route.hedge_quantile:
                self._plan_hedge()

    def judge(self, attempt: Attempt, status: int, answer: Answer) -> str:
        """Whether the answer is none: ``full``, ``draining`` or ``retry``; empty: it is for the client."""
        if answer.refused and status == 503:
            return "draining" if answer.refused == b"draining" else "full"
        route = self.state.route
        if (
            answer.exception
            and status == 500
            and route.retry_on
            and self.retries_used < route.retries
            and answer.exception.decode("latin-1") in route.retry_on
            and self.state.budget.take()
        ):
            return "retry"
        return ""

    def answering(self, attempt: Attempt) -> None:
        """The first answer has begun: a second copy is not needed any more."""
        self._move("answering")
        self.state.circuit.answered()
        self._unhedge()
        if len(self.live) > 1:
            for other in [a for a in self.live if a is not attempt]:
                now = time.monotonic()
                other.instance.speed.at_least(now - other.sent_at, now)
                self._end(other, "beaten", answered=False)

    def answered(self, attempt: Attempt, *, ok: bool) -> None:
        """The answer is complete."""
        now = time.monotonic()
        self.state.count(now - attempt.sent_at, ok, now)
        if ok:
            attempt.instance.speed.observe(now - attempt.sent_at, now)
        else:
            attempt.instance.speed.failed(self.state.service, now)
        self._finish("answered", "answered", ok=ok, counted=True)

    def turned_away(self, attempt: Attempt, why: str) -> None:
        """The instance would not have it, or raised what the endpoint wants tried again."""
        instance = attempt.instance
        if why == "retry":
            self.retries_used += 1
            self.attempt += 1
            self._shun(instance)
            instance.speed.failed(self.state.service, time.monotonic())
            self.state.circuit.answered()
            self._end(attempt, "retried", answered=True)
        else:
            if why == "draining":
                self.dispatcher.drains(instance)
            else:
                self.dispatcher.full(instance)
            self._end(attempt, "refused", answered=False)
        if not self.live:
            self.again(attempt)

    def not_accepted(self, attempt: Attempt, error: Exception) -> None:
        """Nothing was sent: any other instance may have it, however often."""
        instance = attempt.instance
        if isinstance(error, OSError) and error.errno == errno.EAGAIN:
            self.dispatcher.full(instance)
            self._end(attempt, "refused", answered=False)
        else:
            what: Trouble = "timeout" if isinstance(error, TimeoutError) else "refused"
            self.dispatcher.trouble(instance, what, str(error) or type(error).__name__)
            self._end(attempt, "not-accepted", answered=False)
        if not self.live:
            self.again(attempt)

    def lost(self, attempt: Attempt, detail: str, *, why: Why, began: bool) -> None:
        """The instance is lost under the request: send it elsewhere, or say why not."""
        losses = self.losses
        if losses.reason(attempt, detail):
            return
        known = why != "reset"
        sent = bool(attempt.sent_at)
        only = len(self.live) == 1
        if not (known or began):
            # Breaking an answer off is a thing that handlers do, too: they would take the instance from all.
            self.dispatcher.trouble(attempt.instance, "reset", detail)
        began = self.head_sent or (began and only)
        if began or (sent and only and not self.state.route.idempotent):
            # It stays where it is: an answer that has begun has to be ended in the client's framing.
            attempt.outcome = "lost"
            self._unhedge()
            losses.end(attempt, "began" if began else "once", detail, known=known)
            return
        self._end(attempt, "host-lost" if why == "host" else "lost", answered=False)
        self._shun(attempt.instance)
        charged = sent and why != "host"
        if charged:
            losses.charge(attempt, known=known)
        if self.live:
            return
        self._unhedge()
        if charged:
            losses.go_on(attempt, detail)
        else:
            self.attempt += sent
            self.again(attempt)

    # -- what its losses decide -------------------------------------------------------------

    def again(self, last: Attempt) -> None:
        """It goes back to where it was in the queue."""
        self.state.meter.retries[last.outcome] += 1
        self._unhedge()
        if self._losses is not None:
            self.alone = self._losses.alone()
        self.dispatcher.requeue(self)

    def join(self) -> None:
        """It need not run alone any more."""
        if self.phase == "queued" and self.alone:
            self.dispatcher.remove(self)
            self.alone = False
            self.state.queue.push(self, front=True)
            self.dispatcher.fill(self.state)

    # -- inside -----------------------------------------------------------------------------

    def told(self) -> None:
        """The client has what it gets."""
        tell, self.on_done = self.on_done, None
        if tell is not None:
            tell(self)

    def _move(self, phase: Phase) -> None:
        if phase not in PHASES[self.phase]:
            raise IllegalMove(f"request {self.request.id}: from {self.phase} to {phase}")
        self.phase = phase

    def _new_attempt(self, instance: Instance) -> Attempt:
        attempt = self.attempt_type(self, instance, self.attempt)
        self.attempts.append(attempt)
        self.live.append(attempt)
        return attempt

    def _end(self, attempt: Attempt, outcome: Outcome, *, answered: bool) -> None:
        """One attempt is over, the request is not."""
        attempt.stop()
        attempt.outcome = outcome
        attempt.ended = time.monotonic()
        self.live.remove(attempt)
        if outcome == "refused":
            self.attempts.remove(attempt)
            self.state.meter.attempts[outcome] += 1
        self.dispatcher.release(attempt, answered=answered, refill=outcome == "beaten")

    def _shun(self, instance: Instance) -> None:
        self.avoid = (*self.avoid[1 - MAX_SHUNNED :], instance.route.id)

    def _finish(self, final: Phase, outcome: Outcome, *, ok: bool, counted: bool = False) -> None:
        """Free everything that the request holds."""
        was_queued = self.phase == "queued"
        self._move(final)
        now = self.ended = time.monotonic()
        self.state.tally.end(now)
        self._timer.cancel()
        self._unhedge()
        if self._losses is not None:
            self._losses.stop()
        if was_queued:
            self._waited += now - self._since
            self.dispatcher.remove(self)
        live, self.live = self.live, []
        for attempt in live:
            attempt.stop()
            attempt.ended = now
            attempt.outcome = attempt.outcome or outcome
            if attempt.sent_at and not counted:
                self.state.count(now - attempt.sent_at, ok, now)
                counted = True
            self.dispatcher.release(attempt, answered=True)
        self.dispatcher.on_finish(self)

    def _plan_hedge(self) -> None:
        delay = self.state.hedge_delay()
        # What was there when an instance died is not given a second one to kill.
        if delay and self._hedge is None and not (self._losses and self._losses.deaths):
            self._hedge = self.dispatcher.loop.call_later(delay, self._hedge_due)

    def _hedge_due(self) -> None:
        self._hedge = None
        if self.phase == "sent" and len(self.live) == 1 and not self.dispatcher.hedge(self):
            again = max(HEDGE_AGAIN_S, self.state.hedge_delay())
            self._hedge = self.dispatcher.loop.call_later(again, self._hedge_due)

    def _unhedge(self) -> None:
        if self._hedge is not None:
            self._hedge.cancel()
            self._hedge = None

    def _expired(self) -> None:
        lost = self._losses.expired() if self._losses is not None else None
        if lost is not None:
            self.fail(lost)
        else:
            self._too_late()

    def _too_late(self) -> None:
        where = whereabouts(self)
        seconds = self.deadline - self.started
        self.fail(
            DeadlineExceeded(
                f"the deadline of {seconds:g} s passed while the request was {where}.", where=where.split()[0]
            ),
            "timed_out",
        )
