"""Jobs in the store are demand, and gateways that see the same ones do not add up."""

from __future__ import annotations

from headrace import wire
from headrace.sdk.spec import Scaling


async def test_stored_jobs_wake_once_and_count_as_the_largest_report(platform):
    host = await platform.new_host()
    one = platform.gateway
    two = await platform.new_gateway("g2")
    await one.deploy(platform.spec(concurrency=2, scaling=Scaling(max=1)), verify=False)
    for gateway in (one, two):
        gateway.link.send(wire.Wake(endpoint="default/hello", queued=0, stored=7))
    endpoint = platform.world.endpoints["default/hello"]
    await platform.until(lambda: len(endpoint.demand) == 2)
    assert endpoint.seen(platform.world.now())[1] == 7
    one.demand("hello", queued=2, stored=5)
    two.demand("hello", queued=1, stored=6)
    await platform.until(lambda: endpoint.seen(platform.world.now())[1] == 2 + 1 + 6)
    await platform.until(lambda: one.of("hello"))
    assert len(host.started) == 1
    for gateway in (one, two):
        gateway.demand("hello")
    await platform.until(lambda: not endpoint.demand)
