"""The linear program of the lower bound: fewer unknowns without loss, then `interior`, else HiGHS.

Amounts are instances; time is in bins. Per bin t and supply j, with ``demand`` a(t):

- c(j,t): instances ready on average, at most what is there; costs price(j) each;
- u(j,t) >= c(j,t) - c(j,t-1): starts; each costs price(j) times the bins that a start takes;
- z(t) <= a(t): work left undone; all of it together is at most ``shed``;
- B(t): work that is late by the end of t, at most what arrived within the last ``late`` bins;
- sum over j of c(j,t) + z(t) + B(t) - B(t-1) >= a(t).

It is below every real schedule: averages over a bin of a real schedule's number of ready instances fulfil
it, with u(j,t) the average over the bin of how many starts the last bin's length saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace_autoscaler.simulate.interior import minimise
from headrace_autoscaler.simulate.scenario import Floats

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

EXTRA = "simulate"
METHOD = "highs-ipm"
"""Of HiGHS the interior point method: three times as fast here as its dual simplex."""
_OPTIMAL, _LIMIT, _INFEASIBLE = 0, 1, 2


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed; the message says which to install."""


@dataclass(frozen=True)
class Wares:
    """One supply: price per bin, bins that a start takes, and how many instances may be ready in each bin."""

    price: float
    start: float
    most: Floats


@dataclass(frozen=True)
class Program:
    """What is to be solved; the module says what the names mean."""

    demand: Floats
    late: int
    shed: float
    wares: tuple[Wares, ...]
    running: bool = False
    """Instances that are ready in the first bin need no start."""


@dataclass(frozen=True)
class Answer:
    """The least cost (price times bins), the bins of instances that it pays for; None: not known."""

    cost: float | None
    units: float = 0.0
    note: str = ""
    floor: float = 0.0
    """The least cost is not below this."""
    possible: bool = True
    """False: there is no solution, whatever it costs."""


@dataclass(frozen=True)
class Bins:
    """The bins that are left, ``weight`` old ones each; ``fresh`` where nothing is kept from before."""

    first: NDArray[np.intp]
    weight: Floats
    fresh: NDArray[np.bool_]


def solve(program: Program, time_limit_s: float) -> Answer:
    """Solve it: by `interior.minimise`, and by HiGHS (through scipy) where that does not end.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    program = pruned(program)
    bins = merged(program)
    return optimum(program, bins, time_limit_s) if len(bins.first) else Answer(0.0)


def optimum(program: Program, bins: Bins, time_limit_s: float) -> Answer:
    """The least cost in these bins. Raises `MissingExtraError`."""
    try:
        from scipy.optimize import linprog  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise MissingExtraError(
            f"the lower bound needs scipy: install headrace with its extra {EXTRA} (headrace[{EXTRA}])"
        ) from error
    if time_limit_s <= 0:
        # HiGHS looks at the time between its phases, and would solve a small one all the same.
        return Answer(None, note="the linear program was not tried")
    lines = _matrices(program, bins)
    quick = minimise(lines.cost, lines.rows, lines.right, lines.upper, most=lines.most, bins=lines.bins)
    if quick.solved:
        return Answer(quick.bound, float(lines.units @ quick.x))
    found = linprog(
        lines.cost,
        A_ub=lines.rows,
        b_ub=lines.right,
        bounds=np.column_stack([np.zeros(len(lines.cost)), lines.upper]),
        method=METHOD,
        options={"time_limit": time_limit_s},
    )
    if found.status == _INFEASIBLE:
        # Its dual has no greatest value: what was reached of it means nothing.
        note = "these supplies cannot serve so many requests in time, whatever it costs"
        return Answer(None, note=note, possible=False)
    return replace(answer_of(found, lines.units, time_limit_s), floor=max(0.0, quick.bound))


def answer_of(found: Any, units: Floats, time_limit_s: float) -> Answer:
    """What the solver's result says."""
    if found.status == _OPTIMAL:
        return Answer(float(found.fun), float(units @ found.x))
    if found.status == _LIMIT:
        return Answer(None, note=f"the linear program was not solved within {time_limit_s:g} s")
    return Answer(None, note=f"the linear program was not solved: {found.message}")


def pruned(program: Program) -> Program:
    """The same without supplies where a cheaper one without limit is there for long; same least cost.

    An instance of the dearer supply that is ready for more than ``near`` bins while the cheaper one could
    replace it costs more than the replacement with its extra start. So it is of use only near the ends of
    the time in which the cheaper one is there (where it bridges to the time in which it is not), unless
    that time is so short that it is bridged altogether.
    """
    wares = []
    for index, ware in enumerate(program.wares):
        most = ware.most.copy()
        for other_index, other in enumerate(program.wares):
            saved = ware.price - other.price
            starts = ware.price * ware.start, other.price * other.start
            if starts[1] > starts[0] or saved < 0 or (not saved and other_index >= index):
                continue
            for begin, end in _runs(np.isinf(other.most)):
                if not saved:
                    # Alike: the one named first, where it is there all the time.
                    if (begin, end) == (0, len(most)):
                        most[:] = 0.0
                    continue
                near = int(np.ceil(starts[0] / saved)) + 1
                left = begin + near if begin else 0
                right = end - near if end < len(most) else end
                inside = begin and end < len(most)
                if left < right and not (inside and end - begin <= sum(starts) / saved + 1):
                    most[left:right] = 0.0
        wares.append(replace(ware, most=most))
    return replace(program, wares=tuple(wares))


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, end) of each run of what is true."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=np.int8(0), append=np.int8(0))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def merged(program: Program) -> Bins:
    """Bins without those in which nothing can happen, and runs of empty bins as one.

    Between two busy bins it is best to keep in all of the empty bins between them what is kept through
    any; and through a gap that is at least as long as any start it is best to keep nothing. So the least
    cost is the same.
    """
    demand = program.demand
    late = _late(program)
    before = np.concatenate([[0.0], late[:-1]])
    busy = (demand > 0) | (late > 0) | (before > 0)
    longest = max(ware.start for ware in program.wares)
    first: list[NDArray[np.intp]] = []
    weight: list[Floats] = []
    fresh: list[NDArray[np.bool_]] = []
    end = 0
    for begin, until in _runs(busy):
        gap = begin - end
        cut = gap >= longest and (end > 0 or not program.running)
        if gap and not cut:
            first.append(np.asarray([end]))
            weight.append(np.asarray([float(gap)]))
            fresh.append(np.asarray([not end]))
        first.append(np.arange(begin, until))
        weight.append(np.ones(until - begin))
        new = np.zeros(until - begin, np.bool_)
        new[0] = cut or not begin
        fresh.append(new)
        end = until
    if not first:
        return Bins(np.zeros(0, np.intp), np.zeros(0), np.zeros(0, np.bool_))
    return Bins(np.concatenate(first), np.concatenate(weight), np.concatenate(fresh))


def _late(program: Program) -> Floats:
    """How much may be late by the end of each bin."""
    total = np.concatenate([np.zeros(program.late), np.cumsum(program.demand)])
    count = len(program.demand)
    arrived = total[program.late :] if program.late else total
    late = arrived - total[:count] if program.late else np.zeros(count)
    # Differences of sums: what should be 0 may be a little beside it.
    quiet = np.convolve(program.demand > 0, np.ones(max(1, program.late)))[:count] == 0
    return np.where(quiet, 0.0, np.maximum(late, 0.0))


def _least(most: Floats, bins: Bins) -> Floats:
    """The least of each bin's old ones: what is kept through all of them is no more."""
    least = most[bins.first]
    for index in np.flatnonzero(bins.weight > 1).tolist():
        begin = bins.first[index]
        least[index] = most[begin : begin + int(bins.weight[index])].min()
    return least


@dataclass(frozen=True)
class Lines:
    """The program as ``rows @ x <= right``, ``0 <= x <= upper``; columns are c and u by supply, z, B."""

    cost: Floats
    units: Floats
    """Per column, bins of instances that are paid for."""
    rows: csr_matrix
    """By bin, but the last: it says how much work may be left undone."""
    right: Floats
    upper: Floats
    most: Floats
    """Per column, what no optimal solution needs to exceed."""
    bins: NDArray[np.intp]
    """Per row but the last."""


def _matrices(program: Program, bins: Bins) -> Lines:
    from scipy import sparse  # noqa: PLC0415  (an optional extra; `optimum` has said so)

    count = len(bins.first)
    demand, late = program.demand[bins.first], _late(program)[bins.first]
    every = np.arange(count)
    one = sparse.identity(count, format="csr")
    # What was in the bin before: nothing where it is fresh.
    linked = every[~bins.fresh]
    before = sparse.csr_matrix((np.ones(len(linked)), (linked, linked - 1)), shape=(count, count))
    peak = float((demand + np.concatenate([[0.0], late[:-1]])).max())
    shed = np.flatnonzero((demand > 0) & (program.shed > 0))
    put_off = np.flatnonzero(late > 0)
    # A program that began while instances ran has them for nothing: its first bin has no row for starts.
    counted = every[1:] if program.running else every
    cost, units, upper, grow, serve, charged = [], [], [], [], [], []
    for ware in program.wares:
        # Starts that cost nothing need not be counted, and would be as many as one likes.
        paid = counted if ware.price * ware.start > 0 else every[:0]
        charged.append(paid)
        ready = _least(ware.most, bins)
        # Where nothing can be ready nothing need be started.
        start = np.where(ready[paid] > 0, np.inf, 0.0)
        cost += [ware.price * bins.weight, np.full(len(paid), ware.price * ware.start)]
        units += [bins.weight * (ware.price > 0), np.full(len(paid), ware.start * (ware.price > 0))]
        # What costs nothing and has no limit would be as much as one likes, too.
        upper += [ready if ware.price else np.minimum(ready, peak), start]
        grow.append(sparse.hstack([(one - before)[paid], -sparse.identity(len(paid), format="csr")]))
        serve += [-one, sparse.csr_matrix((count, len(paid)))]
    nothing = np.zeros(len(shed) + len(put_off))
    budget = np.concatenate([np.zeros(sum(map(len, upper))), np.ones(len(shed)), np.zeros(len(put_off))])
    rows = sparse.vstack(
        [
            sparse.hstack([*serve, -one[:, shed], -(one - before)[:, put_off]]),
            sparse.hstack(
                [sparse.block_diag(grow), sparse.csr_matrix((sum(map(len, charged)), len(nothing)))]
            ),
            sparse.csr_matrix(budget),
        ],
        format="csr",
    )
    # Without work that may be left undone the last row says nothing, and says it with room to spare.
    right = np.concatenate([-demand, np.zeros(sum(map(len, charged))), [program.shed if len(shed) else 1.0]])
    all_upper = np.concatenate([*upper, demand[shed], late[put_off]])
    used = np.flatnonzero(all_upper > 0)
    rows = rows[:, used]
    said = np.append(np.flatnonzero(np.diff(rows.indptr[:-1]) + (right[:-1] < 0)), rows.shape[0] - 1)
    return Lines(
        np.concatenate([*cost, nothing])[used],
        np.concatenate([*units, nothing])[used],
        rows[said],
        right[said],
        all_upper[used],
        np.minimum(all_upper, peak)[used],
        np.concatenate([every, *charged])[said[:-1]],
    )
