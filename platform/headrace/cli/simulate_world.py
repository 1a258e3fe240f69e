"""What ``headrace simulate`` is told on the command line, as a scenario."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.simulate.check import check
from headrace_autoscaler.simulate.data import read_spot
from headrace_autoscaler.simulate.generators import DAY_S, SYNTHETIC, synthetic
from headrace_autoscaler.simulate.observed import observed_start
from headrace_autoscaler.simulate.recorded import Recorded, read_history
from headrace_autoscaler.simulate.scenario import Scenario, Steps, Trace
from headrace_autoscaler.simulate.sweep import OURS
from headrace_autoscaler.simulate.traces import between, read_trace
from headrace_autoscaler.simulate.world import (
    SupplyTable,
    WishTable,
    World,
    read_world,
    supplies_of,
    wishes_of,
)

from headrace.errors import UsageError

SYNTHETIC_DAYS = 3.0
SYNTHETIC_SEED = 0
START_S = 12.0
SPOT_PART = 0.4
"""Of the price on demand, where --spot-price says nothing: spot costs 30 to 50 % as a rule."""
CLOUD, HOME, SPOT = "cloud", "home", "spot"


@dataclass(frozen=True)
class Asked:
    """The options, as they were given."""

    trace: str | None = None
    history: Path | None = None
    endpoint: str | None = None
    endpoint_column: str | None = None
    days: float | None = None
    from_day: float = 0.0
    to_day: float | None = None
    warm_up_days: float = 7.0
    world: Path | None = None
    price: float = 2.0
    start_seconds: float | None = None
    home: int = 0
    home_price: float = 0.0
    spot: tuple[Path, ...] = ()
    spot_price: float | None = None
    min_billing: float = 0.0
    outages: tuple[str, ...] = ()
    timeout: float | None = None
    queue_cap: int | None = None
    wish: WishTable = field(default_factory=WishTable)


def scenario_of(asked: Asked) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario, and what of its trace was not seen but assumed.

    Raises `UsageError` that says which option or file is wrong.
    """
    try:
        whole, notes = _read(asked)
        mine = whole if asked.history is not None else _endpoint(whole, asked.endpoint)
        trace, begin_s = _cut(mine, asked)
        asked, assumed = _started(asked)
        notes += assumed
        world = _world(asked)
        where = asked.world.parent if asked.world else Path()
        scenario = Scenario(
            trace=trace,
            supplies=supplies_of(world, lambda name: _spot(where / name), begin_s=begin_s),
            wishes=wishes_of(world, trace.names),
            timeout_s=world.timeout_s,
            queue_cap=world.queue_cap,
            retries=world.retries,
            warm_up_s=begin_s,
        )
        check(scenario, policy_of(OURS))  # what it says of a scenario holds for all policies
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or str(error)).lower()}.") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return scenario, notes


def _spot(path: Path) -> Steps:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    return read_spot(path)


def _read(asked: Asked) -> Recorded:
    if asked.history is not None:
        return read_history(asked.history, asked.endpoint)
    assert asked.trace is not None
    path = Path(asked.trace)
    if path.exists():
        return Recorded(read_trace(path, endpoint_column=asked.endpoint_column), ())
    if asked.trace in SYNTHETIC:
        end = asked.to_day or asked.from_day + (asked.days or SYNTHETIC_DAYS)
        return Recorded(synthetic(asked.trace, days=end, seed=SYNTHETIC_SEED), ())
    raise UsageError(
        f"there is no file {asked.trace!r}, and no synthetic trace of that name.",
        hint=f"Give a CSV file with time,duration[,endpoint], or one of {', '.join(SYNTHETIC)}.",
    )


def _endpoint(trace: Trace, name: str | None) -> Trace:
    if name is None:
        return trace
    if name not in trace.names:
        raise UsageError(
            f"there is no endpoint {name!r} there.", hint=f"The trace has: {_some(trace.names)}."
        )
    keep = trace.endpoints == trace.names.index(name)
    return replace(
        trace,
        arrivals=trace.arrivals[keep],
        durations=trace.durations[keep],
        endpoints=np.zeros(int(keep.sum()), dtype=np.int32),
        names=(name,),
    )


def _some(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _cut(trace: Trace, asked: Asked) -> tuple[Trace, float]:
    """(the requests from the warm-up's begin to the last day asked for, seconds of warm-up)."""
    until = asked.to_day
    if asked.days is not None:
        if until is not None:
            raise UsageError("--days and --to-day say the same.", hint="Give one of them.")
        until = asked.from_day + asked.days
    if until is not None and until <= asked.from_day:
        raise UsageError(f"--to-day {until:g} is not after --from-day {asked.from_day:g}.")
    if not len(trace.arrivals):
        raise UsageError(f"{trace.name}: there is no request in it.")
    begin = max(0.0, asked.from_day - asked.warm_up_days)
    between(trace, asked.from_day, until)  # says so when nothing is left that counts
    return between(trace, begin, until), (asked.from_day - begin) * DAY_S


def _world(asked: Asked) -> World:
    if asked.world is not None:
        return read_world(asked.world)
    assert asked.start_seconds is not None
    outages = tuple(_hours(words) for words in asked.outages)
    supplies = [
        SupplyTable(
            name=CLOUD,
            price=asked.price,
            start_s=asked.start_seconds,
            min_billing_s=asked.min_billing,
            outages_h=outages,
        )
    ]
    if asked.home:
        supplies.insert(
            0,
            SupplyTable(
                name=HOME, home=True, capacity=asked.home, price=asked.home_price, start_s=asked.start_seconds
            ),
        )
    price = asked.price * SPOT_PART if asked.spot_price is None else asked.spot_price
    for number, file in enumerate(asked.spot, start=1):
        supplies.append(
            SupplyTable(
                name=f"{SPOT}-{number}",
                price=price,
                start_s=asked.start_seconds,
                min_billing_s=asked.min_billing,
                spot=True,
                provider=CLOUD,
                region=f"zone-{number}",
                availability=str(file.absolute()),
            )
        )
    return World(
        supply=tuple(supplies), endpoint=asked.wish, timeout_s=asked.timeout, queue_cap=asked.queue_cap
    )


def _started(asked: Asked) -> tuple[Asked, tuple[str, ...]]:
    """With the seconds that a start takes; of a history those that it has seen."""
    if asked.world is not None:
        return asked, ()
    if asked.history is None:
        return replace(asked, start_seconds=asked.start_seconds or START_S), ()
    price = f"an instance costs ${asked.price:g} per hour"
    if asked.start_seconds is not None:
        return asked, (price,)
    seen = observed_start(asked.history, asked.endpoint)
    how = "as recorded" if seen else "assumed: no start was recorded"
    return replace(asked, start_seconds=seen or START_S), (
        f"starts take {seen or START_S:.3g} s ({how})",
        price,
    )


def _hours(words: str) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", words)
    if match is None or float(match[1]) >= float(match[2]):
        raise UsageError(f"--outage {words!r}: write it as FROM-UNTIL in hours, for example 36-38.")
    return float(match[1]), float(match[2])
