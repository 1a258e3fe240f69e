"""How right the forecast of demand is: its error beside that of "all stays as it is", and its ranges.

    python -m benchmarks.forecast [FILE] [--days N] [--json]

FILE is what `headrace simulate` reads; without it the requests are made. Concurrency is averaged over
10 s; the forecast learns at each, and is judged at every third of all but the first day. ``known``: the
share of times at which it says anything of a range for nine of ten; the other figures are of those.
``below``: the part of truths at or below its quantiles (a truth of exactly 0 is at or below any).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from headrace_autoscaler.configs import ForecastConfig
from headrace_autoscaler.forecast import forecast, learn
from headrace_autoscaler.simulate.generators import SYNTHETIC, synthetic
from headrace_autoscaler.simulate.scenario import Floats, Trace
from headrace_autoscaler.simulate.traces import read_trace
from headrace_autoscaler.states import ForecastState

STEP_S = 10.0
DAY_S = 86_400.0
HORIZONS_S = (15.0, 90.0, 300.0, 1800.0)
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
KNOWN = 0.95
EVERY = 3
DAYS = 5.0


@dataclass(frozen=True)
class Row:
    """One horizon on one trace."""

    trace: str
    horizon_s: float
    rmse: float
    unchanged: float
    """The same of "all stays as it is"."""
    known: float
    below: tuple[float, ...]
    """Per `LEVELS`."""


def concurrency(trace: Trace, days: float) -> Floats:
    """Mean requests that would run over each step, were there always an instance free."""
    edges = np.arange(int(days * DAY_S / STEP_S) + 1) * STEP_S

    def integral(times: Floats) -> Floats:
        times = np.sort(times)
        count = np.searchsorted(times, edges)
        return count * edges - np.concatenate([[0.0], np.cumsum(times)])[count]

    busy = integral(trace.arrivals) - integral(trace.arrivals + trace.durations)
    return np.asarray(np.diff(busy) / STEP_S)


def judge(name: str, series: Floats) -> list[Row]:
    """Run the forecast through a series of means over `STEP_S`."""
    state, config = ForecastState(), ForecastConfig()
    frank = msgspec.structs.replace(config, widest=math.inf)
    found: dict[float, list[tuple[float, ...]]] = {horizon: [] for horizon in HORIZONS_S}
    asked = 0
    for place, value in enumerate(series):
        now = (place + 1) * STEP_S
        state = learn(now, float(value), state, config)
        if now < DAY_S or place % EVERY:
            continue
        asked += 1
        for horizon, rows in found.items():
            ahead = place + math.ceil(horizon / STEP_S - 0.5)
            known = forecast(now, state, horizon, KNOWN, config)
            if ahead < len(series) and known is not None:
                truth = float(series[ahead])
                said = (forecast(now, state, horizon, level, frank) for level in LEVELS)
                highs = (each is not None and truth <= each.high for each in said)
                rows.append((truth - known.value, truth - float(value), *map(float, highs)))
    return [_row(name, horizon, rows, asked) for horizon, rows in found.items()]


def _row(name: str, horizon: float, rows: list[tuple[float, ...]], asked: int) -> Row:
    if not rows:
        return Row(name, horizon, math.nan, math.nan, 0.0, ())
    table = np.array(rows)
    own, unchanged = np.sqrt(np.mean(table[:, :2] ** 2, axis=0))
    below = tuple(round(float(share), 3) for share in table[:, 2:].mean(axis=0))
    return Row(name, horizon, float(own), float(unchanged), len(rows) / asked, below)


def main() -> None:
    """Print a row per trace and horizon."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="requests, as headrace simulate reads them; without it they are made",
    )
    parser.add_argument("--days", type=float, default=DAYS, help="days from the first request on")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.file:
        traces = [read_trace(options.file)]
    else:
        traces = [synthetic(name, options.days, seed=1) for name in SYNTHETIC]
    rows = [row for trace in traces for row in judge(trace.name, concurrency(trace, options.days))]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'trace':22} {'ahead':>7} {'rmse':>7} {'as is':>7} {'known':>5}  below {LEVELS}")
    for row in rows:
        errors = f"{row.horizon_s:>5.0f} s {row.rmse:>7.3f} {row.unchanged:>7.3f}"
        print(f"{row.trace:22} {errors} {row.known:>5.0%}  " + " ".join(f"{x:.3f}" for x in row.below))


if __name__ == "__main__":
    main()
