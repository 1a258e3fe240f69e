"""Why a lost request goes nowhere else, and the moment for which its error waits for control's word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from headrace.errors import InstanceKilled, RequestError
from headrace.gateway.answer import Fate, lost_error

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt
    from headrace.gateway.endpoints import Instance

Why = Literal["reset", "own", "host"]
"""Why an attempt was lost: the connection broke, the instance died, or its host did."""
VERDICT_S = 0.15
"""Before a request fails because its instance broke off: so long for control to say why it died, and whether
its host is lost. The host sees it first and tells control, which tells us."""
Over = Callable[[str], RequestError]
"""The error of a request that no other instance gets, out of why its instance died."""


class Verdict:
    """Without a word of control in time, it tells the attempt's call how the loss counts."""

    __slots__ = ("_detail", "_mute", "_over", "_timer", "attempt")

    def __init__(self, attempt: Attempt, over: Over, detail: str) -> None:
        self.attempt = attempt
        self._over = over
        self._detail = detail
        self._mute = False
        """Whether control could not know when it was to say something: see `Dispatcher.uncertain`."""
        self._timer = attempt.call.dispatcher.loop.call_later(VERDICT_S, self._due)

    def stop(self) -> None:
        """There is nothing to wait for any more."""
        self._timer.cancel()

    def error(self, reason: str) -> RequestError:
        """What the client is told; without a reason, what was seen of the death."""
        return self._over(reason or self._detail)

    def _due(self) -> None:
        attempt = self.attempt
        call = attempt.call
        if attempt.charged and call.dispatcher.uncertain(attempt.instance):
            self._mute = True
            self._timer = call.dispatcher.loop.call_later(VERDICT_S, self._due)
        elif attempt.charged and (self._mute or attempt.instance.route.suspect):
            # It was the host, the machine or the platform that ended or stood still.
            call.excused(attempt)
        else:
            call.convicted(attempt)


def over_for(fate: Fate, attempts: int, deaths: int | None = None) -> Over:
    """It was sent ``attempts`` times, and was there at ``deaths`` deaths."""
    return lambda reason: lost_error(reason, fate, attempts, deaths)


def killer(deaths: int) -> Over:
    """It was present at so many deaths, at the last one alone."""
    return lambda reason: InstanceKilled(
        f"{deaths} instances died while they worked on this request, the last one while it ran there "
        f"alone: {reason}.",
        hint="`headrace logs NAME` shows what was printed.",
    )


def whole_hosts(dead: list[Instance], reasons: dict[str, str]) -> set[str]:
    """Hosts that are lost where control gives no reason: those that lost several instances at once."""
    silent = Counter(i.route.host for i in dead if not reasons.get(i.route.id))
    return {host for host, count in silent.items() if count > 1}


def why_lost(instance: Instance, reason: str, lost_hosts: set[str]) -> Why:
    """What control's word for a death means for the requests that were there."""
    if reason.startswith(("stopped", "host-lost")) or instance.route.host in lost_hosts:
        return "host"
    return "own"
