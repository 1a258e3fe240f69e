"""Traces made up from a seed, so that a simulation needs no data: `synthetic` makes them by name.

Each kind is a shape of arrivals, scaled so that ``requests_per_day`` is what the whole trace has on
average, with Poisson arrivals at that rate (in steps of `STEP_S`); services are log-normal as those of
image generation are, or of heavy tail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from headrace_autoscaler.simulate.scenario import Floats, Trace

DAY_S = 86_400.0
HOUR_S = 3_600.0
STEP_S = 10.0
"""Rates change in steps of this length."""
REQUESTS_PER_DAY = 30_000.0
MEAN_S = 25.0
"""Mean seconds of service: image generation on one GPU."""
SIGMA = 0.6
"""Of a service time's logarithm: P50 21 s, P99 84 s at a mean of 25 s."""
SHORTEST_S = 0.05

PEAK_HOUR = 15.0
NIGHT = 0.03
"""The rate at night, as part of the daily peak."""
PEAKEDNESS = 2.0
WEEKEND = 0.7
WEEKEND_DAYS = (2, 3)
"""Day 0 is a Thursday, as that of Unix time is, which policies go by."""
CROWDS_PER_DAY = 2.0
CROWD_HEIGHT = 20.0
"""Peak of a crowd in units of the quiet rate; drawn between half and one and a half of it."""
CROWD_RISE_S = 60.0
CROWD_DECAY_S = 900.0
ON_S = 1_800.0
OFF_S = 5_400.0
"""Mean lengths of the times with and without requests."""
TAIL_EXPONENT = 1.5
"""Pareto: finite mean, no variance; the longest is cut at about `TAIL_LONGEST` times the mean."""
TAIL_LONGEST = 200.0
MMPP_RATES = (0.2, 1.0, 5.0)
MMPP_STAY_S = (1_800.0, 1_200.0, 300.0)
"""Mean stay in each state; the next one is either of the others with equal chances."""


@dataclass(frozen=True)
class Shape:
    """What a generator gives: the rate in each step (any unit) and how services are drawn."""

    rate: Callable[[Floats, Generator], Floats]
    """(begins of the steps in seconds, source of chance) to a rate per step."""
    heavy: bool = False
    about: str = ""


def _day(times: Floats) -> Floats:
    phase = 2 * np.pi * (times / DAY_S - PEAK_HOUR / 24)
    wave = ((1 + np.cos(phase)) / 2) ** PEAKEDNESS
    weekend = np.isin((times // DAY_S).astype(np.int64) % 7, WEEKEND_DAYS)
    return np.asarray((NIGHT + (1 - NIGHT) * wave) * np.where(weekend, WEEKEND, 1.0), dtype=np.float64)


def _diurnal(times: Floats, rng: Generator) -> Floats:
    return _day(times)


def _flash_crowd(times: Floats, rng: Generator) -> Floats:
    rate = np.ones_like(times)
    end = float(times[-1]) + STEP_S
    # At least one: a short trace without any would be another kind of trace.
    count = max(1, int(rng.poisson(CROWDS_PER_DAY * end / DAY_S)))
    for begin in rng.uniform(0, end, count):
        since = times - begin
        rise = np.clip(since / CROWD_RISE_S, 0, 1)
        decay = np.exp(-np.maximum(since - CROWD_RISE_S, 0) / CROWD_DECAY_S)
        rate += CROWD_HEIGHT * rng.uniform(0.5, 1.5) * rise * decay
    return rate


def _on_off(times: Floats, rng: Generator) -> Floats:
    return _levels(times, rng, (1.0, 0.0), (ON_S, OFF_S))


def _mmpp(times: Floats, rng: Generator) -> Floats:
    return _levels(times, rng, MMPP_RATES, MMPP_STAY_S)


def _flat(times: Floats, rng: Generator) -> Floats:
    return np.ones_like(times)


def _levels(times: Floats, rng: Generator, rates: tuple[float, ...], stays: tuple[float, ...]) -> Floats:
    """The rate of a Markov chain with these states, from the first one on."""
    rate = np.zeros_like(times)
    now, state, end = 0.0, 0, float(times[-1]) + STEP_S
    while now < end:
        # A stay shorter than a step would be seen by none.
        stay = max(STEP_S, float(rng.exponential(stays[state])))
        rate[(times >= now) & (times < now + stay)] = rates[state]
        now += stay
        state = (state + 1 + int(rng.integers(len(rates) - 1))) % len(rates)
    return rate


SYNTHETIC: dict[str, Shape] = {
    "diurnal": Shape(_diurnal, about="a peak each afternoon, nights nearly empty, quieter weekends"),
    "flash-crowd": Shape(
        _flash_crowd, about="a quiet rate, and twice a day a crowd that comes within a minute"
    ),
    "on-off": Shape(_on_off, about="half an hour of requests, then an hour and a half of none, on average"),
    "heavy-tail": Shape(_flat, heavy=True, about="a steady rate of requests, few of which are very long"),
    "mmpp": Shape(_mmpp, about="Markov-modulated Poisson: quiet, usual and busy times follow by chance"),
}
"""What `synthetic` makes, by name."""


def synthetic(
    name: str,
    days: float = 7.0,
    seed: int = 0,
    *,
    requests_per_day: float = REQUESTS_PER_DAY,
    mean_s: float = MEAN_S,
) -> Trace:
    """Make ``days`` of requests; equal arguments give equal traces. ``mean_s``: mean seconds of service.

    Raises ``ValueError`` for a name that is not in `SYNTHETIC` and for numbers that make no trace.
    """
    shape = SYNTHETIC.get(name)
    if shape is None:
        raise ValueError(f"there is no synthetic trace {name!r}: take one of {', '.join(SYNTHETIC)}")
    for what, value in (("days", days), ("requests_per_day", requests_per_day), ("mean_s", mean_s)):
        if not 0 < value < np.inf:
            raise ValueError(f"{what} is {value}: it must be a number above 0")
    rng = np.random.default_rng([seed, *name.encode()])
    end = days * DAY_S
    times = np.arange(0.0, end, STEP_S)
    lengths = np.minimum(STEP_S, end - times)
    weights = shape.rate(times, rng) * lengths
    counts = rng.poisson(weights * (requests_per_day * days / weights.sum()))
    arrivals = np.repeat(times, counts) + rng.uniform(size=counts.sum()) * np.repeat(lengths, counts)
    arrivals.sort()
    durations = _tail(rng, len(arrivals), mean_s) if shape.heavy else _services(rng, len(arrivals), mean_s)
    return Trace(name, arrivals, durations, np.zeros(len(arrivals), np.int32))


def _services(rng: Generator, count: int, mean_s: float) -> Floats:
    drawn = rng.lognormal(np.log(mean_s) - SIGMA**2 / 2, SIGMA, count)
    return np.asarray(np.maximum(drawn, SHORTEST_S), dtype=np.float64)


def _tail(rng: Generator, count: int, mean_s: float) -> Floats:
    """Pareto, bounded: by inversion of its distribution, least value such that the mean is right."""
    a = TAIL_EXPONENT
    # Mean of a Pareto on [1, h] with exponent a; h is `TAIL_LONGEST` means of one that is not bounded.
    h = TAIL_LONGEST * a / (a - 1)
    mean = a / (a - 1) * (1 - h ** (1 - a)) / (1 - h**-a)
    drawn = (1 - rng.uniform(size=count) * (1 - h**-a)) ** (-1 / a)
    return np.asarray(np.maximum(drawn * (mean_s / mean), SHORTEST_S), dtype=np.float64)
