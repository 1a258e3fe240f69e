"""The routing table: what gateways must know of endpoints, instances and keys, as a snapshot and deltas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from headrace import wire
from headrace.control import state
from headrace.control.model import Endpoint, Instance, World
from headrace.control.observe import requests_each
from headrace.errors import LinkClosed
from headrace.link import Link

log = logging.getLogger("headrace.control")
DOUBT_S = 0.3
"""After this long an instance in trouble is told again, unless its host has said that it ended."""
CHUNK = 2000
"""Endpoints per delta, so that a bulk deploy is no single huge frame."""
NONE: Mapping[str, str] = {}
FRESH_S = 0.25
"""A gateway that takes longer to report is not waited for."""


def endpoint_route(endpoint: Endpoint, now: float) -> wire.EndpointRoute:
    """What gateways are told of an endpoint.

    A failed endpoint that has a working version (a crash loop) is told as ``idle`` once its backoff is
    over: the next request wakes it, and another failure makes it ``failed`` again for twice as long.
    """
    spec = endpoint.spec
    shown, reason = endpoint.state, endpoint.reason
    if (
        shown == "failed"
        and endpoint.version is not None
        and endpoint.failing
        and now >= endpoint.failing.until
    ):
        shown = "idle"
    return wire.EndpointRoute(
        endpoint=endpoint.key,
        version=endpoint.version or 0,
        state=shown,
        reason=reason,
        handler=spec.handler,
        timeout_s=spec.timeout,
        retries=spec.retries,
        retry_on=spec.retry_on,
        idempotent=spec.idempotent,
        max_body=spec.max_body,
        queue_requests=spec.queue.max_requests,
        queue_bytes=spec.queue.byte_bound,
        hedge_after_s=spec.hedge_after_s,
        hedge_quantile=spec.hedge_quantile,
        versions=endpoint.versions,
        api=spec.api,
    )


def instance_route(instance: Instance) -> wire.InstanceRoute:
    """What gateways are told of a ready instance."""
    report = instance.report
    assert report is not None
    return wire.InstanceRoute(
        id=instance.id,
        endpoint=instance.endpoint.key,
        version=instance.version,
        host=instance.host.id,
        address=report.address,
        token=report.token,
        concurrency=report.concurrency,
        target=min(report.concurrency, requests_each(instance.endpoint.spec)),
        tier=report.tier,
        timings=report.timings,
        suspect=instance.host.state == "suspect",
    )


class Routes:
    """Keeps all gateways' tables up to date. A gateway gets deltas only after its snapshot."""

    def __init__(self, world: World, epoch: int) -> None:
        self._world = world
        self.epoch = epoch
        self.keys: list[wire.KeyRecord] = []
        self._gateways: dict[Link, bool] = {}
        self._holding = False

    @property
    def gateways(self) -> int:
        """Connected gateways."""
        return len(self._gateways)

    def hold(self) -> None:
        """Give out no snapshot until `release`: hosts have yet to report what they run."""
        self._holding = True

    def release(self) -> None:
        """Give every gateway that waits its snapshot."""
        self._holding = False
        for link, told in list(self._gateways.items()):
            if not told:
                self._snapshot(link)

    def add(self, link: Link) -> None:
        """A gateway connected."""
        self._gateways[link] = False
        if not self._holding:
            self._snapshot(link)

    def remove(self, link: Link) -> None:
        """A gateway's link ended."""
        self._gateways.pop(link, None)

    def doubt(self, id: str) -> None:
        """A gateway had trouble with an instance and uses it no more, until it is told again.

        Was it the end of the instance, its host says so within a moment; otherwise it was only one
        connection (an ASGI app that fails in the middle of its answer breaks it off), and nothing is wrong.
        """
        asyncio.get_running_loop().call_later(DOUBT_S, self._tell_again, id)

    def _tell_again(self, id: str) -> None:
        instance = self._world.instances.get(id)
        # A host that is suspect has all its instances told again when it is back.
        if instance is not None and instance.host.usable and instance.endpoint.routable(instance):
            self.publish(instances=[instance])

    def publish(
        self,
        endpoints: Sequence[Endpoint] = (),
        *,
        instances: Iterable[Instance] = (),
        removed: Iterable[str] = (),
        dead: Mapping[str, str] = NONE,
        removed_endpoints: Iterable[str] = (),
    ) -> None:
        """Push changes to all gateways, at once. ``dead``: id -> why."""
        now = self._world.now()
        routes = []
        for endpoint in endpoints:
            routes.append(endpoint_route(endpoint, now))
            endpoint.told = _told(routes[-1])
        first = wire.RouteDelta(
            epoch=self.epoch,
            endpoints=routes[:CHUNK],
            removed_endpoints=list(removed_endpoints),
            instances=[instance_route(i) for i in instances],
            removed_instances=list(removed),
            dead_instances=list(dead),
            dead_reasons=dict(dead),
        )
        self._send(first)
        for start in range(CHUNK, len(routes), CHUNK):
            self._send(wire.RouteDelta(epoch=self.epoch, endpoints=routes[start : start + CHUNK]))

    def publish_keys(self, keys: list[wire.KeyRecord]) -> None:
        """These are all keys from now on: tell all gateways, at once."""
        self.keys = keys
        self._send(wire.RouteDelta(epoch=self.epoch, keys=keys))

    def ask(self, eager_s: float) -> None:
        """Let gateways report demand now, and for ``eager_s`` as soon as something becomes idle."""
        self._send(wire.AskDemand(eager_s=eager_s))

    async def left(self) -> bool:
        """Whether all gateways have taken in what they were told so far, and said what runs."""
        links = [link for link, told in self._gateways.items() if told]
        answers = await asyncio.gather(
            *(link.call(wire.AskDemand(), FRESH_S) for link in links), return_exceptions=True
        )
        pairs = zip(links, answers, strict=True)
        return not any(isinstance(answer, BaseException) and link.is_open for link, answer in pairs)

    async def fresh(self) -> None:
        """Return when all gateways have reported what has happened so far (late ones are left out)."""
        links = [link for link, told in self._gateways.items() if told]
        await asyncio.gather(
            *(link.call(wire.AskDemand(), FRESH_S) for link in links), return_exceptions=True
        )

    def derive(self, endpoint: Endpoint) -> None:
        """Bring the endpoint's state in step with the facts, without telling anybody."""
        new = state.endpoint_state(endpoint.facts())
        if new != endpoint.state:
            state.check(state.ENDPOINT, endpoint.state, new)
            endpoint.state = new

    def refresh(self, endpoint: Endpoint) -> bool:
        """Derive the endpoint's state anew; when that changes its route, push it. Gives whether it did."""
        self.derive(endpoint)
        if endpoint.deleting or _told(endpoint_route(endpoint, self._world.now())) == endpoint.told:
            return False
        self.publish([endpoint])
        return True

    def _snapshot(self, link: Link) -> None:
        now = self._world.now()
        # Endpoints that are being deleted are gone for gateways.
        endpoints = [endpoint_route(e, now) for e in self._world.endpoints.values() if not e.deleting]
        instances = [instance_route(i) for i in self._world.instances.values() if i.endpoint.routable(i)]
        snapshot = wire.Snapshot(epoch=self.epoch, endpoints=endpoints, instances=instances, keys=self.keys)
        self._gateways[link] = True
        self._send_to(link, snapshot)

    def _send(self, message: wire.RouteDelta | wire.AskDemand) -> None:
        for link, told in list(self._gateways.items()):
            if told:
                self._send_to(link, message)

    def _send_to(self, link: Link, message: wire.AnyMessage) -> None:
        try:
            link.send(message)
        except LinkClosed:
            # It connects again by itself and gets a new snapshot then.
            log.info("gateway %s is gone", link.peer_id)


def _told(route: wire.EndpointRoute) -> tuple[object, ...]:
    return route.version, route.state, route.reason, route.versions
