"""How long requests took, read from the policy's own memory in a recorded history.

A line has the service times of one look, and most looks have no line. But what each decision gives back
has a sketch of all service times (`headrace_autoscaler.service`), so what two lines' sketches differ by
ended between them, each right to the width of a bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from headrace_autoscaler.deltas import apply
from headrace_autoscaler.service import BINS, CAPACITY, GROWTH, SHORTEST_S
from headrace_autoscaler.simulate.scenario import Floats
from headrace_autoscaler.states import ServiceState

HALVED = CAPACITY // 4
"""When so many more have ended than the sketch has grown by, its counts were halved in between: that takes
`CAPACITY` / 2 away. Half of that is left for requests that end without being served."""


class Memories:
    """The sketches in one file's lines, which are given in their order."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}
        """Per lane, what its last line gave back (see `headrace_autoscaler.history`)."""

    def of(
        self, names: list[str], state: Any, after: Any, decision: Mapping[str, Any]
    ) -> dict[str, ServiceState | None]:
        """The sketch of each of these endpoints when a line was written; None: it can't be told.

        ``names`` are those observed, the first is the lane's. ``state`` and ``after`` are the line's, or None
        where it has none; a whole `spec.Record` has its state in the ``decision``.
        """
        if not names:
            return {}
        lane = names[0]
        try:
            before = self._given.get(lane)
            given = decision["state"] if after is None else apply(apply(before, state), after)
            known = given.get("endpoints", {})
        except (ValueError, LookupError, TypeError, AttributeError):
            # It needs a line before it that is not there: so does what follows, until one is in full.
            self._given.pop(lane, None)
            return dict.fromkeys(names)
        self._given[lane] = given
        return {name: _sketch(known.get(name)) for name in names}


def _sketch(memory: Any) -> ServiceState | None:
    try:
        found = (memory or {}).get("demand") or {}
        sketch = msgspec.convert(found.get("service", {}), ServiceState)
    except (msgspec.ValidationError, AttributeError):
        return None
    counts = dict(sketch.bins)
    whole = sum(counts.values()) == sketch.total and len(counts) == len(sketch.bins)
    return sketch if whole and all(0 <= n <= BINS and count > 0 for n, count in sketch.bins) else None


def ended_between(before: ServiceState, after: ServiceState, ended: int) -> Floats:
    """Service times (seconds, in ascending order) of the requests that ended between two sketches.

    ``ended``: how many did, served or not, by counters. As long as nothing was forgotten in between these
    are the differences of the counts. Else (the counts were halved, or another sketch has begun) what is in
    ``after`` stands for all that ended: it is of those and of no more than `CAPACITY` before them.
    """
    grown = after.total - before.total
    counts = dict(after.bins)
    for number, count in before.bins:
        counts[number] = counts.get(number, 0) - count
    if ended - grown > HALVED or min(counts.values(), default=0) < 0:
        return typical(after, ended)
    bins = tuple((number, count) for number, count in sorted(counts.items()) if count)
    return typical(ServiceState(bins=bins, total=grown, seconds=after.seconds - before.seconds), grown)


def typical(sketch: ServiceState, count: int) -> Floats:
    """So many service times (seconds, in ascending order) that are spread as those in the sketch are.

    Each is the middle of its bin; all are scaled by the same factor so that their mean is the true one
    (where as many are asked for as it has).
    """
    if count <= 0 or not sketch.total:
        return np.empty(0)
    numbers = np.asarray([number for number, _ in sketch.bins])
    counts = np.asarray([each for _, each in sketch.bins])
    middles = SHORTEST_S * GROWTH ** (numbers + 0.5)
    factor = sketch.seconds / float(np.dot(middles, counts))
    # No further than the bins are wide, whatever was written there.
    middles *= min(max(factor, 1 / GROWTH), GROWTH)
    ranks = (np.arange(count) + 0.5) * (sketch.total / count)
    return np.asarray(middles[np.searchsorted(np.cumsum(counts), ranks, side="right")], dtype=np.float64)
