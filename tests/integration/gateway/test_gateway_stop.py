"""A gateway that stops in good order tells everybody who still waits."""

from __future__ import annotations

import asyncio
import json

import pytest
from headrace import wire

from tests.integration.gateway.conftest import Rig

STOPPING = "urn:headrace:gateway-stopping"


async def up(rig: Rig, behaviour, **settings):
    rig.endpoint()
    await rig.up(**settings)
    await rig.instance(behaviour, concurrency=4)
    await rig.known(lambda t: t.instances)


async def never(exchange):
    await asyncio.Event().wait()


@pytest.mark.parametrize("key", ["", "Idempotency-Key: k1\r\n"])
async def test_a_request_that_waits_at_the_end_of_the_grace_gets_a_reason(rig, key):
    await up(rig, never)
    call = asyncio.create_task(rig.call(extra=key))
    await rig.until(lambda: rig.instances[0].in_flight)
    await rig.gateway.stop(0.2)
    answer = await call
    assert (answer.status, answer.json()["type"]) == (503, STOPPING)
    assert answer.get("retry-after") == "1"
    assert answer.get("connection") == "close"


async def test_a_queued_request_and_one_whose_body_is_not_there_get_a_reason_too(rig):
    rig.endpoint()
    await rig.up()
    queued = await rig.connect()
    await queued.send(rig.request())
    await rig.until(lambda: rig.gateway.dispatcher.in_use()[1])
    sending = await rig.connect()
    await sending.send(rig.request(body=b"x" * 1000)[:-500])
    await rig.until(lambda: rig.gateway._held == 502)
    await rig.gateway.stop(0.1)
    for client in (queued, sending):
        answer = await client.read()
        assert (answer.status, answer.json()["type"]) == (503, STOPPING)


@pytest.mark.parametrize("key", ["", "Idempotency-Key: k2\r\n"])
@pytest.mark.parametrize(
    ("media", "item"), [("text/event-stream", b"data: 1\n\n"), ("application/x-ndjson", b"1\n")]
)
async def test_a_stream_ends_with_a_reason(rig, media, item, key):
    async def behaviour(exchange):
        await exchange.begin_chunked(media)
        await exchange.chunk(item)
        await asyncio.Event().wait()

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request(extra=key))
    await client.reader.readuntil(item)
    await rig.gateway.stop(0.1)
    async with asyncio.timeout(5):
        rest = await client.reader.read()
    last = rest.decode().split("data: ")[-1] if "event" in media else rest.decode().split("\r\n")[2]
    problem = json.loads(last.strip().partition("\n")[0].partition("\r")[0])
    assert problem.get("error", problem)["type"] == STOPPING


async def test_nobody_waits_for_a_gateway_that_has_nothing_to_do(rig):
    await up(rig, never)
    idle = await rig.connect()
    await idle.send(rig.request("/healthz", method="GET"))
    assert (await idle.read()).status == 200
    async with asyncio.timeout(5):
        await rig.gateway.stop(60.0)
    assert await idle.ended()


async def test_who_waits_for_a_job_hears_at_once_how_it_stands(rig):
    """As soon as draining begins, long before the grace ends: the job is stored and goes on elsewhere."""
    rig.endpoint()
    await rig.up()
    job = (await rig.call("/api/v1/jobs", b'{"endpoint": "echo"}')).json()
    asked = [
        rig.request(f"/api/v1/jobs/{job['id']}?wait=60", method="GET"),
        rig.request("/v2/echo/runsync", b'{"input": {}}'),
        rig.request("/cog/echo/predictions", b'{"input": {}}'),
        rig.request(f"/api/v1/jobs/{job['id']}/stream", method="GET"),
        rig.request(f"/api/v1/jobs/{job['id']}/stream?format=ndjson", method="GET"),
    ]
    clients = [await rig.connect() for _ in asked]
    for client, request in zip(clients, asked, strict=True):
        await client.send(request)
    service = rig.gateway.jobs.service
    await rig.until(lambda: sum(len(bells) for bells in service.hub._bells.values()) == len(asked))
    async with asyncio.timeout(10):
        stopping = asyncio.create_task(rig.gateway.stop(60.0))
        found = [await client.read() for client in clients]
        await stopping
    assert [one.status for one in found] == [200] * len(asked)
    assert found[0].json()["state"] == "queued"
    assert found[1].json()["status"] == "IN_PROGRESS"
    assert found[2].json()["status"] == "starting"
    event, line = found[3].body.decode(), found[4].json()
    assert not found[3].complete
    assert event.startswith("event: error\ndata: ")
    assert json.loads(event.splitlines()[1][6:])["type"] == line["error"]["type"] == STOPPING


async def test_an_open_tunnel_ends_with_the_grace(rig):
    """Without a close frame, which WebSocket's clients know for an end that nobody meant."""

    async def behaviour(exchange):
        exchange.writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        await asyncio.Event().wait()

    rig.endpoint(handler="asgi")
    await rig.up()
    instance = await rig.instance(behaviour)
    await rig.known(lambda t: t.instances)
    client = await rig.connect()
    extra = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    await client.send(rig.request("/e/echo/ws", method="GET", extra=extra))
    await client.reader.readuntil(b"hello")
    async with asyncio.timeout(5):
        await rig.gateway.stop(0.2)
        assert await client.reader.read() == b""
    await rig.until(lambda: not instance.in_flight)


async def test_a_management_request_that_waits_gets_a_reason(rig):
    async def on_call(call):
        await asyncio.Event().wait()

    await rig.up()
    rig.control.on_call = on_call
    call = asyncio.create_task(rig.call("/api/v1/status", method="GET"))
    await rig.until(lambda: rig.control.of(wire.ApiCall))
    await rig.gateway.stop(0.1)
    answer = await call
    assert (answer.status, answer.json()["type"]) == (503, STOPPING)
