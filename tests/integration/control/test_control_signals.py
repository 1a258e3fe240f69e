"""What the autoscaler is shown of an endpoint's past, from gateways' and hosts' words."""

from __future__ import annotations

from typing import Any

from headrace.control import observe
from headrace.sdk.spec import Gpu, Scaling
from headrace_autoscaler.spec import EndpointObservation


def shown(platform: Any, name: str = "hello") -> EndpointObservation:
    world = platform.world
    endpoint = world.endpoints[f"default/{name}"]
    return observe.observe(world, endpoint, observe.main_lane(endpoint, world.now())).endpoints[0]


async def test_arrivals_and_starts_are_unknown_until_somebody_tells_of_them(platform: Any) -> None:
    await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    seen = shown(platform)
    assert (seen.arrived, seen.demand_s, seen.start_s) == (None, None, None)
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.of("hello"))
    seen = shown(platform)
    assert seen.start_s is not None
    assert seen.start_s > 0
    assert seen.arrived is None, "this gateway has not counted yet"
    platform.gateway.demand("hello", in_flight=1, arrived=7, demand_s=2.5)
    await platform.until(lambda: shown(platform).arrived == 7)
    assert shown(platform).demand_s == 2.5
    (instance,) = shown(platform).instances
    assert instance.ready_at is not None


async def test_a_gateway_that_goes_while_it_is_busy_leaves_what_came_unknown(platform: Any) -> None:
    await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    other = await platform.new_gateway("g2")
    other.demand("hello", in_flight=1, arrived=3, demand_s=1.0)
    platform.gateway.demand("hello", in_flight=1, arrived=4, demand_s=1.0)
    await platform.until(lambda: shown(platform).arrived == 7)
    await other.close()
    await platform.until(lambda: shown(platform).arrived is None)
    await other.connect()
    other.demand("hello", in_flight=1, arrived=5, demand_s=2.0)
    await platform.until(lambda: shown(platform).arrived == 9)


async def test_service_times_reach_one_look_each(platform: Any, monkeypatch: Any) -> None:
    await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    given: list[float] = []
    original = observe.main_lane

    def main_lane(*arguments: Any, **options: Any) -> Any:
        given.extend(options.get("served", ()))
        return original(*arguments, **options)

    monkeypatch.setattr(observe, "main_lane", main_lane)
    platform.gateway.demand("hello", in_flight=1, finished=2, arrived=2, demand_s=1.0, served=(0.25, 0.5))
    platform.gateway.demand("hello", in_flight=1, finished=1, arrived=3, demand_s=2.0, served=(1 / 3,))
    await platform.until(lambda: len(given) == 3)
    assert given == [0.25, 0.5, 1 / 3]


async def test_an_instance_costs_its_part_of_its_host(platform: Any) -> None:
    host = await platform.new_host(gpu={"L4": 4}, price=8.0, spot=True)
    options = {"gpu": (Gpu(name="L4"),), "scaling": Scaling(idle_timeout=0.5)}
    await platform.gateway.deploy(platform.spec(**options), verify=False)
    assert platform.world.spending == 0.0
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.of("hello"))
    (instance,) = shown(platform).instances
    assert (instance.price, instance.spot) == (2.0, True)
    assert platform.world.spending == 2.0
    platform.gateway.demand("hello", finished=1)
    await platform.until(lambda: host.stopped)
    await platform.until(lambda: platform.world.spending == 0.0)


async def test_a_host_without_a_price_costs_an_unknown_amount(platform: Any) -> None:
    await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.of("hello"))
    assert shown(platform).instances[0].price is None
    assert platform.world.spending is None


async def test_a_host_is_shown_anew_when_anything_about_it_has_changed(platform: Any) -> None:
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(cpu=1.0), verify=False)
    seen = platform.world.hosts[host.id]
    base = next(iter(seen.warm))

    def look() -> Any:
        return observe.host_seen(seen, "default/hello", base, platform.world.now())

    first = look()
    assert (first.cpu_free, first.warm) == (4.0, ("default/hello",))
    assert seen.shown is not None
    assert not seen.shown[2].warm, "what is warm is the lane's own"
    platform.gateway.wake("hello")
    await platform.until(lambda: look().cpu_free == 3.0)
    host.silence()
    await platform.until(lambda: look() is None or look().state == "suspect")
