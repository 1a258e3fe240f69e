"""What is simulated: real requests, spot and prices where there are any, made ones where not."""

from __future__ import annotations

import csv
import gzip
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from headrace_autoscaler.simulate.data import Price, read_prices, read_spot
from headrace_autoscaler.simulate.generators import DAY_S, SIGMA, synthetic
from headrace_autoscaler.simulate.scenario import Floats, Steps, Trace
from headrace_autoscaler.simulate.traces import read_trace

DATA_VARIABLE = "HEADRACE_DATA"
REQUESTS = "requests/genai_gpu_12d.csv.gz"
FLAT = "requests/dlrm_app20_gpus_5min.csv.gz"
FLAT_REQUEST_S = 1200.0
"""Long ones, as whoever is given a GPU of that service keeps it; and a month stays quick to simulate."""
FLAT_MEAN, FLAT_DAYS = 73.0, 31.0
PRICES = "prices/gpu_price_medians_2026-06-01.csv"
REAL_DAYS = 12.0
MEAN_SERVICE_S = 26.5
"""Of the real requests; made ones take as long in the mean."""
WAVE_SERVICE_S = 120.0
MADE_REQUESTS_PER_DAY = 20_600.0
MADE_SPOT_S = (7200.0, 3600.0)
"""Means of how long spot of a made zone is there, and away."""
SPOT_GAP_S = 195.0
WINDOWS_DAYS = 40.0
"""Windows of spot begin within these, so that five days from there are recorded (45 are)."""
CAVEATS = (
    "The requests are 18 superposed, shifted copies of one platform's log; its publisher had shifted the "
    "time stamps.",
    "exec_s may include some queueing: work may be overstated, on both sides alike.",
    "Nights are nearly empty, which flatters every serverless system.",
)
MADE_CAVEAT = (
    f"These requests are MADE (a diurnal wave), not real: name the real data by --data or {DATA_VARIABLE}."
)


class NoDataError(Exception):
    """What was asked for is not there."""


def folder(given: str | None) -> Path | None:
    """Where the real data is: ``given``, else what ``HEADRACE_DATA`` says; None: there is none.

    Raises:
        NoDataError: A folder was named that has no requests in it.
    """
    named = given or os.environ.get(DATA_VARIABLE)
    if not named:
        return None
    found = Path(named).expanduser()
    if not (found / REQUESTS).is_file():
        raise NoDataError(f"{found / REQUESTS} is not there: name the folder that holds requests/ and spot/")
    return found


def caveats(data: Path | None) -> list[str]:
    """What is to be said beside every saving."""
    return [MADE_CAVEAT] if data is None else list(CAVEATS)


def requests(data: Path | None) -> Trace:
    """Twelve days of requests for pictures, one GPU each, as one endpoint; without data made ones."""
    if data is not None:
        return read_trace(data / REQUESTS)
    return synthetic("diurnal", REAL_DAYS, 3, requests_per_day=MADE_REQUESTS_PER_DAY, mean_s=MEAN_SERVICE_S)


def flat(data: Path | None) -> Trace:
    """A nearly flat service's month: as many requests at once as it had GPUs; without data a flat rate."""
    if data is None:
        return even("flat", np.array([0.0, FLAT_DAYS * DAY_S]), np.ones(2), FLAT_MEAN, FLAT_REQUEST_S, 0)
    return read_trace(data / FLAT, request_s=FLAT_REQUEST_S)


def trace(name: str, arrivals: Floats, durations: Floats) -> Trace:
    """One endpoint's requests, brought in order."""
    order = np.argsort(arrivals, kind="stable")
    return Trace(name, arrivals[order], durations[order], np.zeros(len(arrivals), dtype=np.int32))


def thinned(whole: Trace, share: float, seed: int) -> Trace:
    """A part of the requests, picked by chance."""
    keep = np.random.default_rng(seed).random(len(whole.arrivals)) < share
    return trace(f"{whole.name} x {share:g}", whole.arrivals[keep], whole.durations[keep])


def doubled(whole: Trace, shift_s: float) -> Trace:
    """Each request twice, the second time ``shift_s`` later, round the end."""
    span = math.ceil(whole.end / DAY_S) * DAY_S
    times = np.concatenate([whole.arrivals, (whole.arrivals + shift_s) % span])
    return trace(f"{whole.name} x 2", times, np.concatenate([whole.durations] * 2))


def wave_power(ratio: float) -> float:
    """k for which the mean of ``cos(x)^2k`` over a period is ``ratio`` of its peak; 0: flat.

    That mean is Gamma(k + 1/2) / (sqrt(pi) Gamma(k + 1)), which falls with k.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"mean/peak is above 0 and at most 1, not {ratio}")
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        mean = math.exp(math.lgamma(middle + 0.5) - math.lgamma(middle + 1)) / math.sqrt(math.pi)
        low, high = (middle, high) if mean > ratio else (low, middle)
    return (low + high) / 2


def wave(mean: float, ratio: float, length_days: float, seed: int) -> Trace:
    """One wave a day with ``mean`` GPUs busy and this mean/peak ratio of the rate.

    Chance (how long requests are) makes the ratio of what is really busy lower: measure it.
    """
    grid = np.linspace(0.0, length_days * DAY_S, int(length_days * 1440) + 1)
    rate = np.abs(np.cos(np.pi * grid / DAY_S)) ** (2 * wave_power(ratio))
    return even(f"wave {ratio:g}", grid, rate, mean, WAVE_SERVICE_S, seed)


def even(name: str, grid: Floats, rate: Floats, mean: float, service_s: float, seed: int) -> Trace:
    """Requests that come evenly at this rate, log-normal in length; ``mean`` run at once on average."""
    random = np.random.default_rng(seed)
    done = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid))])
    count = round(mean * float(grid[-1] - grid[0]) / service_s)
    times = np.interp((np.arange(count) + 0.5) / count * done[-1], done, grid)
    durations = service_s * np.exp(SIGMA * random.standard_normal(count) - SIGMA**2 / 2)
    return trace(name, times, durations)


@dataclass(frozen=True)
class Loads:
    """Seconds that loading a model takes, as independent draws: part by part, and all in a row."""

    base: tuple[float, ...]
    pipeline: tuple[float, ...]
    adapter: tuple[float, ...]
    measured: bool

    @property
    def switch(self) -> tuple[float, ...]:
        """What is left where the base model is loaded: its pipeline and its adapter."""
        return tuple(a + b for a, b in zip(self.pipeline, self.adapter, strict=True))

    @property
    def whole(self) -> tuple[float, ...]:
        """All three, one after another."""
        return tuple(a + b for a, b in zip(self.base, self.switch, strict=True))


def loads(data: Path | None, count: int = 4000) -> Loads:
    """Measured loads; without data log-normal ones with the medians that were published of them."""
    random = np.random.default_rng(5)
    made = {"basemodel": (22.7, 0.5), "pipeline": (8.5, 0.8), "lora": (4.4, 0.3)}
    parts = []
    for file, (median, sigma) in made.items():
        if data is None:
            values = median * np.exp(sigma * random.standard_normal(count))
        else:
            values = random.choice(_milliseconds(data / f"startup/{file}_load_latency.csv.gz") / 1000, count)
        parts.append(tuple(values.tolist()))
    return Loads(*parts, measured=data is not None)


def _milliseconds(file: Path) -> Floats:
    """The column ``value``, zeros too: a pipeline that was there already takes no time."""
    with gzip.open(file, "rt", newline="") as source:
        return np.array([float(row["value"]) for row in csv.DictReader(source)])


@dataclass(frozen=True)
class Zone:
    """Where there is spot; ``file`` says when (None: made, independent of the other zones)."""

    name: str
    file: Path | None = None

    def window(self, from_day: float, length_s: float) -> Steps:
        """When there was spot, for so long from that day on, with time from 0."""
        begin = from_day % WINDOWS_DAYS
        if self.file is not None:
            return read_spot(self.file, from_day=begin, to_day=begin + length_s / DAY_S)
        random = np.random.default_rng([*self.name.encode(), int(from_day)])
        times, values, now, there = [], [], 0.0, int(random.random() < MADE_SPOT_S[0] / sum(MADE_SPOT_S))
        while now < length_s:
            times.append(now)
            values.append(there)
            stay = float(random.exponential(MADE_SPOT_S[1 - there]))
            now += SPOT_GAP_S * math.ceil(stay / SPOT_GAP_S)
            there = 1 - there
        return Steps(tuple(times), tuple(values))


def zones(data: Path | None) -> list[Zone]:
    """The recorded zones, or five made ones."""
    if data is None:
        return [Zone(f"made-{letter}") for letter in "abcde"]
    return [Zone(file.name.partition("_")[0], file) for file in sorted((data / "spot").glob("*.json.gz"))]


@dataclass(frozen=True)
class Offered:
    """Dollars per hour of one GPU of one provider, both ways."""

    provider: str
    on_demand: float
    spot: float


MADE_OFFERS = (Offered("one", 3.25, 1.15), Offered("two", 3.3, 3.0), Offered("three", 3.85, 2.15))


def offers(data: Path | None, kind: str) -> list[Offered]:
    """Providers that offer the kind both ways, cheapest on demand first; outliers are clipped."""
    return list(MADE_OFFERS) if data is None else both_ways(read_prices(data / PRICES), kind)


def both_ways(listed: Iterable[Price], kind: str) -> list[Offered]:
    """See `offers`."""
    asked = {(one.provider, one.spot): one.price for one in listed if one.kind == kind}
    both = [provider for provider, spot in asked if spot and (provider, False) in asked]
    found = [Offered(provider, asked[provider, False], asked[provider, True]) for provider in both]
    if not found:
        raise NoDataError(f"nobody offers {kind} both on demand and as spot: take another kind")
    return sorted(found, key=lambda one: (one.on_demand, one.provider))


def nearest(listed: Sequence[Offered], dollars: float, count: int) -> tuple[Offered, ...]:
    """Those whose price on demand is nearest to ``dollars``, cheapest first: a rule made before any run."""
    chosen = sorted(listed, key=lambda one: (abs(one.on_demand - dollars), one.provider))[:count]
    return tuple(sorted(chosen, key=lambda one: (one.on_demand, one.provider)))
