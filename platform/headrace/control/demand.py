"""What gateways say is wanted: sums over gateways, replaced by their newest word, dropped with their link.

Jobs in the store are the exception: all gateways see the same ones, so the largest number counts.
"""

from __future__ import annotations

from headrace import wire
from headrace.control.model import NEVER, Endpoint, Seen, World
from headrace.link import Link


def demand(world: World, link: Link, message: wire.Demand) -> None:
    """Take in one gateway's report: what it does not mention has not changed."""
    now = world.now()
    for item in message.items:
        endpoint = world.endpoints.get(item.endpoint)
        if endpoint is None:
            continue
        if item.in_flight or item.queued or item.stored:
            endpoint.demand[link] = Seen(
                now, item.in_flight, item.queued, item.oldest_wait_s, item.stored, item.named
            )
            world.touch(endpoint)
        else:
            endpoint.demand.pop(link, None)
        endpoint.signals.heard(link.peer_id, item, now)
        _stored(endpoint, now)
        _used(endpoint, link, item, now)


def wake(world: World, link: Link, message: wire.Wake) -> Endpoint | None:
    """Take in a wake: its queue counts at once. None for an endpoint that is not there."""
    endpoint = world.endpoints.get(message.endpoint)
    if endpoint is None:
        return None
    now = world.now()
    world.wakes += 1
    endpoint.wakes += 1
    world.touch(endpoint)
    queued = message.queued if message.stored else max(1, message.queued)
    if message.version is not None and message.version != endpoint.version:
        pin = endpoint.pins.get(message.version)
        if pin is not None:
            pin.queued, pin.queued_at = max(1, queued), now
        return endpoint
    said = endpoint.demand.setdefault(link, Seen(now))
    said.at, said.queued = now, max(said.queued, queued)
    said.stored = max(said.stored, message.stored)
    return endpoint


def forget(world: World, link: Link) -> None:
    """A gateway's link ended: what it said no longer counts."""
    now = world.now()
    for endpoint in list(world.active.values()):
        if endpoint.demand.pop(link, None) is not None:
            endpoint.signals.lost(link.peer_id, now)
            _stored(endpoint, now)
        for instance in endpoint.instances.values():
            instance.used_by.pop(link, None)
            instance.told = NEVER


def _stored(endpoint: Endpoint, now: float) -> None:
    endpoint.signals.stored(max((said.stored for said in endpoint.demand.values()), default=0), now)


def _used(endpoint: Endpoint, link: Link, item: wire.EndpointDemand, now: float) -> None:
    for instance in endpoint.instances.values():
        count = item.instances.get(instance.id)
        if count:
            instance.used_by[link] = count
        else:
            instance.used_by.pop(link, None)
        if count is not None:
            instance.last_used = now
        # Gateways know better than the samples of a host, which are seconds old.
        instance.told, instance.beating = now, 0
