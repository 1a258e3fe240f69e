"""What a run cost, from the seconds that its supplies booked."""

from __future__ import annotations

from collections.abc import Iterable

from headrace_autoscaler.simulate.fleet import BUSY, HOUR_S, IDLE, PREEMPTED, STARTING, SUNK, Site
from headrace_autoscaler.simulate.scenario import Cost


def cost(sites: Iterable[Site], end: float) -> Cost:
    """All of it, by what the time was used for; after the last instance has ended."""
    dollars = [0.0] * 5
    for site in sites:
        seconds = list(site.seconds)
        if site.supply.standing:
            seconds[SUNK] += max(0.0, _standing_s(site, end) - sum(seconds))
        for kind, spent_s in enumerate(seconds):
            dollars[kind] += spent_s * site.supply.price / HOUR_S
    return Cost(
        starting=dollars[STARTING],
        idle=dollars[IDLE],
        busy=dollars[BUSY],
        sunk=dollars[SUNK],
        preempted=dollars[PREEMPTED],
    )


def bill(site: Site, now: float) -> float:
    """Dollars that a supply has cost by now: what ended, what runs, and what is standing."""
    live = (now - max(site.warm_up_s, one.started_at) for one in site.instances.values())
    used_s = site.billed_s + sum(max(0.0, seconds) for seconds in live)
    billed_s = max(used_s, _standing_s(site, now)) if site.supply.standing else used_s
    return billed_s * site.supply.price / HOUR_S


def _standing_s(site: Site, now: float) -> float:
    return (site.supply.capacity or 0) * max(0.0, now - site.warm_up_s)
