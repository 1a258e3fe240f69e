"""From zero to an instance, and back."""

from __future__ import annotations

from headrace import wire
from headrace.sdk.spec import Gpu, Scaling


async def test_a_gateway_gets_keys_and_routes_in_its_snapshot(platform):
    await platform.gateway.deploy(platform.spec(), verify=False)
    other = await platform.new_gateway("g2")
    assert other.state("hello") == "idle"
    assert [k.id for k in other.keys] == ["admin"]
    assert other.endpoints["default/hello"].versions == (1,)


async def test_a_wake_claims_at_once_and_the_instance_is_routed(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(concurrency=4), verify=False)
    gateway.wake("hello", queued=200)
    await platform.until(lambda: len(gateway.of("hello")) == 4)
    assert platform.world.wakes == 1
    assert all(s.claim_s < 0.1 for s in host.started)
    assert gateway.state("hello") == "ready"
    route = gateway.of("hello")[0]
    assert (route.token, route.concurrency) == (f"token-{route.id}", 4)
    _, doc = await gateway.api("GET", "/endpoints/hello")
    assert (doc["wakes"], doc["instances"][0]["state"], doc["state"]) == (1, "ready", "ready")
    assert any("200 queued" in note["reason"] for note in doc["decisions"])


async def test_claims_in_flight_count_as_capacity(platform):
    host = await platform.new_host()
    host.script = lambda start: "hang"
    await platform.gateway.deploy(platform.spec(), verify=False)
    for _ in range(5):
        platform.gateway.wake("hello")
    await platform.until(lambda: platform.world.wakes == 5)
    assert len(host.started) == 1


async def test_an_idle_endpoint_goes_to_zero_and_gateways_hear_of_it_before_the_host(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(scaling=Scaling(idle_timeout=0.3)), verify=False)
    seen_at_stop: list[bool] = []
    handle = host.handle

    def watch(link, message):
        if isinstance(message, wire.StopInstance):
            seen_at_stop.append(message.id in gateway.removed)
        return handle(link, message)

    host.link._handler = watch
    gateway.wake("hello")
    await platform.until(lambda: gateway.of("hello"))
    gateway.demand("hello", finished=1)
    await platform.until(lambda: gateway.state("hello") == "idle")
    assert host.stopped
    assert not gateway.of("hello")
    await platform.until(lambda: not platform.world.instances and not platform.world.active)


async def test_a_busy_instance_stays_and_demand_of_a_gone_gateway_does_not_count(platform):
    host = await platform.new_host()
    gateway = await platform.new_gateway("g2")
    await gateway.deploy(platform.spec(scaling=Scaling(idle_timeout=0.2)), verify=False)
    gateway.wake("hello")
    route = (await platform.until(lambda: gateway.of("hello")))[0]
    gateway.demand("hello", in_flight=1, instances={route.id: 1})
    endpoint = platform.world.endpoints["default/hello"]
    await platform.until(lambda: endpoint.seen(platform.world.now())[0] == 1)
    gateway.demand("hello", in_flight=1, instances={route.id: 1})
    assert not host.stopped
    await gateway.close()
    await platform.until(lambda: host.stopped)


async def test_min_is_filled_when_a_host_joins_and_kept(platform):
    await platform.gateway.deploy(
        platform.spec(scaling=Scaling(min=2, max=3, idle_timeout=0.1)), verify=False
    )
    host = await platform.new_host()
    await platform.until(lambda: len(platform.gateway.of("hello")) == 2)
    host.end(next(iter(host.instances)), wire.Death(reason="host-lost"))
    await platform.until(lambda: len(host.started) == 3 and len(platform.gateway.of("hello")) == 2)


async def test_without_room_the_route_says_why_and_the_instance_comes_with_the_host(platform):
    gateway = platform.gateway
    await gateway.deploy(platform.spec(gpu=(Gpu(name="H100"),)), verify=False)
    await platform.new_host()
    gateway.wake("hello")
    await platform.until(lambda: "no host has gpu H100" in gateway.endpoints["default/hello"].reason)
    host = await platform.new_host("n2", gpu={"H100": 1})
    gateway.wake("hello")
    await platform.until(lambda: gateway.of("hello"))
    assert host.started[0].spec.gpu == (("H100", 1),)


async def test_an_idle_instance_of_another_endpoint_gives_way(platform):
    host = await platform.new_host(cpu=1.0)
    gateway = platform.gateway
    await gateway.deploy(platform.spec("one", cpu=1.0), platform.spec("two", cpu=1.0), verify=False)
    gateway.wake("one")
    route = (await platform.until(lambda: gateway.of("one")))[0]
    gateway.demand("one", in_flight=1, instances={route.id: 1})
    gateway.demand("one", finished=1)
    gateway.wake("two")
    await platform.until(lambda: gateway.of("two"))
    assert [kind for kind, _ in host.log if kind != "warm"] == ["start", "stop", "start"]
    _, doc = await gateway.api("GET", "/endpoints/one")
    assert any("gives way to default/two" in note["reason"] for note in doc["decisions"])


async def test_a_named_version_is_started_beside_the_current_one(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    await gateway.deploy(platform.spec(env={"A": "2"}), verify=False)
    gateway.wake("hello", version=1)
    await platform.until(lambda: gateway.of("hello"))
    assert [s.spec.version for s in host.started] == [1]
    gateway.wake("hello")
    await platform.until(lambda: {i.version for i in gateway.of("hello")} == {1, 2})


async def test_scale_overrides_survive_and_to_acts_now(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    status, doc = await gateway.api("POST", "/endpoints/hello/scale", {"to": 3})
    assert status == 200
    await platform.until(lambda: len(gateway.of("hello")) == 3)
    await gateway.api("POST", "/endpoints/hello/scale", {"to": 0})
    await platform.until(lambda: not gateway.of("hello") and len(host.stopped) == 3)
    status, doc = await gateway.api("POST", "/endpoints/hello/scale", {"min": 1, "max": 2})
    assert doc["scale"] == {"min": 1, "max": 2}
    await platform.until(lambda: len(gateway.of("hello")) == 1)
    for bad in ({}, {"max": 0}, {"min": "x"}, {"to": 9}, {"other": 1}, {"to": None}, {"min": -1}):
        status, doc = await gateway.api("POST", "/endpoints/hello/scale", bad)
        assert (status, doc["type"]) == (422, "urn:headrace:validation-failed"), bad


async def test_an_instance_that_outlives_a_gateways_trouble_is_told_again(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello")
    (route,) = await platform.until(lambda: gateway.of("hello"))
    told = len(gateway.deltas)
    gateway.link.send(wire.InstanceTrouble(instance=route.id, what="reset", detail="x"))
    await platform.until(lambda: any(i.id == route.id for d in gateway.deltas[told:] for i in d.instances))
    # One that has ended is not.
    gateway.link.send(wire.InstanceTrouble(instance=route.id, what="reset", detail="x"))
    host.end(route.id, wire.Death(reason="exited"))
    await platform.until(lambda: route.id in gateway.dead)
    told = len(gateway.deltas)
    platform.control.parts.routes._tell_again(route.id)
    assert not [i for d in gateway.deltas[told:] for i in d.instances if i.id == route.id]
