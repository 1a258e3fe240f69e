"""Averages over windows from a counter that is read at irregular times.

A sample is (time, counter). The average of a rate over a window is the difference of the counter divided by
the time between; at the window's begin the counter is taken linear between the samples around it. Samples
are kept as a tuple as long as the window and no denser than `SPACING_S`, so their number is bounded.
"""

from __future__ import annotations

import math
from bisect import bisect_right

SPACING_S = 1.0
"""Least seconds between samples, and the least span that makes an average."""

Samples = tuple[tuple[float, float], ...]


def push(samples: Samples, now: float, counter: float, window_s: float) -> Samples:
    """With this reading; what the window does not reach any more is dropped.

    A counter that went back has started again: nothing before can be compared with it.
    """
    if samples:
        if counter < samples[-1][1]:
            return ((now, counter),)
        if now - samples[-1][0] < SPACING_S:
            return samples
    begin, drop = now - window_s, 0
    while drop + 1 < len(samples) and samples[drop + 1][0] <= begin:
        drop += 1
    return (*samples[drop:], (now, counter))


def average(samples: Samples, now: float, counter: float, window_s: float) -> float | None:
    """The counter's rate over the last ``window_s`` (or since the first sample, where that is later).

    None: the samples span less than `SPACING_S`, so there is nothing to take an average of.
    """
    if not samples or now - samples[0][0] < SPACING_S:
        return None
    begin = now - window_s
    after = bisect_right(samples, (begin, math.inf))
    if after == 0:
        begin, then = samples[0]
    elif after == len(samples):
        then = samples[-1][1] + _part(samples[-1], (now, counter), begin)
    else:
        then = samples[after - 1][1] + _part(samples[after - 1], samples[after], begin)
    return (counter - then) / (now - begin)


def _part(before: tuple[float, float], after: tuple[float, float], time: float) -> float:
    """What the counter gained from ``before`` until ``time``, taken as linear up to ``after``."""
    return (after[1] - before[1]) * (time - before[0]) / (after[0] - before[0])
