"""Three providers with spot in several zones, and a day on which the cheapest of them goes away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Trace, Wish

from benchmarks._figures import busiest
from benchmarks._loads import DAY_S, Offered, Zone

HOUR_S = 3600.0
OUTAGE_S = 2 * HOUR_S
MIN_BILLING_S = 60.0
NOTICE_S = 120.0
"""What the clouds of these traces give before they take a spot node."""
WINDOW_STEP_DAYS = 9.0
"""Seed n sees the recorded spot from day 9 n on: five seeds are spread over the 45 days of it."""
ON_DEMAND = "on-demand"


@dataclass(frozen=True)
class Market:
    """Who offers what, in which zones."""

    offers: tuple[Offered, ...]
    zones: tuple[Zone, ...]
    boot: Draw
    spot_capacity: int | None = None
    """The most spot nodes of one zone at once; None: any number, as the traces of single nodes can't say."""
    drain_s: float | None = None
    """A node under notice goes on to take requests until so long before its loss; None: it takes none more,
    which is the cautious side: whether a platform goes on to use it is the platform's choice."""
    outages: int = 1
    """Daily peaks at which the cheapest provider is gone, the busiest days first."""
    warm_up_s: float = 0.0
    """What is played before anything counts: a platform that was there yesterday. Nobody goes away then."""


def supplies(market: Market, trace: Trace, seed: int) -> tuple[Supply, ...]:
    """On demand from each provider, and one spot offer per zone; seeds move zones and the window of time.

    The zones are dealt round, beginning with provider ``seed``; the cheapest on demand goes away.
    """
    gone = peaks(trace, market.outages, market.warm_up_s)
    made = [
        _supply(market, price, ON_DEMAND, gone if not at else ()) for at, price in enumerate(market.offers)
    ]
    for number, zone in enumerate(market.zones):
        at = (number + seed) % len(market.offers)
        steps = zone.window(seed * WINDOW_STEP_DAYS, trace.end + HOUR_S)
        made.append(_supply(market, market.offers[at], zone.name, gone if not at else (), steps=steps))
    return tuple(made)


def _supply(
    market: Market, price: Offered, where: str, outages: tuple[tuple[float, float], ...], **spot: object
) -> Supply:
    steps = spot.get("steps")
    return Supply(
        name=f"{price.provider}-{where}",
        price=price.spot if steps else price.on_demand,
        boot=market.boot,
        provider=price.provider,
        region=where if steps else "main",
        min_billing_s=MIN_BILLING_S,
        notice_s=NOTICE_S,
        drain_s=market.drain_s,
        spot=bool(steps),
        capacity=market.spot_capacity if steps else None,
        availability=steps,  # type: ignore[arg-type]
        outages=outages,
    )


def peaks(trace: Trace, count: int, from_s: float = 0.0) -> tuple[tuple[float, float], ...]:
    """The two busiest hours of the ``count`` busiest days of those from ``from_s`` on, in order of time."""
    if not len(trace.arrivals):
        return ()
    found = []
    for day in range(math.ceil(from_s / DAY_S), int(trace.end // DAY_S) + 1):
        inside = (trace.arrivals >= day * DAY_S) & (trace.arrivals < (day + 1) * DAY_S)
        if not inside.any():
            continue
        begin = busiest(trace.arrivals[inside] - day * DAY_S, trace.durations[inside], OUTAGE_S) + day * DAY_S
        in_it = inside & (trace.arrivals >= begin) & (trace.arrivals < begin + OUTAGE_S)
        found.append((float(trace.durations[in_it].sum()), begin))
    chosen = sorted(found, reverse=True)[:count]
    return tuple(sorted((begin, begin + OUTAGE_S) for _, begin in chosen))


def scenarios(
    name: str, market: Market, trace: Trace, seeds: int, limits: Mapping[str, float | int | None]
) -> dict[str, Scenario]:
    """One scenario per seed, ``name/seed``."""
    return {
        f"{name}/{seed}": Scenario(
            trace,
            supplies(market, trace, seed),
            (Wish(),),
            warm_up_s=market.warm_up_s,
            **limits,  # type: ignore[arg-type]
        )
        for seed in range(seeds)
    }


def dealt(market: Market, seed: int) -> Sequence[str]:
    """Which zone is whose for a seed, in words."""
    names = [price.provider for price in market.offers]
    return [f"{zone.name} at {names[(n + seed) % len(names)]}" for n, zone in enumerate(market.zones)]
