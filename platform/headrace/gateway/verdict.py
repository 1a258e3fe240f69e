"""What a request has lost, and what becomes of it: control's word on the dead, or its silence, decides."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Literal

from headrace.errors import RequestError
from headrace.gateway.answer import Fate, lost_error
from headrace.gateway.deaths import ALONE_AFTER, ALONE_S, Next, goes_on, is_death, joins_at, runs_alone

if TYPE_CHECKING:
    import asyncio

    from headrace.gateway.attempt import Attempt
    from headrace.gateway.call import Call
    from headrace.gateway.endpoints import Instance

Why = Literal["reset", "own", "host"]
"""Why an attempt was lost: the connection broke, the instance died, or its host did."""
VERDICT_S = 0.15
"""Before a request fails because its instance broke off: so long for control to say why it died, and whether
its host is lost. The host sees it first and tells control, which tells us."""
SURE_S = 0.4
"""The same where it matters whether it died: longer than control takes to announce one that did not."""
MAX_LOSSES = 1000
"""So many requests per instance hear what control says of it later."""


class Losses:
    """Those of one request; made with the first. Waits where control's word decides."""

    __slots__ = (
        "_call",
        "_detail",
        "_ends",
        "_fate",
        "_joined",
        "_last",
        "_mute",
        "_patience",
        "_since",
        "_timer",
    )

    def __init__(self, call: Call) -> None:
        self._call = call
        self._last: Attempt | None = None
        """The lost attempt whose request waits for control's word; None: it does not wait."""
        self._detail = ""
        """Why the instance died, or what was seen of that."""
        self._fate: Fate | Literal[""] = ""
        """Why nobody else gets the request, whatever control says; empty: that hangs on what died."""
        self._ends = False
        """Whether the request ends, should all be as it seems; else it goes on, alone."""
        self._mute = False
        """Whether control could not know when it was to say something: see `Dispatcher.uncertain`."""
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._since = 0.0
        """When it began to wait for an instance of its own."""
        self._joined = False
        """Whether it waited to run alone for long enough."""

    @property
    def deaths(self) -> int:
        """Deaths that it was present at: those that control told of, or has yet to deny."""
        return sum(is_death(a.loss) for a in self._call.attempts)

    # -- what its call says -----------------------------------------------------------------

    def charge(self, attempt: Attempt, *, known: bool) -> None:
        """The loss costs a retry; ``known``: control has said that the instance died."""
        self._call.retries_used += 1
        attempt.loss = "death" if known else "doubted"
        attempt.instance.breaks(attempt)
        if not known and len(attempt.instance.losses) < MAX_LOSSES:
            attempt.instance.losses.append(attempt)

    def end(self, attempt: Attempt, fate: Fate, detail: str, *, known: bool) -> None:
        """No other instance may have it; its error waits a moment for the reason, unless that is known."""
        if known:
            self._call.fail(self._error(detail, fate))
            return
        self._fate = fate
        self._wait(attempt, detail, VERDICT_S)

    def reason(self, attempt: Attempt, detail: str) -> bool:
        """Why the instance died; False: `end` did not wait for that."""
        if self._last is not attempt or not self._fate:
            return False
        self._call.fail(self._error(detail, self._fate))
        return True

    def go_on(self, last: Attempt, detail: str, *, settled: bool = False) -> None:
        """Another instance gets it, or its client the reason.

        Whether it ends, or runs alone, is for control to say, which knows what died, unless that is
        ``settled``; to run alone it does not wait for a control that is away.
        """
        call = self._call
        deaths, used, retries = self.deaths, call.retries_used, call.state.route.retries
        fate: Fate | Next = goes_on(
            alone=call.alone, died=is_death(last.loss), deaths=deaths, used=used, retries=retries
        )
        if fate == "again" and last.loss and call.state.budget.empty:
            fate = "budget"
        goes = fate == "again"
        if (
            not settled
            and (not goes or runs_alone(deaths, used, retries))
            and any(a.loss == "doubted" for a in call.attempts)
            and not (goes and call.dispatcher.uncertain(last.instance))
        ):
            self._ends = not goes
            if self._last is None:
                self._wait(last, detail, SURE_S)
            return
        self._stop_waiting()
        if fate != "again":
            call.fail(self._error(detail, fate, call.attempt, deaths))
            return
        if last.loss:
            call.state.budget.take()
        call.attempt += 1
        call.again(last)

    def alone(self) -> bool:
        """Whether it has no neighbour when it runs next. After a while it does without, if it has to."""
        call = self._call
        deaths = self.deaths
        alone = runs_alone(deaths, call.retries_used, call.state.route.retries)
        if not alone or deaths >= ALONE_AFTER:
            self._be_patient()
            return alone
        if self._patience is None and not self._joined:
            self._since = time.monotonic()
            self._join()
        return not self._joined

    def expired(self) -> RequestError | None:
        """Its deadline passes: the error, if it waits for control's word on it."""
        if self._last is None or not (self._ends or self._fate):
            return None
        if self._fate:
            return self._error(self._detail, self._fate, deaths=0)
        told = sum(a.loss == "death" for a in self._call.attempts)
        return self._error(self._detail, "retries", self._call.attempt, told)

    def _error(self, detail: str, fate: Fate, attempts: int = 1, deaths: int | None = None) -> RequestError:
        name = self._call.state.route.endpoint.partition("/")[2]
        return lost_error(detail, fate, attempts, deaths, name=name)

    def stop(self) -> None:
        """The request has ended."""
        self._stop_waiting()
        self._be_patient()

    # -- what control says ------------------------------------------------------------------

    def excused(self, attempt: Attempt) -> None:
        """The host of a lost attempt is lost, too: it costs no retry."""
        call = self._call
        if call.done or not attempt.loss:
            return
        attempt.loss = ""
        attempt.outcome = "host-lost"
        call.retries_used -= 1
        if self._last is not attempt:
            call.state.budget.give_back()
        self._reconsider()

    def survived(self, attempt: Attempt) -> None:
        """The instance lives: only the connection broke. The retry stays spent."""
        if attempt.loss == "doubted":
            attempt.loss = "broken"
            self._reconsider()

    def convicted(self, attempt: Attempt, reason: str) -> None:
        """The instance died by itself."""
        if attempt.loss:
            attempt.loss = "death"
            if self._last is attempt:
                self._detail = reason or self._detail
            self._reconsider()

    # -- inside -----------------------------------------------------------------------------

    def _wait(self, last: Attempt, detail: str, seconds: float) -> None:
        self._last, self._detail, self._mute = last, detail, False
        self._timer = self._call.dispatcher.loop.call_later(seconds, self._due)

    def _stop_waiting(self) -> None:
        self._last = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reconsider(self, *, settled: bool = False) -> None:
        call = self._call
        if self._last is not None:
            if not self._fate:
                self.go_on(self._last, self._detail, settled=settled)
        elif call.alone and not runs_alone(self.deaths, call.retries_used, call.state.route.retries):
            self._be_patient()
            call.join()

    def _due(self) -> None:
        """Control has not said it in time."""
        call, last = self._call, self._last
        if last is None:
            return
        if self._fate:
            call.fail(self._error(self._detail, self._fate, deaths=0))
            return
        uncertain = call.dispatcher.uncertain
        if self._ends and uncertain(last.instance):
            self._mute = True
            self._timer = call.dispatcher.loop.call_later(VERDICT_S, self._due)
            return
        if self._ends and last.loss == "doubted" and (self._mute or last.instance.route.suspect):
            # It was the host, the machine or the platform that ended or stood still.
            self.excused(last)
        if self._last is last:
            for attempt in call.attempts:
                if attempt.loss == "doubted" and not uncertain(attempt.instance):
                    self._settle(attempt)
            self._reconsider(settled=True)

    def _settle(self, attempt: Attempt) -> None:
        """Control has not said what it was: who died should be out of its table by now.

        Who is in it and was announced again lives. One that was not may be dead, for control may be busy,
        or stand still: while the request goes on, that counts as a death. It runs alone then, which harms
        nobody, and one that kills takes no others along. But nothing ends for it as the one that kills.
        """
        call, instance = self._call, attempt.instance
        if call.state.instances.get(instance.route.id) is not instance:
            attempt.loss = "death"
        elif instance.usable or (
            self._ends and (attempt is self._last or call.retries_used > call.state.route.retries)
        ):
            attempt.loss = "broken"

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _join(self) -> None:
        """It is sent with others, once it has waited for an instance of its own for long enough."""
        call, now = self._call, time.monotonic()
        state = call.state
        group = state.group(call.version)
        others = (
            len(state.queue.alone) - (call in state.queue.alone) + sum(i.reserved is not None for i in group)
        )
        victims, ran_s = max((a.instance.broken for a in call.attempts if is_death(a.loss)), default=(1, 0.0))
        at = joins_at(
            self.deaths,
            self._since,
            call.deadline,
            min((i.since for i in group), default=now),
            suspects=max(victims, others + 1),
            instances=len(group),
            service_s=max(state.service, ran_s),
        )
        if at > now:
            self._patience = call.dispatcher.loop.call_later(min(ALONE_S, at - now), self._join)
        else:
            self._patience, self._joined = None, True
            call.join()


def whole_hosts(dead: list[Instance], reasons: dict[str, str]) -> set[str]:
    """Hosts that are lost where control gives no reason: those that lost several instances at once."""
    silent = Counter(i.route.host for i in dead if not reasons.get(i.route.id))
    return {host for host, count in silent.items() if count > 1}


def why_lost(instance: Instance, reason: str, lost_hosts: set[str]) -> Why:
    """What control's word for a death means for the requests that were there."""
    if reason.startswith(("stopped", "host-lost")) or instance.route.host in lost_hosts:
        return "host"
    return "own"
