"""What control hears of use, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace import wire
from headrace.gateway import server


@pytest.fixture
def no_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is reported for a reason is reported."""
    monkeypatch.setattr(server, "REPORT_PERIOD_S", 3600.0)


async def serve(rig: Any, *names: str) -> None:
    await rig.up()
    for name in names:
        rig.endpoint(name)
        await rig.instance(name=name)
    await rig.known(lambda table: len(table.instances) == len(names))


def items(rig: Any) -> dict[str, wire.EndpointDemand]:
    """The newest word on each endpoint."""
    return {i.endpoint.removeprefix("default/"): i for d in rig.control.of(wire.Demand) for i in d.items}


async def test_instances_used_between_two_reports_are_named(rig: Any) -> None:
    await serve(rig, "echo")
    assert (await rig.call()).status == 200
    await rig.until(lambda: items(rig))
    assert (items(rig)["echo"].finished, items(rig)["echo"].instances) == (1, {"i0": 0})
    await rig.until(lambda: not items(rig)["echo"].instances)
    count = len(rig.control.of(wire.Demand))
    await asyncio.sleep(2.5 * server.REPORT_PERIOD_S)
    assert len(rig.control.of(wire.Demand)) == count, "a quiet endpoint says nothing"


async def test_control_knows_what_idles_before_it_hears_of_a_wake(rig: Any, no_period: None) -> None:
    await serve(rig, "one", "two")
    for name in ("one", "two"):
        assert (await rig.call(f"/e/{name}")).status == 200
    assert not rig.control.of(wire.Demand)
    rig.endpoint("cold")
    await rig.known(lambda table: "default/cold" in table.endpoints)
    waiting = asyncio.create_task(rig.call("/e/cold"))
    await rig.until(lambda: rig.control.of(wire.Wake))
    kinds = [m for m in rig.control.heard if isinstance(m, wire.Demand | wire.Wake)]
    assert isinstance(kinds[0], wire.Demand)
    assert isinstance(kinds[1], wire.Wake)
    assert {i.endpoint: i.instances for i in kinds[0].items} == {
        "default/one": {"i0": 0},
        "default/two": {"i1": 0},
    }
    await rig.instance(name="cold")
    assert (await waiting).status == 200


async def test_a_report_that_is_asked_for_comes_before_the_answer(rig: Any, no_period: None) -> None:
    await serve(rig, "echo")
    assert (await rig.call()).status == 200
    answer = await rig.control.links[0].call(wire.AskDemand(), 5.0)
    assert answer == wire.Demand(items=[])
    assert items(rig)["echo"].instances == {"i0": 0}
    # It was asked for once: what comes later is not urgent.
    assert (await rig.call()).status == 200
    count = len(rig.control.of(wire.Demand))
    await asyncio.sleep(0.1)
    assert len(rig.control.of(wire.Demand)) == count


async def test_while_room_is_short_idle_instances_are_reported_at_once_and_together(
    rig: Any, no_period: None
) -> None:
    await serve(rig, "echo")
    rig.control.send(wire.AskDemand(eager_s=60.0))
    before = len(rig.control.of(wire.Demand))
    client = await rig.connect()
    calls = 200
    began = asyncio.get_running_loop().time()
    for _ in range(calls):
        await client.send(rig.request())
        assert (await client.read()).status == 200
    took = asyncio.get_running_loop().time() - began
    await rig.until(lambda: len(rig.control.of(wire.Demand)) > before)
    await rig.until(lambda: sum(i.finished for d in rig.control.of(wire.Demand) for i in d.items) == calls)
    # However many requests end, there is one report in 5 ms at most.
    assert len(rig.control.of(wire.Demand)) - before <= took / 0.005 + 2
