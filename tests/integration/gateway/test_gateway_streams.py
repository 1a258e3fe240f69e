from __future__ import annotations

import asyncio
import json

import pytest

MIB = 1 << 20


async def up(rig, behaviour, **route):
    rig.endpoint(**route)
    await rig.up()
    instance = await rig.instance(behaviour, concurrency=2)
    await rig.known(lambda t: t.instances)
    return instance


async def chunk(client):
    async with asyncio.timeout(10):
        size = int((await client.reader.readuntil(b"\r\n"))[:-2], 16)
        data = await client.reader.readexactly(size)
        await client.reader.readexactly(2)
        return data


async def test_chunks_arrive_one_by_one(rig):
    next_one = asyncio.Semaphore(0)

    async def behaviour(exchange):
        await exchange.begin_chunked()
        for n in range(5):
            await next_one.acquire()
            await exchange.chunk(b'{"n":%d}\n' % n)
        await exchange.chunk(b"")

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request())
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    for n in range(5):
        next_one.release()
        assert json.loads(await chunk(client)) == {"n": n}
    assert await chunk(client) == b""
    await client.send(rig.request("/healthz", method="GET"))
    assert (await client.read()).status == 200
    await rig.quiet()


async def test_a_slow_client_slows_the_instance_down(rig):
    written = 0

    async def behaviour(exchange):
        nonlocal written
        await exchange.begin_chunked("application/octet-stream")
        for _ in range(20):
            await exchange.chunk(b"x" * MIB)
            written += 1
        await exchange.chunk(b"")

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request())
    before = -1
    while before != written or not written:
        before = written
        await asyncio.sleep(0.2)
    assert written < 16, "the gateway took it all without a reader"
    message = await client.read()
    assert len(message.body) == 20 * MIB
    assert message.complete
    await rig.quiet()


async def test_large_answers_with_a_length_stream_whole(rig):
    async def behaviour(exchange):
        await exchange.answer(b"y" * (3 * MIB), media="application/octet-stream")

    await up(rig, behaviour)
    client = await rig.connect()
    for _ in range(2):
        await client.send(rig.request())
        answer = await client.read()
        assert answer.get("Content-Length") == str(3 * MIB)
        assert answer.body == b"y" * (3 * MIB)


async def test_a_stream_that_breaks_is_not_taken_for_whole(rig):
    def breaking(media, data):
        async def behaviour(exchange):
            await exchange.begin_chunked(media)
            await exchange.chunk(data)
            await asyncio.sleep(0.02)
            exchange.reset()

        return behaviour

    instance = await up(rig, breaking("text/event-stream", b"data: 1\n\n"))
    client = await rig.connect()
    await client.send(rig.request())
    message = await client.read()
    assert not message.complete
    assert message.body.startswith(b"data: 1\n\nevent: error\ndata: ")
    assert json.loads(message.body.split(b"data: ")[-1])["type"] == "urn:headrace:instance-died"
    assert await client.ended()
    assert len(instance.requests) == 1, "after the first byte it is never sent again"

    instance.behaviour = breaking("application/x-ndjson", b'{"half": ')
    rig.announce(instance, concurrency=2)
    await rig.until(lambda: any(i.usable for i in rig.gateway.dispatcher._instances.values()))
    message = await rig.call()
    assert not message.complete
    assert json.loads(message.body.splitlines()[-1])["error"]["status"] == 502

    instance.behaviour = breaking("application/octet-stream", b"abc")
    rig.announce(instance, concurrency=2)
    await rig.until(lambda: any(i.usable for i in rig.gateway.dispatcher._instances.values()))
    message = await rig.call()
    assert (message.complete, message.body) == (False, b"abc")
    await rig.quiet()


@pytest.mark.parametrize("media", ["application/octet-stream", "text/event-stream"])
async def test_what_only_ends_with_its_connection_is_reset_when_it_breaks(rig, media):
    broken = asyncio.Event()

    async def behaviour(exchange):
        await exchange.begin_chunked(media)
        await exchange.chunk(b"data: 1\n\n")
        await broken.wait()
        exchange.reset()

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request().replace(b"HTTP/1.1", b"HTTP/1.0"))
    async with asyncio.timeout(10):
        await client.reader.readuntil(b"data: 1\n\n")
        broken.set()
        if media == "text/event-stream":
            assert b"event: error" in await client.reader.read()
        else:
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
    await rig.quiet()


async def test_half_a_small_answer_is_an_error_not_a_retry(rig):
    async def behaviour(exchange):
        exchange.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        await exchange.writer.drain()
        await asyncio.sleep(0.02)
        exchange.reset()

    instance = await up(rig, behaviour)
    assert (await rig.call()).status == 502
    assert len(instance.requests) == 1


async def test_an_answer_that_is_no_http_is_an_error(rig):
    async def behaviour(exchange):
        exchange.writer.write(b"SSH-2.0-x\r\n")
        await exchange.writer.drain()
        await asyncio.sleep(1)

    await up(rig, behaviour)
    answer = await rig.call()
    assert (answer.status, answer.json()["type"]) == (502, "urn:headrace:instance-died")


async def test_more_bytes_than_one_answer_never_reach_the_next_request(rig):
    async def behaviour(exchange):
        await exchange.answer(b"1", extra="")
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await exchange.writer.drain()

    instance = await up(rig, behaviour)
    client = await rig.connect()
    for _ in range(5):
        await client.send(rig.request())
        assert (await client.read()).body == b"1"
    assert len(instance.requests) == 5
    await rig.quiet()


async def test_hanging_up_in_the_middle_of_a_stream_cancels_it(rig):
    async def behaviour(exchange):
        await exchange.begin_chunked()
        while True:
            await exchange.chunk(b"x" * 1000)
            await asyncio.sleep(0.005)

    instance = await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request())
    await client.reader.readuntil(b"\r\n\r\n")
    client.close()
    await rig.until(lambda: instance.in_flight == 0)
    await rig.quiet()


async def test_a_stream_ends_at_its_deadline(rig):
    async def behaviour(exchange):
        await exchange.begin_chunked("text/event-stream")
        while True:
            await exchange.chunk(b"data: 1\n\n")
            await asyncio.sleep(0.01)

    await up(rig, behaviour)
    answer = await rig.call(extra="X-Headrace-Timeout: 0.2\r\n")
    assert answer.status == 200
    assert not answer.complete
    assert b"deadline-exceeded" in answer.body
    await rig.quiet()


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n"


async def echo_tunnel(exchange):
    if exchange.request.get("Upgrade") != "websocket":
        await exchange.answer(b"plain")
        return
    exchange.writer.write(
        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: xyz\r\nSet-Cookie: a=b\r\n\r\nhello"
    )
    while data := await exchange.reader.read(65536):
        exchange.writer.write(data)
        await exchange.writer.drain()
    exchange.writer.close()


async def test_an_upgrade_becomes_a_tunnel(rig):
    instance = await up(rig, echo_tunnel, handler="asgi", timeout_s=0.5)
    client = await rig.connect()
    await client.send(rig.request("/e/echo/ws?a=1", method="GET", extra=UPGRADE) + b"early")
    head = await client.read()
    assert head.status == 101
    assert head.get("Upgrade") == "websocket"
    assert head.get("Sec-WebSocket-Accept") == "xyz"
    assert head.get("Set-Cookie") is None
    assert await client.reader.readexactly(10) == b"helloearly"
    request = instance.requests[0]
    assert (request.path, request.get("Connection"), request.get("Sec-WebSocket-Key")) == (
        "/ws?a=1",
        "Upgrade, close",
        "abc",
    )
    assert request.get("Authorization") is None
    # The deadline is over by now, and the tunnel is not.
    await asyncio.sleep(0.6)
    data = b"z" * (2 * MIB)
    client.writer.write(data)
    async with asyncio.timeout(10):
        assert await client.reader.readexactly(len(data)) == data
    assert rig.gateway.dispatcher.in_use() == (1, 0), "a tunnel holds its slot"
    client.close()
    await rig.quiet()
    await rig.until(lambda: instance.in_flight == 0)


async def test_the_instance_may_end_a_tunnel(rig):
    async def behaviour(exchange):
        exchange.writer.write(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbye")
        await exchange.writer.drain()
        exchange.writer.close()

    await up(rig, behaviour, handler="asgi")
    client = await rig.connect()
    await client.send(rig.request(method="GET", extra=UPGRADE))
    assert (await client.read()).status == 101
    assert await client.reader.read() == b"bye"
    await rig.quiet()


async def test_an_upgrade_that_is_refused_or_not_meant_is_a_plain_answer(rig):
    async def behaviour(exchange):
        await exchange.answer(b"no", status=403)

    instance = await up(rig, behaviour, handler="asgi")
    client = await rig.connect()
    await client.send(rig.request(method="GET", extra=UPGRADE))
    answer = await client.read()
    assert (answer.status, answer.body) == (403, b"no")
    client.close()
    await rig.quiet()
    rig.endpoint(handler="function")
    await rig.known(lambda t: t.endpoints["default/echo"].handler == "function")
    answer = await rig.call(
        method="GET", extra="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
    )
    assert answer.status == 403
    assert instance.requests[-1].get("Upgrade") is None
    assert instance.requests[-1].get("HTTP2-Settings") is None


@pytest.mark.parametrize("http10", [False, True])
@pytest.mark.parametrize("path", ["/e/echo", "/v1/chat/completions"])
@pytest.mark.parametrize("head", ["Content-Encoding: gzip\r\n", "Content-Length: 300000\r\n"])
async def test_nothing_is_added_to_what_has_no_room_for_it(rig, head, path, http10):
    """An error event amid compressed bytes, or in place of the last ones that were promised, is none."""

    async def behaviour(exchange):
        sized = "Length" in head
        more = head if sized else f"{head}Transfer-Encoding: chunked\r\n"
        exchange.writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{more}\r\n".encode()
            + (b"data: 1\n\n" if sized else b"9\r\ndata: 1\n\n\r\n")
        )
        await exchange.writer.drain()
        await asyncio.sleep(0.05)
        exchange.reset()

    await up(rig, behaviour, api="openai", retries=0)
    client = await rig.connect()
    request = rig.request(path, b'{"model": "echo", "stream": true}')
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0") if http10 else request)
    if http10 and "Length" not in head:
        with pytest.raises(ConnectionResetError):
            await client.read()
    else:
        answer = await client.read()
        assert not answer.complete
        assert answer.body == b"data: 1\n\n"
    await rig.quiet()
