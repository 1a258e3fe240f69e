from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys

import headrace.gateway.control_link as module
import pytest
from headrace import wire
from headrace.config import Settings
from headrace.errors import PortInUse
from headrace.gateway import dispatch
from headrace.gateway.server import Gateway

from tests.integration.gateway.conftest import TOKEN


async def up(rig, **settings):
    rig.endpoint()
    await rig.up(**settings)
    instance = await rig.instance()
    await rig.known(lambda t: t.instances)
    return instance


async def test_losing_control_changes_nothing_for_what_is_routable(rig):
    await up(rig)
    rig.endpoint("cold", state="idle")
    await rig.known(lambda t: "default/cold" in t.endpoints)
    await rig.control.stop()
    await rig.until(lambda: not rig.gateway._control.is_up)
    assert {(await rig.call()).status for _ in range(5)} == {200}
    waiting = asyncio.create_task(rig.call("/e/cold"))
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 1))
    # The next leader: it hears again who waits, and what ran here.
    rig.control.heard.clear()
    rig.control.epoch = 2
    await rig.control.start()
    await rig.until(lambda: rig.control.of(wire.Wake) and rig.control.of(wire.Demand))
    assert rig.control.of(wire.Wake)[0] == wire.Wake(endpoint="default/cold", queued=1)
    await rig.instance(name="cold")
    assert (await waiting).status == 200


async def test_without_control_an_instance_in_trouble_is_tried_again(rig, monkeypatch):
    monkeypatch.setattr(dispatch, "TROUBLE_HOLD_S", 0.1)
    instance = await up(rig)
    await rig.control.stop()
    await rig.until(lambda: not rig.gateway._control.is_up)
    await instance.stop()
    task = asyncio.create_task(rig.call())
    await rig.until(lambda: rig.gateway.dispatcher.in_use() == (0, 1))
    await instance.start()
    assert (await task).status == 200


async def test_a_new_leader_that_has_not_heard_of_an_instance_yet_does_not_lose_it(rig):
    await up(rig)
    await rig.control.stop()
    rig.control.instances.clear()
    rig.control.epoch = 2
    await rig.control.start()
    await rig.known(lambda t: t.epoch == 2)
    assert (await rig.call()).status == 200
    # The same leader's word is final.
    rig.control.send(rig.control.snapshot())
    await rig.known(lambda t: not t.instances)


async def test_an_old_leader_is_not_listened_to(rig):
    await up(rig)
    rig.control.send(wire.RouteDelta(epoch=5))
    await rig.known(lambda t: t.epoch == 5)
    rig.control.send(wire.RouteDelta(epoch=4, removed_endpoints=["default/echo"]))
    rig.control.send(
        wire.RouteDelta(
            epoch=5, endpoints=[wire.EndpointRoute(endpoint="default/mark", version=1, state="idle")]
        )
    )
    await rig.known(lambda t: "default/mark" in t.endpoints)
    assert (await rig.call()).status == 200


async def test_demand_counts_what_happened_and_ends_with_zeros(rig):
    await up(rig)
    for _ in range(7):
        assert (await rig.call()).status == 200

    def items():
        return [d for m in rig.control.of(wire.Demand) for d in m.items]

    await rig.until(lambda: sum(d.finished for d in items()) == 7)
    await rig.until(lambda: items()[-1].finished == 0)
    last = items()[-1]
    assert (last.in_flight, last.queued, last.instances) == (0, 0, {})
    assert all(d.service_s > 0 for d in items() if d.finished)
    count = len(items())
    await asyncio.sleep(1.2)
    assert len(items()) == count, "quiet endpoints are not told of"


async def test_demand_names_what_runs_where(rig):
    release = asyncio.Event()

    async def behaviour(exchange):
        await release.wait()
        await exchange.answer()

    rig.endpoint()
    await rig.up()
    await rig.instance(behaviour)
    await rig.known(lambda t: t.instances)
    tasks = [asyncio.create_task(rig.call()) for _ in range(3)]
    await rig.until(
        lambda: any(
            d.in_flight == 1 and d.queued == 2 and d.instances == {"i0": 1} and d.oldest_wait_s > 0
            for m in rig.control.of(wire.Demand)
            for d in m.items
        )
    )
    assert rig.control.of(wire.Wake) == [], "there is capacity: demand says the rest"
    release.set()
    assert {a.status for a in await asyncio.gather(*tasks)} == {200}


async def test_management_is_passed_to_control(rig):
    async def on_call(call):
        if call.path == "/missing":
            return wire.Error(slug="not-found", detail="no such thing")
        if call.path == "/openapi.json":
            return wire.ApiReply(status=200, body=b'{"paths": {}}')
        return wire.ApiReply(
            status=202,
            body=json.dumps({"path": call.path, "query": call.query, "n": len(call.body)}).encode(),
        )

    rig.control.on_call = on_call
    await up(rig)
    answer = await rig.call("/api/v1/endpoints/a%20b/scale?to=0&x=1", b'{"to": 0}')
    assert (answer.status, answer.json()) == (
        202,
        {"path": "/endpoints/a b/scale", "query": {"to": "0", "x": "1"}, "n": 9},
    )
    call = rig.control.of(wire.ApiCall)[0]
    assert (call.method, call.key_id, call.project, call.scopes) == ("POST", "k", "default", ("admin",))
    assert (await rig.call("/api/v1/missing", method="GET")).status == 404
    assert (await rig.call("/api/v1/status", method="GET", key=None)).status == 401
    assert "/e/{endpoint}" in (await rig.call("/api/openapi.json", method="GET")).json()["paths"]
    text = rig.request("/api/v1/deployments").replace(b"application/json", b"text/plain")
    client = await rig.connect()
    await client.send(text)
    assert (await client.read()).status == 415
    big = b"x" * (64 << 20)
    assert (await rig.call("/api/v1/bundles/abc", big, method="PUT")).json()["n"] == len(big)
    client = await rig.connect()
    await client.send(
        rig.request("/api/v1/deployments", b"").replace(b"Content-Length: 0", b"Content-Length: 40000000")
    )
    assert (await client.read()).status == 413


async def test_management_waits_for_control_and_says_when_it_is_away(rig, monkeypatch):
    async def on_call(call):
        return wire.ApiReply(status=200, body=b"{}")

    await up(rig)
    await rig.control.stop()
    await rig.until(lambda: not rig.gateway._control.is_up)
    monkeypatch.setattr(module, "WAIT_FOR_LINK_S", 0.1)
    answer = await rig.call("/api/v1/status", method="GET")
    assert (answer.status, answer.json()["type"]) == (503, "urn:headrace:control-away")
    monkeypatch.setattr(module, "WAIT_FOR_LINK_S", 5.0)
    task = asyncio.create_task(rig.call("/api/v1/status", method="GET"))
    rig.control.on_call = on_call
    await rig.control.start()
    assert (await task).status == 200


async def test_a_port_in_use_is_one_line(rig):
    await up(rig)
    settings = Settings(port=rig.gateway.port, data_dir=str(rig.dir), run_dir=str(rig.dir))
    other = Gateway(settings, token="x", control_address=rig.control.address)
    with pytest.raises(PortInUse, match=f"port {rig.gateway.port}"):
        await other.start()


async def test_two_gateways_share_a_port(rig):
    await up(rig, gateways=2)
    first = rig.gateway
    await rig.up(gateways=2, port=first.port)
    await rig.until(lambda: all(g.table.instances for g in rig.gateways))
    assert {(await rig.call()).status for _ in range(10)} == {200}
    await first.stop(1)
    assert {(await rig.call()).status for _ in range(10)} == {200}


async def test_a_stop_lets_what_is_in_flight_end(rig):
    release = asyncio.Event()

    async def behaviour(exchange):
        await release.wait()
        await exchange.answer()

    rig.endpoint()
    gateway = await rig.up()
    instance = await rig.instance(behaviour)
    await rig.known(lambda t: t.instances)
    idle = await rig.connect()
    await idle.send(rig.request("/healthz", method="GET"))
    assert (await idle.read()).status == 200
    running = asyncio.create_task(rig.call())
    await rig.until(lambda: instance.in_flight == 1)
    stopping = asyncio.create_task(gateway.stop(5))
    assert await idle.ended()
    release.set()
    answer = await running
    assert (answer.status, answer.get("Connection")) == (200, "close")
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await rig.connect()


async def test_the_process_serves_and_drains(rig):
    rig.endpoint()
    rig.control.address = f"unix:{rig.dir}/control.sock"
    await rig.control.start()
    (rig.dir / "cluster.token").write_text(TOKEN + "\n")
    instance = await rig.instance()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {
        "HEADRACE_DATA_DIR": str(rig.dir),
        "HEADRACE_RUN_DIR": str(rig.dir),
        "HEADRACE_PORT": str(port),
    }

    async def start():
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headrace.gateway",
            env=env,
            stderr=asyncio.subprocess.PIPE,
        )

    class Known:
        pass

    known = Known()
    known.port = port
    rig.gateways.append(known)
    try:
        process = await start()

        async def ready():
            async with asyncio.timeout(15):
                while True:
                    try:
                        if (await rig.call("/readyz", method="GET", key=None)).status == 200:
                            return
                    except OSError:
                        pass
                    await asyncio.sleep(0.02)

        await ready()
        assert (await rig.call()).status == 200
        assert len(instance.requests) == 1
        second = await start()
        _, error = await asyncio.wait_for(second.communicate(), 15)
        assert second.returncode == 1
        assert b"in use" in error.splitlines()[-1]
        assert len(error.splitlines()) == 1
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        rig.gateways.remove(known)
        if process.returncode is None:
            process.kill()
            await process.wait()
