"""What control hears of arrivals and service times, and that surplus instances stay idle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace import wire


def newest(rig: Any, name: str = "echo") -> wire.EndpointDemand | None:
    found = [i for d in rig.control.of(wire.Demand) for i in d.items if i.endpoint == f"default/{name}"]
    return found[-1] if found else None


async def test_control_hears_what_came_and_how_long_it_took(rig: Any) -> None:
    rig.endpoint()
    await rig.up()
    await rig.instance()
    await rig.known(lambda t: t.instances)
    for _ in range(3):
        assert (await rig.call()).status == 200
    await rig.until(lambda: (said := newest(rig)) and said.arrived == 3 and not said.in_flight)
    said = [i for d in rig.control.of(wire.Demand) for i in d.items]
    served = [seconds for item in said for seconds in item.served]
    assert len(served) == sum(item.finished for item in said) == 3
    assert 0 < sum(served) <= said[-1].demand_s, "a request's time has its wait in it, too"


@pytest.mark.parametrize(("epoch", "expected"), [(1, 3), (2, 1)])
async def test_counters_go_on_over_links_and_begin_anew_with_a_leader(
    rig: Any, epoch: int, expected: int
) -> None:
    rig.endpoint()
    await rig.up()
    await rig.instance()
    await rig.known(lambda t: t.instances)
    for _ in range(2):
        assert (await rig.call()).status == 200
    await rig.until(lambda: (said := newest(rig)) and said.arrived == 2)
    await rig.control.stop()
    rig.control.heard.clear()
    rig.control.epoch = epoch
    await rig.control.start()
    await rig.until(lambda: rig.control.links)
    assert (await rig.call()).status == 200
    await rig.until(lambda: (said := newest(rig)) and said.finished)
    assert newest(rig).arrived == expected


@pytest.mark.parametrize("count", [3, 8])
async def test_one_request_after_the_other_goes_to_the_instance_used_last(rig: Any, count: int) -> None:
    rig.endpoint()
    await rig.up()
    made = [await rig.instance() for _ in range(count)]
    await rig.known(lambda t: len(t.instances) == count)
    # All of them have been used.
    await asyncio.gather(*(rig.call() for _ in range(4 * count)))
    before = [len(one.requests) for one in made]
    for _ in range(12):
        assert (await rig.call()).status == 200
    after = [len(one.requests) - was for one, was in zip(made, before, strict=True)]
    assert sorted(after)[-1] >= 10, after
    await rig.quiet()
