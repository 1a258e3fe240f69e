"""Full hosts: what idles gives way at once to what waits, and control knows what idles."""

from __future__ import annotations

import pytest
from headrace import wire
from headrace.control.model import BEAT_COUNTS_AFTER_S
from headrace.sdk.spec import Scaling

LONG = Scaling(idle_timeout=600.0, max=4)


def demand(name: str, **members: object) -> wire.EndpointDemand:
    return wire.EndpointDemand(endpoint=f"default/{name}", **members)


@pytest.fixture
async def full(platform):
    """A host with room for one, three endpoints, and the first one's instance on it."""
    host = await platform.new_host(cpu=1.0)
    specs = [platform.spec(name, cpu=1.0, scaling=LONG) for name in ("one", "two", "three")]
    await platform.gateway.deploy(*specs, verify=False)
    platform.gateway.wake("one")
    platform.first = (await platform.until(lambda: platform.gateway.of("one")))[0]
    platform.host = host
    return platform


async def test_an_instance_that_nobody_came_to_use_does_not_block_a_full_host(full):
    # Its client hung up, or a restart was asked for by a queue that is served by now: it is never used.
    full.gateway.demand("one")
    full.gateway.wake("two")
    await full.until(lambda: full.gateway.of("two"))


async def test_an_instance_whose_request_is_on_its_way_is_kept(full):
    # The queue of the wake still counts: nobody has said that it was served.
    full.gateway.wake("two")
    await full.until(lambda: "no host has room" in full.gateway.endpoints["default/two"].reason)
    endpoint = full.world.endpoints["default/one"]
    later = full.world.now() + 2.0
    await full.until(lambda: full.world.now() > later)
    assert endpoint.instances
    full.gateway.demand("one", finished=1, instances={full.first.id: 0})
    await full.until(lambda: full.gateway.of("two"))


async def test_a_wake_without_room_asks_gateways_and_goes_on_with_what_they_say(full):
    other = await full.new_gateway("g2")
    other.news = [demand("one", finished=1, instances={full.first.id: 0})]
    full.gateway.demand("one")
    full.gateway.wake("two")
    await full.until(lambda: full.gateway.of("two"))
    assert other.asked[0].eager_s > 0
    assert full.gateway.asked
    assert [kind for kind, _ in full.host.log if kind != "warm"] == ["start", "stop", "start"]


async def test_who_waited_first_gets_room_first(full):
    full.gateway.wake("two")
    await full.until(lambda: "no host has room" in full.gateway.endpoints["default/two"].reason)
    # Room and another wake come in one go: the later one must not overtake.
    full.gateway.demand("one", finished=1, instances={full.first.id: 0})
    full.gateway.wake("three")
    await full.until(lambda: len(full.host.started) == 2)
    assert [s.spec.endpoint for s in full.host.started] == ["default/one", "default/two"]
    served = full.host.started[1].id
    await full.until(lambda: full.gateway.of("two"))
    full.gateway.demand("two", finished=1, instances={served: 0})
    await full.until(lambda: full.gateway.of("three"))


async def test_use_is_known_by_instance(platform):
    await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello", queued=2)
    used, unused = await platform.until(lambda: gateway.of("hello")[1:] and gateway.of("hello"))
    gateway.demand("hello", finished=1, instances={used.id: 0})
    await platform.until(lambda: platform.world.instances[used.id].last_used is not None)
    assert platform.world.instances[unused.id].last_used is None


async def test_what_a_gateway_says_outweighs_a_hosts_old_sample(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello")
    route = (await platform.until(lambda: gateway.of("hello")))[0]
    instance = platform.world.instances[route.id]
    host.in_flight = {route.id: 1}
    await platform.until(lambda: instance.in_flight == 1)
    gateway.demand("hello", finished=1, instances={route.id: 0})
    await platform.until(lambda: instance.in_flight == 0)
    beats = host.link._seq
    await platform.until(lambda: host.link._seq > beats + 2)
    assert instance.in_flight == 0
    # Later the sample is newer: a gateway that control cannot hear may have sent that request.
    instance.told -= BEAT_COUNTS_AFTER_S
    await platform.until(lambda: instance.in_flight == 1)


async def test_scale_to_zero_straight_after_an_answer_leaves_nothing(platform):
    host = await platform.new_host()
    gateway, other = platform.gateway, await platform.new_gateway("g2")
    await gateway.deploy(platform.spec(scaling=LONG), verify=False)
    gateway.wake("hello")
    route = (await platform.until(lambda: gateway.of("hello")))[0]
    gateway.demand("hello", in_flight=1, instances={route.id: 1})
    # It is answered; the command comes over another gateway before that is reported.
    gateway.news = [demand("hello", finished=1, instances={route.id: 0})]
    status, _ = await other.api("POST", "/endpoints/hello/scale", {"to": 0})
    assert status == 200
    assert [s.id for s in host.stopped] == [route.id]
    await platform.until(lambda: not platform.world.active)
    assert len(host.started) == 1, "the queue of the wake was served: nothing starts again"


async def test_scale_to_zero_takes_busy_instances_when_they_become_idle_and_no_new_ones(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(scaling=LONG), verify=False)
    gateway.wake("hello", queued=2)
    busy, idle = await platform.until(lambda: gateway.of("hello")[1:] and gateway.of("hello"))
    gateway.demand("hello", in_flight=1, finished=1, instances={busy.id: 1, idle.id: 0})
    await gateway.api("POST", "/endpoints/hello/scale", {"to": 0})
    assert [s.id for s in host.stopped] == [idle.id]
    gateway.demand("hello", finished=1, instances={busy.id: 0})
    await platform.until(lambda: len(host.stopped) == 2)
    assert platform.world.endpoints["default/hello"].shrink is None
    gateway.wake("hello")
    fresh = (await platform.until(lambda: gateway.of("hello")))[0]
    gateway.demand("hello", finished=1, instances={fresh.id: 0})
    await platform.until(lambda: platform.world.instances[fresh.id].last_used is not None)
    # A decision after that does not take along what came later.
    await gateway.api("POST", "/endpoints/hello/scale", {"max": 3})
    assert fresh.id in platform.world.instances
    assert len(host.stopped) == 2


async def test_scale_to_stops_at_min(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(scaling=Scaling(min=1, max=3, idle_timeout=600.0)), verify=False)
    await platform.until(lambda: gateway.of("hello"))
    await gateway.api("POST", "/endpoints/hello/scale", {"to": 3})
    await platform.until(lambda: len(gateway.of("hello")) == 3)
    await gateway.api("POST", "/endpoints/hello/scale", {"to": 0})
    await platform.until(lambda: len(gateway.of("hello")) == 1)
    assert len(host.stopped) == 2


async def test_gateways_are_told_why_an_instance_died(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello")
    route = (await platform.until(lambda: gateway.of("hello")))[0]
    host.end(route.id, wire.Death(reason="oom", detail="OOM-killed at 512 MiB"))
    await platform.until(lambda: route.id in gateway.dead)
    assert gateway.reasons[route.id] == "oom: OOM-killed at 512 MiB"
    gateway.wake("hello")
    route = (await platform.until(lambda: gateway.of("hello")))[0]
    host.cut()
    await platform.until(lambda: route.id in gateway.dead)
    assert gateway.reasons[route.id].startswith("host-lost: ")


async def test_one_gives_way_for_one_although_what_gave_way_before_has_not_ended_yet(platform):
    host = await platform.new_host(cpu=3.0)
    gateway = platform.gateway
    names = ("one", "two", "three")
    specs = [platform.spec(name, cpu=1.0, scaling=LONG) for name in (*names, "four", "five")]
    await gateway.deploy(*specs, verify=False)
    for name in names:
        gateway.wake(name)
        route = (await platform.until(lambda name=name: gateway.of(name)))[0]
        gateway.demand(name, finished=1, instances={route.id: 0})
    host.hold_stops = True
    for name in ("four", "five"):
        gateway.wake(name)
        await platform.until(lambda name=name: gateway.of(name))
    assert len(host.stopped) == 2
    assert gateway.of("three"), "the one that was used last stays"
