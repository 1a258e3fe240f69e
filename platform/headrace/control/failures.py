"""Crash loops: starts that fail in a row are backed off exponentially, and told why. Pure."""

from __future__ import annotations

from headrace import wire
from headrace.control.model import Failing

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
LOOP = 3
"""Failures in a row that are called a crash loop."""
FRESH_S = 10.0
"""An instance that dies within this time of being ready counts as a failed start."""


UNHEALTHY_FRESH_S = 120.0
"""The same for one that is found unhealthy: its probe needs some periods to say so."""
FREE_DEATHS = 3
"""Deaths in a row of instances that were ready, without backoff: as often as one request may kill."""


def describe(death: wire.Death) -> str:
    """One line: the reason, and the detail."""
    return " ".join((f"{death.reason}: {death.detail}" if death.detail else death.reason).split())


def at_length(death: wire.Death) -> str:
    """What stands below that line: the traceback, or else what it printed last."""
    if death.traceback or not death.log:
        return death.traceback
    return "\n".join(["It printed last:", *(f"  {line}" for line in death.log)])


def counts(death: wire.Death, ready_for_s: float | None) -> bool:
    """Whether an ending counts to a crash loop; ``ready_for_s`` is None when it never was ready."""
    if death.reason in ("stopped", "host-lost"):
        return False
    if death.reason == "stuck" and ready_for_s is not None:
        # It ended on purpose, to give the slot of a cancelled request back.
        return False
    fresh_s = UNHEALTHY_FRESH_S if death.reason == "unhealthy" else FRESH_S
    return ready_for_s is None or ready_for_s < fresh_s


def another(
    before: Failing | None, version: int, death: wire.Death, now: float, *, was_ready: bool
) -> Failing:
    """One more failure in a row: twice the backoff of the one before.

    Instances that were claimed together fail together: failures within a running backoff are one.
    Deaths of instances that were ready are a row of their own: a request that kills must not make its
    neighbours wait, so these hold back only starts that nobody asks for (`Failing.lived`), and the first
    few not even those (``until`` is now).
    """
    same = before is not None and before.version == version and before.lived == was_ready
    if before is not None and same and now < before.until:
        return before
    count = before.count + 1 if before is not None and same else 1
    exponent = count - 1 - (FREE_DEATHS if was_ready else 0)
    wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(exponent, 16)) if exponent >= 0 else 0.0
    return Failing(count, now + wait, version, told(death, count, wait), death.traceback, was_ready)


def told(death: wire.Death, count: int, wait_s: float) -> str:
    """The reason as people read it: a crash loop is called one."""
    why = describe(death)
    return why if count < LOOP else f"crash loop, {count} in a row, the next after {wait_s:g} s: {why}"


def blocked_until(failing: Failing | None, version: int | None, queued: int) -> float:
    """No start of this version before this time; 0: at once."""
    if failing is None or failing.version != version or (failing.lived and queued):
        return 0.0
    return failing.until
