"""One gives way to another: its host hears when gateways have left it, and only if nothing runs there."""

from __future__ import annotations

from headrace import wire
from headrace.sdk.spec import Gpu

from tests.integration.control.conftest import FakeHost, Platform, until


async def one_gives_way(platform: Platform, *, busy: bool) -> tuple[FakeHost, str]:
    """Two endpoints and one accelerator: the first one's instance stops for the second, slowly."""
    host = await platform.new_host(gpu={"X1": 1})
    host.hold_stops = True
    for name in ("one", "two"):
        await platform.gateway.deploy(platform.spec(name, gpu=(Gpu(name="X1"),)), verify=False)
    platform.gateway.wake("one")
    await until(lambda: platform.gateway.of("one"))
    first = platform.gateway.of("one")[0].id
    platform.gateway.demand("one")
    if busy:
        # The request slips in before the gateway hears that it is to leave.
        platform.gateway.late[first] = wire.EndpointDemand(
            endpoint="default/one", in_flight=1, instances={first: 1}
        )
    platform.gateway.wake("two")
    await until(lambda: ("stop", first) in host.log)
    return host, first


async def test_its_host_hears_that_gateways_have_left(platform: Platform) -> None:
    host, first = await one_gives_way(platform, busy=False)
    await until(lambda: ("left", first) in host.log)
    assert host.log.index(("stop", first)) < host.log.index(("left", first))


async def test_a_request_that_slipped_in_is_waited_for(platform: Platform) -> None:
    host, first = await one_gives_way(platform, busy=True)
    await until(lambda: platform.world.instances[first].in_flight)
    # Whatever control sends is in order: after the next stop, nothing is to come of the first.
    second = [start.id for start in host.started][-1]
    await platform.gateway.api("POST", "/endpoints/two/scale", b'{"to": 0}')
    await until(lambda: ("stop", second) in host.log)
    assert ("left", first) not in host.log
