"""When an endpoint's instances get nothing for a while, and how many requests may be sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt

OPENS_AFTER = 5
"""Losses in a row, without an answer in between, that open the circuit."""
FIRST_OPEN_S = 1.0
LONGEST_OPEN_S = 30.0
HOPELESS_AFTER = 3
"""Openings without an answer after which nobody is kept waiting for the next probe."""
BURST_S = 0.2
"""Losses on one host within this time of the first are one: they have one cause."""
RETRY_SHARE = 0.2
"""So many retries and hedges per request, beyond the burst."""
RETRY_BURST = 20


class Circuit:
    """Closed, open, or half-open with one probe. Handlers' errors are answers: they never open it.

    Times are monotonic seconds.
    """

    __slots__ = ("_burst_at", "_burst_host", "_opened", "losses", "open", "probe", "until")

    def __init__(self) -> None:
        self.open = False
        """Also while half-open."""
        self.until = 0.0
        """From then on one probe may go out."""
        self.losses = 0
        self.probe: Attempt | None = None
        self._opened = 0
        self._burst_host = ""
        self._burst_at = float("-inf")

    def lost(self, host: str, since: float, now: float) -> bool:
        """An instance died under a request, or refused a connection; whether the circuit opened by it.

        ``since``: when the instance came. One that came after its host's burst had begun is no victim of it.
        """
        if self.open:
            if now < self.until:
                return False
            self._open(now)
            return True
        if host == self._burst_host and since <= self._burst_at and now - self._burst_at < BURST_S:
            return False
        self._burst_host, self._burst_at = host, now
        self.losses += 1
        if self.losses < OPENS_AFTER:
            return False
        self._open(now)
        return True

    def excused(self, host: str) -> None:
        """The host was lost: what its instances did is not the endpoint's fault."""
        if host != self._burst_host:
            return
        self._burst_host = ""
        self.losses = max(0, self.losses - 1)
        if self.open and self.losses < OPENS_AFTER:
            self._close()

    def answered(self) -> None:
        """An instance answered."""
        self.losses = 0
        if self.open:
            self._close()

    @property
    def hopeless(self) -> bool:
        """Whether probe after probe has failed."""
        return self.open and self._opened >= HOPELESS_AFTER

    def lets_through(self, now: float) -> bool:
        """Whether a request may be sent: always when closed, one at a time when half-open."""
        return not self.open or (now >= self.until and self.probe is None)

    def _open(self, now: float) -> None:
        self.open = True
        self.probe = None
        self.until = now + min(LONGEST_OPEN_S, FIRST_OPEN_S * 2.0 ** min(self._opened, 16))
        self._opened += 1

    def _close(self) -> None:
        self.open = False
        self.probe = None
        self._opened = 0


class RetryBudget:
    """A token bucket: requests pay in, retries and hedges take out.

    Hedges leave half of the burst: an endpoint that is slower than its ``hedge_after`` sends one per request,
    and would leave nothing for the requests of the first instance that dies.
    """

    __slots__ = ("_tokens", "burst")

    def __init__(self) -> None:
        self.burst = RETRY_BURST
        self._tokens = float(RETRY_BURST)

    def earn(self) -> None:
        """A request came."""
        if self._tokens < self.burst:
            self._tokens += RETRY_SHARE

    @property
    def empty(self) -> bool:
        """Whether nothing more may be sent again for now."""
        return self._tokens < 1.0

    def take(self) -> bool:
        """Whether one more may be sent again."""
        if self.empty:
            return False
        self._tokens -= 1.0
        return True

    def take_for_copy(self) -> bool:
        """Whether one more copy may be sent of what is only slow."""
        return self._tokens >= self.burst / 2 + 1.0 and self.take()

    def give_back(self) -> None:
        """What was taken was not owed: the host was lost."""
        self._tokens = min(float(self.burst), self._tokens + 1.0)

    def widen(self, concurrency: int) -> None:
        """The loss of two full instances must fit into the burst."""
        burst = RETRY_BURST + 2 * concurrency
        if burst > self.burst:
            self._tokens += burst - self.burst
            self.burst = burst
