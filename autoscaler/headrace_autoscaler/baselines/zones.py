"""SpotHedge's lists of zones: where spot is to be had, and where it was taken away lately."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from headrace_autoscaler.spec import InstanceObservation, OfferObservation
from headrace_autoscaler.values import Value

LEAST_AVAILABLE = 2
"""With fewer zones left than these all are available again."""


class Zone(Value, frozen=True, kw_only=True):
    """What befell one zone."""

    name: str
    lost_at: float
    """The last preemption or failed launch seen there."""
    preempting: bool = True


def befallen(
    before: tuple[Zone, ...], alive: Sequence[InstanceObservation], offers: Sequence[OfferObservation]
) -> tuple[Zone, ...]:
    """The zones after what was seen since: preemptions, failed launches, instances that became ready."""
    zones = {zone.name: zone for zone in before}
    for one in alive:
        zone = zones.get(one.offer)
        if zone is not None and zone.preempting and one.ready_at is not None and one.ready_at > zone.lost_at:
            zones[zone.name] = msgspec.structs.replace(zone, preempting=False)
    losses: list[tuple[float, str]] = []
    for offer in offers:
        failed_at = offer.failed_at if offer.failures else None
        for lost_at in (offer.preempted_at, failed_at):
            if lost_at is not None and (offer.offer not in zones or lost_at > zones[offer.offer].lost_at):
                losses.append((lost_at, offer.offer))
    for lost_at, name in sorted(losses):
        zones[name] = Zone(name=name, lost_at=lost_at)
        if sum(1 for o in offers if not _preempting(zones, o)) < LEAST_AVAILABLE:
            zones = {zone.name: msgspec.structs.replace(zone, preempting=False) for zone in zones.values()}
    return tuple(zones.values())


def _preempting(zones: Mapping[str, Zone], offer: OfferObservation) -> bool:
    zone = zones.get(offer.offer)
    return zone is not None and zone.preempting


def available(zones: tuple[Zone, ...], offers: Sequence[OfferObservation]) -> list[OfferObservation]:
    """The offers to choose from, in their order."""
    known = {zone.name: zone for zone in zones}
    return [offer for offer in offers if not _preempting(known, offer)]


def next_zone(zones: Sequence[OfferObservation], used: Collection[str]) -> OfferObservation | None:
    """The cheapest zone that holds none of ours, else the cheapest; None: there is none."""
    unused = [zone for zone in zones if zone.offer not in used]
    return min(unused or zones, key=lambda z: (z.price, z.offer), default=None)
