"""Builds what a policy is shown; parts that did not change since the last look are shown again."""

from __future__ import annotations

from collections.abc import Sequence

from headrace_autoscaler.simulate.bill import bill
from headrace_autoscaler.simulate.fleet import BUSY, STARTING, TIERS, UNLIMITED, Fleet, Instance, Site
from headrace_autoscaler.spec import (
    MAX_SERVED,
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    OfferObservation,
    PoolObservation,
    ScalingSpec,
)

BASE = "base"
"""The one base environment of a simulated home's warm sandboxes."""


class Looker:
    """Shows fleets and sites; owned by one run."""

    def __init__(self, fleets: Sequence[Fleet], sites: Sequence[Site], arrivals: Sequence[float]) -> None:
        self._fleets = fleets
        self._arrivals = arrivals
        self._sites = sites
        self._homes = [s for s in sites if s.supply.owned]
        self._offers = [s for s in sites if not s.supply.owned]
        self._pools = [s for s in self._homes if s.supply.warm is not None]
        self._hosts: tuple[HostObservation, ...] = ()
        self._offered: tuple[OfferObservation, ...] = ()
        self._pooled: tuple[PoolObservation, ...] = ()
        self._spending = 0.0
        self._last: Observation | None = None
        """Of all endpoints; None: it would be out of date."""

    def look(self, now: float, fleets: Sequence[Fleet]) -> Observation:
        """What is to be seen now of these endpoints, and of all hosts and offers."""
        for site in self._sites:
            if site.stale:
                self._look_at_sites()
                break
        last = self._last
        endpoints = []
        for fleet in fleets:
            view = fleet.view
            if view is None:
                view = self._endpoint(now, fleet)
                last = None
            endpoints.append(view)
        whole = len(fleets) == len(self._fleets)
        if last is not None and whole:
            return last
        seen = Observation(
            endpoints=tuple(endpoints),
            hosts=self._hosts,
            offers=self._offered,
            pools=self._pooled,
            spending=self._spending,
            idle_elsewhere=() if whole else self._idle_elsewhere(fleets),
        )
        self._last = seen if whole else None
        return seen

    def _look_at_sites(self) -> None:
        self._hosts = tuple([s.host_view or _host(s) for s in self._homes])
        self._offered = tuple([s.offer_view or _offer(s) for s in self._offers])
        self._pooled = tuple([s.pool_view or _pool(s) for s in self._pools])
        self._spending = sum(s.rate * len(s.instances) for s in self._sites)
        self._last = None
        for site in self._sites:
            site.stale = False

    def _endpoint(self, now: float, fleet: Fleet) -> EndpointObservation:
        fleet.count(now)
        instances = fleet.instances_view
        if instances is None:
            instances = tuple([i.view or _instance(i) for i in fleet.instances.values()])
            fleet.instances_view = instances
        served = fleet.served
        shown = EndpointObservation(
            endpoint=fleet.name,
            version=1,
            scaling=fleet.scaling,
            in_flight=fleet.in_flight,
            queued=fleet.queued,
            oldest_wait_s=now - self._arrivals[fleet.queue[0]] if fleet.queued else 0.0,
            instances=instances,
            arrived=fleet.arrived,
            demand_s=fleet.demand_s,
            served=tuple(served[-MAX_SERVED:]) if served else (),
            start_s=fleet.start_s,
        )
        # While there is demand its integral grows, and what was served is shown once.
        if not served and not fleet.in_flight and not fleet.queued:
            fleet.view = shown
        elif served:
            served.clear()
        return shown

    def _idle_elsewhere(
        self, fleets: Sequence[Fleet]
    ) -> tuple[tuple[str, InstanceObservation, ScalingSpec], ...]:
        if not self._homes:
            return ()
        return tuple(
            (fleet.name, one.view or _instance(one), fleet.scaling)
            for fleet in self._fleets
            if fleet not in fleets
            for one in fleet.instances.values()
            if one.state == "ready" and not one.running and one.site.supply.owned
        )


def _instance(one: Instance) -> InstanceObservation:
    supply = one.site.supply
    one.view = InstanceObservation(
        id=one.id,
        host=supply.name if supply.owned else one.id,
        version=1,
        state="draining" if one.state == "gone" else one.state,
        in_flight=len(one.running),
        started_at=one.started_at,
        last_used_at=one.last_used_at,
        gpu=one.site.gpu,
        ready_at=one.ready_at,
        offer="" if supply.owned else supply.name,
        spot=supply.spot,
        price=one.site.rate,
        paid_until=one.paid_until if supply.min_billing_s else None,
        lost_at=one.lost_at,
    )
    return one.view


def _host(site: Site) -> HostObservation:
    supply, left = site.supply, site.left
    site.host_view = HostObservation(
        host=supply.name,
        provider=supply.provider,
        region=supply.region,
        spot=supply.spot,
        price=site.rate,
        state="suspect" if site.outages or site.away else "ready",
        gpu_free={supply.kind: UNLIMITED if left is None else left},
    )
    return site.host_view


def _offer(site: Site) -> OfferObservation:
    supply = site.supply
    site.offer_view = OfferObservation(
        offer=supply.name,
        provider=supply.provider,
        region=supply.region,
        kind=supply.kind,
        gpu=(supply.kind, 1),
        spot=supply.spot,
        price=supply.price,
        min_billing_s=supply.min_billing_s,
        boot_s=site.boot_s,
        left=site.left,
        failures=site.failures,
        failed_at=site.failed_at,
        reason=site.reason,
        preempted_at=site.preempted_at,
        launching=site.doing[STARTING] + site.refused,
    )
    return site.offer_view


def _pool(site: Site) -> PoolObservation:
    site.pool_view = PoolObservation(
        host=site.name,
        base=BASE,
        ready=site.sandboxes,
        making=site.making,
        claimed=site.claimed,
        missed=site.missed,
        refill_s=site.refill_s,
    )
    return site.pool_view


def sample(fleets: Sequence[Fleet], sites: Sequence[Site], now: float, into: dict[str, list[float]]) -> None:
    """Add one point to every series of the timeline."""

    def add(series: str, value: float) -> None:
        into.setdefault(series, []).append(value)

    queued = sum(fleet.queued for fleet in fleets)
    add("t", now)
    add("demand", queued + sum(fleet.in_flight for fleet in fleets))
    add("queued", queued)
    for site in sites:
        add(f"starting:{site.name}", site.doing[STARTING])
        add(f"busy:{site.name}", site.doing[BUSY])
        add(f"idle:{site.name}", len(site.instances) - site.doing[STARTING] - site.doing[BUSY])
        add(f"dollars:{site.name}", bill(site, now))
    tiers = dict.fromkeys(TIERS, 0)
    for site in sites:
        for one in site.instances.values():
            tiers[one.tier] += 1
    for tier, count in tiers.items():
        add(f"tier:{tier}", count)
