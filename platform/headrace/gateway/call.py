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
from headrace.gateway.answer import Fate
from headrace.gateway.attempt import Attempt, Outcome
from headrace.gateway.head import Answer
from headrace.gateway.receipt import whereabouts
from headrace.gateway.request import Request
from headrace.gateway.verdict import Over, Verdict, Why, killer, over_for
from headrace.jobs.model import PRIORITY_RANK, Priority
from headrace.jobs.state import PHASES, Phase

if TYPE_CHECKING:
    import asyncio

    from headrace.gateway.dispatch import Dispatcher, Trouble
    from headrace.gateway.endpoints import EndpointState, Instance

ALONE_AFTER = 2
"""Instance deaths that a request was present at, before it runs with no neighbour."""
HEDGE_AGAIN_S = 0.05
"""A slow request that found no room for a copy tries again after so long, or its usual delay."""
MAX_SHUNNED = 8
MAX_LOSSES = 1000
"""So many requests per instance are paid back when its host turns out to be lost."""

_order = itertools.count(1)


class IllegalMove(RuntimeError):
    """A phase that cannot follow: a mistake in this module."""


class Call:
    """See the module. Is the `Exchange` of its client.

    ``on_done`` is called once, after the answer was handed over or the request was given up.
    """

    __slots__ = (
        "_hedge", "_since", "_timer", "_verdict", "_waited", "alone", "attempt", "attempts", "avoid",
        "deadline", "deaths", "dispatcher", "ended", "error", "head_request", "head_sent", "key", "live",
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
        self.deaths = 0
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
        self._verdict: Verdict | None = None
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        request.exchange = self
        self._timer = dispatcher.loop.call_later(timeout_s, self._expired)

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return not PHASES[self.phase]

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
            self._again(attempt)

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
            self._again(attempt)

    def lost(self, attempt: Attempt, detail: str, *, why: Why, began: bool) -> None:
        """The instance is lost under the request: send it elsewhere, or say why not."""
        if self._verdict is not None and self._verdict.attempt is attempt:
            self.convicted(attempt, detail)
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
            fate: Fate = "began" if began else "once"
            self._give_up(attempt, over_for(fate, self.attempt), detail, known=known)
            return
        self._end(attempt, "host-lost" if why == "host" else "lost", answered=False)
        self._shun(attempt.instance)
        if self.live:
            if sent and why != "host":
                self._count(attempt)
            return
        if not sent:
            self._again(attempt)
            return
        over = self._charge(attempt) if why != "host" else None
        if over is None:
            self.attempt += 1
            self._again(attempt)
        else:
            # Perhaps the whole host is gone, which costs nothing.
            self._give_up(attempt, over, detail, known=known)

    def excused(self, attempt: Attempt) -> None:
        """Control says that the host of a lost attempt is lost, too: it costs no retry."""
        if self.done or not attempt.charged:
            return
        again = self._verdict is not None and self._verdict.attempt.charged
        attempt.charged = False
        attempt.outcome = "host-lost"
        self.retries_used -= 1
        self.deaths -= 1
        if not again:
            self.state.budget.give_back()
            return
        self._stop_waiting()
        self.attempt += 1
        self._again(attempt)

    def survived(self, attempt: Attempt) -> None:
        """Control says that the instance lives: only the connection broke. The retry stays spent."""
        final = self._verdict is not None and self._verdict.attempt is attempt
        if attempt.charged and not final and not self.done:
            attempt.charged = False
            self.deaths -= 1

    def convicted(self, attempt: Attempt, reason: str = "") -> None:
        """The instance died by itself, or nobody says otherwise: there is nothing to wait for."""
        verdict = self._verdict
        if verdict is not None and verdict.attempt is attempt:
            self._stop_waiting()
            self.fail(verdict.error(reason))

    # -- inside -----------------------------------------------------------------------------

    def _give_up(self, attempt: Attempt, over: Over, detail: str, *, known: bool) -> None:
        """No other instance gets it; ``known``: the detail has all that control will say of the death."""
        if known:
            self.fail(over(detail))
            return
        self._unhedge()
        if not attempt.charged:
            self._timer.cancel()
        self._verdict = Verdict(attempt, over, detail)

    def _stop_waiting(self) -> None:
        if self._verdict is not None:
            self._verdict.stop()
            self._verdict = None

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

    def _again(self, last: Attempt) -> None:
        self.state.meter.retries[last.outcome] += 1
        self._unhedge()
        self.alone = self.deaths >= ALONE_AFTER
        self.dispatcher.requeue(self)

    def _count(self, attempt: Attempt) -> None:
        """It was there when an instance died."""
        attempt.charged = True
        if len(attempt.instance.losses) < MAX_LOSSES:
            attempt.instance.losses.append(attempt)
        self.deaths += 1
        self.retries_used += 1

    def _charge(self, attempt: Attempt) -> Over | None:
        """Its last copy was there when an instance died. Gives why it may not go on, or None."""
        self._count(attempt)
        if self.alone:
            return killer(self.deaths)
        if self.retries_used > self.state.route.retries:
            return over_for("retries", self.attempt, self.deaths)
        if not self.state.budget.take():
            return over_for("budget", self.attempt)
        return None

    def _finish(self, final: Phase, outcome: Outcome, *, ok: bool, counted: bool = False) -> None:
        """Free everything that the request holds."""
        was_queued = self.phase == "queued"
        self._move(final)
        now = self.ended = time.monotonic()
        self._timer.cancel()
        self._unhedge()
        self._stop_waiting()
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
        if delay and self._hedge is None and not self.deaths:
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
        if self._verdict is not None:
            self.convicted(self._verdict.attempt)
            return
        where = whereabouts(self)
        seconds = self.deadline - self.started
        self.fail(
            DeadlineExceeded(
                f"the deadline of {seconds:g} s passed while the request was {where}.", where=where.split()[0]
            ),
            "timed_out",
        )
