"""Clients of a gateway that has just started, while control has not told it any keys."""

from __future__ import annotations

import asyncio

from headrace.gateway import early

CONTROL_AWAY = "urn:headrace:control-away"


async def up(rig):
    rig.control.snapshots = False
    rig.endpoint()
    await rig.up()


async def test_requests_wait_for_the_keys_and_probes_do_not(rig):
    await up(rig)
    await rig.instance()
    client, late = await rig.connect(), await rig.connect()
    await client.send(rig.request())
    await late.send(rig.request()[:20])
    await rig.until(lambda: len(rig.gateway._early) == 2)
    assert (await rig.call("/healthz", method="GET")).status == 200
    assert (await rig.call("/readyz", method="GET")).status == 503
    rig.control.send(rig.control.snapshot())
    assert (await client.read()).status == 200
    await late.send(rig.request()[20:])
    assert (await late.read()).status == 200
    await client.send(rig.request())
    assert (await client.read()).status == 200
    assert not len(rig.gateway._early)


async def test_they_wait_for_a_bounded_time_and_in_bounded_number(rig, monkeypatch):
    monkeypatch.setattr(early, "KEYS_WAIT_S", 0.3)
    monkeypatch.setattr(early, "MAX_WAITING", 1)
    await up(rig)
    waits = await rig.connect()
    await waits.send(rig.request())
    await rig.until(lambda: len(rig.gateway._early))
    at_once = await rig.call()
    assert len(rig.gateway._early) == 1, "it was to be answered while the first one waits"
    for answer in (at_once, await waits.read()):
        assert (answer.status, answer.json()["type"]) == (503, CONTROL_AWAY)
        assert answer.get("retry-after") == "1"
    await waits.send(rig.request())
    assert (await waits.read()).status == 503


async def test_who_hangs_up_or_is_there_when_the_gateway_stops_leaves_nothing(rig):
    await up(rig)
    gone, waits = await rig.connect(), await rig.connect()
    await rig.until(lambda: len(rig.gateway._early) == 2)
    gone.close()
    await rig.until(lambda: len(rig.gateway._early) == 1)
    await waits.send(rig.request())
    await asyncio.sleep(0.05)
    await rig.gateway.stop(5.0)
    assert (await waits.read()).status == 503
    assert not len(rig.gateway._early)
