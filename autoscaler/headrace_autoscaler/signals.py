"""Averages over windows from counters that were read at irregular times. Pure.

What is observed are counters (`spec.EndpointObservation.demand_s`, the integral of concurrency over time,
and ``arrived``), so the average over a span is the difference of two readings by the time between them:
exact however rarely one looked in between, where averaging gauges would need a look at each change. Only
the edge of a window that falls between two readings has to be guessed, on the straight line between them.
That guess is refused when those two are further apart than the window is long and the counter moved.

A reading that is missing is no zero: it leaves the window as it is, and what cannot be told is None.
"""

from __future__ import annotations

from headrace_autoscaler.states import WindowState

MAX_SAMPLES = 48
"""Readings that a window holds."""
THINNING = 0.2
"""When it is full, readings go that leave gaps of at most this part of their age: a long window needs its
edge less exactly than a short one."""
SPACING_S = 0.5
"""Two readings nearer than this are not both kept, except that the newest always is."""
COVERED = 0.5
"""A window must have been watched for this part of its length, and have been read within the other part."""

_Sample = tuple[float, float, int | None]


def observe(
    window: WindowState, now: float, demand_s: float | None, arrived: int | None, span_s: float
) -> WindowState:
    """The window with one more reading; the same object when there is nothing new.

    ``span_s`` is the longest window that will be asked for. A counter (or clock) that went back belongs to
    a platform that was started anew: what was read before is dropped.
    """
    if demand_s is None:
        return window
    sample = (now, demand_s, arrived)
    samples = window.samples
    if samples:
        last = samples[-1]
        if last == sample:
            return window
        lost = arrived is not None and last[2] is not None and arrived < last[2]
        if now < last[0] or demand_s < last[1] or lost:
            samples = ()
        elif now == last[0]:
            samples = samples[:-1]
    end = len(samples)
    if end >= 2 and _adds_nothing(samples[-2], samples[-1], sample):
        end -= 1
    start, first = now - span_s, 0
    while first < end - 1 and samples[first + 1][0] <= start:
        first += 1
    samples = (*samples[first:end], sample)
    return WindowState(samples=samples if len(samples) <= MAX_SAMPLES else _thinned(samples))


def _thinned(samples: tuple[_Sample, ...]) -> tuple[_Sample, ...]:
    now = samples[-1][0]
    kept = [samples[-1]]
    for older, sample in zip(samples[-3::-1], samples[-2:0:-1], strict=True):
        if kept[-1][0] - older[0] > THINNING * (now - older[0]):
            kept.append(sample)
    kept.append(samples[0])
    return tuple(kept[MAX_SAMPLES - 1 :: -1])


def _adds_nothing(before: _Sample, middle: _Sample, after: _Sample) -> bool:
    """Whether the middle one is on the line between the others (nothing moved), or too near the first."""
    if middle[0] - before[0] < SPACING_S:
        return True
    return before[1] == middle[1] == after[1] and before[2] == middle[2] == after[2]


def average(window: WindowState, now: float, seconds: float) -> float | None:
    """Mean concurrency (in flight and queued) over the last ``seconds``; None: not known."""
    found = _edges(window, now, seconds)
    if found is None:
        return None
    before, after, last, start = found
    return (last[1] - _between(before[0], before[1], after[0], after[1], start)) / (last[0] - start)


def rate(window: WindowState, now: float, seconds: float) -> float | None:
    """Arrivals per second over the last ``seconds``; None: not known."""
    found = _edges(window, now, seconds)
    if found is None:
        return None
    before, after, last, start = found
    if before[2] is None or after[2] is None or last[2] is None:
        return None
    return (last[2] - _between(before[0], before[2], after[0], after[2], start)) / (last[0] - start)


def _between(t0: float, v0: float, t1: float, v1: float, t: float) -> float:
    return v0 if t <= t0 else v0 + (v1 - v0) * (t - t0) / (t1 - t0)


def _edges(window: WindowState, now: float, seconds: float) -> tuple[_Sample, _Sample, _Sample, float] | None:
    """(readings on both sides of the window's start, the newest, the start); None: it cannot be told."""
    samples = window.samples
    if len(samples) < 2:
        return None
    last = samples[-1]
    unseen = now - last[0]
    if unseen > seconds * (1 - COVERED) or unseen < 0:
        return None
    start = max(now - seconds, samples[0][0])
    if last[0] <= start or last[0] - start < seconds * COVERED:
        return None
    place = len(samples) - 2
    while samples[place][0] > start:
        place -= 1
    before, after = samples[place], samples[place + 1]
    guessed = before[0] < start and before[1:] != after[1:]
    if guessed and after[0] - before[0] > seconds:
        return None
    return before, after, last, start
