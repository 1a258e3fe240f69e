"""What no policy can cost less than: optima with hindsight, to measure policies against.

`slicing_bound` is exact for one kind of instance when nobody waits. `lp_bound` is a linear program for
several supplies that also allows the waiting and the failures that an SLO excuses. Its relaxations all go
one way, so that it stays a bound: starts are known in advance, requests may be split over instances and
moved between them at any time, parts of instances may be had, minimum billing is not charged, nothing
fails by itself, and instances serve all endpoints alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from headrace_autoscaler.simulate.program import Program, Wares, solve
from headrace_autoscaler.simulate.scenario import Draw, Floats, Scenario, Supply, Trace

HOUR_S = 3_600.0
BIN_S = 10.0
WITHIN_S = 10.0
SHARE = 0.99
TAIL_S = 900.0
TIME_LIMIT_S = 600.0
_ROUNDING = 1e-9
_QUANTILES = 1_000


@dataclass(frozen=True)
class Bound:
    """A lower bound of what a policy costs, in dollars, and how it came about."""

    usd: float
    unit_hours: float
    """Hours of instances that are paid for, starting included."""
    busy_hours: float
    """Hours of service that were asked for (within the time that counts)."""
    shed_hours: float
    """Hours of service that the SLO lets a policy leave undone: that of the longest requests."""
    method: str
    """``slicing``; ``lp``; when the linear program was not solved ``dual`` (what its solver had reached) or
    ``busy`` (the work that must be done, at the lowest price, without starts and idle time)."""
    note: str = ""
    """What to know about it; empty: nothing."""
    possible: bool = True
    """False: these supplies cannot meet the SLO at any cost. ``usd`` is then what the work alone costs that
    would have to be done, and who does less may spend less."""


def slicing_bound(trace: Trace, price: float, start_s: float, *, end_s: float | None = None) -> Bound:
    """The least cost of one kind of instance, one request each, when no request may wait.

    Demand is sliced into levels: level k is needed while k or more requests run. A level is kept through a
    gap if and only if that costs less than a start. Exact: each level is a ski-rental problem of its own,
    since instances are alike (Lin et al., "Dynamic right-sizing for power-proportional data centers",
    INFOCOM 2011, has the same structure). Endpoints do not share instances.

    Args:
        trace: requests.
        price: dollars per hour of an instance.
        start_s: seconds that an instance is paid for before it is ready.
        end_s: what is served later does not count; None: all counts.
    """
    _check_number("price", price)
    _check_number("start_s", start_s)
    paid_s = busy_s = 0.0
    for index in range(len(trace.names)):
        chosen = trace.endpoints == index
        times, levels = _running(trace.arrivals[chosen], trace.durations[chosen], end_s)
        busy_s += float(np.dot(levels[:-1], np.diff(times))) if len(times) else 0.0
        paid_s += _sliced(times, levels, start_s)
    paid_s += busy_s
    return Bound(paid_s / HOUR_S * price, paid_s / HOUR_S, busy_s / HOUR_S, 0.0, "slicing")


def lp_bound(
    trace: Trace,
    supplies: Sequence[Supply],
    *,
    within_s: float = WITHIN_S,
    share: float = SHARE,
    concurrency: int = 1,
    bin_s: float = BIN_S,
    tail_s: float = TAIL_S,
    from_s: float = 0.0,
    time_limit_s: float = TIME_LIMIT_S,
) -> Bound:
    """No policy costs less that lets at least ``share`` of all requests start within ``within_s``.

    A linear program in bins of ``bin_s`` (`program.solve` says which). The other requests need not be
    served at all; since a policy may choose which, the work of the *longest* of them may be left out.
    Others may be served up to ``within_s`` late (rounded up to whole bins).

    Args:
        trace: requests; those before ``from_s`` do not count.
        supplies: where instances may run; of home's tiers of starts the shortest is charged.
        within_s: how long a request may wait.
        share: of the requests that must not wait longer.
        concurrency: requests that one instance runs at once.
        bin_s: shorter is tighter and slower.
        tail_s: how long after the last arrival things count.
        from_s: begin of what counts; instances that run then cost nothing to have been started.
        time_limit_s: for HiGHS, which is asked when the method of our own does not end; when it runs out
            the bound is a weaker one, and says so.

    Raises:
        ValueError: arguments that make no sense, or supplies that cannot serve the work at all.
        MissingExtraError: scipy is not installed.
    """
    _check(supplies, within_s, share, concurrency, bin_s)
    counted = trace.arrivals >= from_s
    arrivals, durations = trace.arrivals[counted] - from_s, trace.durations[counted]
    end_s = (float(arrivals[-1]) if len(arrivals) else 0.0) + tail_s
    excused = math.floor((1 - share) * len(durations) + _ROUNDING)
    shed_s = float(np.sort(durations)[len(durations) - excused :].sum())
    demand = occupancy(arrivals, durations, bin_s, end_s)
    busy_s = float(demand.sum()) * bin_s
    standing = sum(s.price * (s.capacity or 0) * end_s / HOUR_S for s in supplies if s.standing)
    program = Program(
        demand=demand / concurrency,
        late=math.ceil(within_s / bin_s - _ROUNDING),
        shed=shed_s / bin_s / concurrency,
        wares=tuple(_ware(supply, from_s, bin_s, len(demand)) for supply in supplies),
        running=from_s > 0,
    )
    answer = solve(program, time_limit_s)
    dollars_per_unit = bin_s / HOUR_S
    if answer.cost is None:
        free = sum(s.capacity or 0 for s in supplies if s.standing)
        left_s = max(0.0, (busy_s - shed_s) / concurrency - free * end_s)
        cheapest = min((s.price for s in supplies if not s.standing), default=0.0)
        work = left_s * cheapest / HOUR_S
        found = max(work, answer.floor * dollars_per_unit)
        return Bound(
            standing + found,
            left_s / HOUR_S,
            busy_s / HOUR_S,
            shed_s / HOUR_S,
            "busy" if found == work else "dual",
            f"{answer.note}; a weaker bound stands in for it" if answer.possible else answer.note,
            answer.possible,
        )
    return Bound(
        standing + answer.cost * dollars_per_unit,
        answer.units * dollars_per_unit,
        busy_s / HOUR_S,
        shed_s / HOUR_S,
        "lp",
    )


def scenario_bound(
    scenario: Scenario,
    *,
    within_s: float = WITHIN_S,
    share: float = SHARE,
    bin_s: float = BIN_S,
    time_limit_s: float = TIME_LIMIT_S,
) -> Bound:
    """`lp_bound` of what a scenario counts: after its warm-up, with its supplies and tail."""
    return lp_bound(
        scenario.trace,
        scenario.supplies,
        within_s=within_s,
        share=share,
        concurrency=max((wish.concurrency for wish in scenario.wishes), default=1),
        bin_s=bin_s,
        tail_s=scenario.tail_s,
        from_s=scenario.warm_up_s,
        time_limit_s=time_limit_s,
    )


def occupancy(arrivals: Floats, durations: Floats, bin_s: float, end_s: float) -> Floats:
    """How many requests run on average in each bin until ``end_s`` if none waits; exact integrals."""
    edges = np.arange(math.ceil(end_s / bin_s - _ROUNDING) + 1) * bin_s
    times, levels = _running(arrivals, durations, end_s)
    if not len(times):
        return np.zeros(len(edges) - 1)
    integral = np.concatenate([[0.0], np.cumsum(levels[:-1] * np.diff(times))])
    return np.asarray(np.diff(np.interp(edges, times, integral, left=0.0)) / bin_s, dtype=np.float64)


def least_start_s(supply: Supply) -> float:
    """What a start costs at the least, in seconds of the shortest tier, on average.

    Where draws differ much, giving up slow starts and trying again may pay; so it is the least over t of
    E[min(X, t)] / P(X <= t), below which no rule of giving up and trying again, or of several tries at
    once, comes (Luby, Sinclair and Zuckerman, "Optimal speedup of Las Vegas algorithms", 1993).
    """
    tiers = [supply.boot]
    if supply.cached is not None:
        tiers.append(supply.cached)
    if supply.warm is not None and supply.warm_sandboxes:
        tiers.append(supply.warm)
    return min(_least(draw) for draw in tiers)


def _least(draw: Draw) -> float:
    if draw.samples:
        sorted_s = np.sort(np.asarray(draw.samples, dtype=np.float64))
        sorted_s *= draw.median / float(np.median(sorted_s)) if draw.median else 1.0
    elif draw.sigma > 0:
        normal = NormalDist(math.log(draw.median), draw.sigma)
        middle = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        sorted_s = np.exp([normal.inv_cdf(float(each)) for each in middle])
    else:
        # Evenly spread around the median: what has lasted longer is nearer to its end, so none is given up.
        return draw.median
    tries = np.arange(1, len(sorted_s) + 1)
    spent = np.cumsum(sorted_s) + sorted_s * (len(sorted_s) - tries)
    return float((spent / tries).min())


def _soonest(draw: Draw) -> float:
    """No draw is below this."""
    if draw.samples:
        scale = draw.median / float(np.median(draw.samples)) if draw.median else 1.0
        return min(draw.samples) * scale
    return 0.0 if draw.sigma > 0 else draw.median * (1 - draw.jitter)


def _ware(supply: Supply, from_s: float, bin_s: float, count: int) -> Wares:
    there = np.ones(count)
    for begin, until in _away(supply):
        there = np.minimum(there, 1 - _overlap(begin - from_s, until - from_s, bin_s, count))
    per_unit = 0.0 if supply.standing else supply.price
    most = np.zeros(count)
    most[there > 0] = math.inf if supply.capacity is None else supply.capacity * there[there > 0]
    return Wares(per_unit, least_start_s(supply) / bin_s, most)


def _away(supply: Supply) -> list[tuple[float, float]]:
    """When nothing of it can be ready: from preemption or outage until one that was started again is."""
    # At home what is there before may be ready at once; what an offer had is gone.
    again = 0.0 if supply.owned else _soonest(supply.boot)
    found = [(begin, until + again) for begin, until in supply.outages]
    if supply.availability is not None:
        times, values = supply.availability.times, supply.availability.values
        since: float | None = None
        for at, value in zip(times, values, strict=True):
            if not value and since is None:
                # Before the beginning nothing ran that could be given notice.
                since = at + supply.notice_s if at > 0 else at
            elif value and since is not None:
                found.append((since, at + again))
                since = None
        if since is not None:
            found.append((since, math.inf))
    return found


def _overlap(begin: float, until: float, bin_s: float, count: int) -> Floats:
    """The part of each bin that lies in [begin, until)."""
    left = np.arange(count) * bin_s
    covered = np.minimum(left + bin_s, until) - np.maximum(left, begin)
    return np.asarray(np.clip(covered / bin_s, 0.0, 1.0), dtype=np.float64)


def _running(arrivals: Floats, durations: Floats, end_s: float | None) -> tuple[Floats, Floats]:
    """When the number of running requests changes, and that number from then on; without those of 0 s."""
    begins, ends = arrivals, arrivals + durations
    if end_s is not None:
        begins, ends = np.minimum(begins, end_s), np.minimum(ends, end_s)
    # What lasts no time would end before it begins.
    some = ends > begins
    times = np.concatenate([begins[some], ends[some]])
    change = np.repeat([1.0, -1.0], int(some.sum()))
    # At one moment what ends gives its place to what begins.
    order = np.lexsort((change, times))
    return times[order], np.cumsum(change[order])


def _sliced(times: Floats, levels: Floats, start_s: float) -> float:
    """Seconds for starts and gaps: each level's gaps cost their length or a start, whichever is less."""
    # A level that was never needed has no gap to be kept through: it has to be started.
    fell = [-math.inf] * int(levels.max(initial=0))
    spent, level = 0.0, 0
    for at, now in zip(times.tolist(), levels.tolist(), strict=True):
        if now > level:
            spent += min(start_s, at - fell[level])
            level += 1
        else:
            level -= 1
            fell[level] = at
    return spent


def _check(supplies: Sequence[Supply], within_s: float, share: float, concurrency: int, bin_s: float) -> None:
    if not supplies:
        raise ValueError("there is no supply: without any no request can be served")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: it must be above 0 and at most 1, such as {SHARE}")
    if not (bin_s > 0 and math.isfinite(bin_s)) or concurrency < 1:
        raise ValueError(
            f"bin_s is {bin_s} and concurrency {concurrency}: they must be above 0, and 1 or more"
        )
    _check_number("within_s", within_s)
    for supply in supplies:
        _check_number(f"the price of {supply.name}", supply.price)


def _check_number(what: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} is {value}: it must be 0 or more, and finite")
