"""Clients and instances that mean harm: nothing passes that should not, and nothing grows without bound."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace.gateway import client as client_module
from headrace.gateway import sweep
from headrace.gateway.overhead import Overhead
from headrace.gateway.upstream import MAX_ANSWER_HEAD

KEY = b"Authorization: hr-key\r\n"
POST = b"POST /e/echo HTTP/1.1\r\nHost: a\r\n" + KEY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n"
)
PIECE = b"a" * 16_384
ENOUGH = 64 << 20
"""Nobody takes so many bytes that are no body."""


async def up(rig: Any, behaviour: Any = None, settings: Any = None, **route: Any) -> Any:
    rig.endpoint(**route)
    await rig.up(**(settings or {}))
    instance = await (rig.instance(behaviour) if behaviour else rig.instance())
    await rig.known(lambda t: t.instances)
    return instance


SMUGGLED = [
    b"Content-Length: 2, 2\r\n\r\nhi",
    b"Content-Length: +2\r\n\r\nhi",
    b"Content-Length: -2\r\n\r\nhi",
    b"Content-Length: 0x2\r\n\r\nhi",
    b"Content-Length: 2 3\r\n\r\nhi",
    b"Content-Length: 2 \r\n\r\nhi",
    b"Content-Length:\x0b2\r\n\r\nhi",
    b"Content-Length : 2\r\n\r\nhi",
    b"Content-Length: \r\n\r\nhi",
    b"Content-Length: 99999999999999999999\r\n\r\nhi",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    b"X: a\rY: b\r\n\r\n",
    b"X: a\x00b\r\n\r\n",
    b"X\x00: a\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n 2\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2;a\nhi\r\n0\r\n\r\n",
    b'Transfer-Encoding: chunked\r\n\r\n2;a="\r\nhi\r\n0\r\n\r\n',
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nhi\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nhiXX0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
]


@pytest.mark.parametrize("rest", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_what_two_parsers_may_read_in_two_ways_is_refused(rig: Any, rest: bytes) -> None:
    instance = await up(rig)
    client = await rig.connect()
    await client.send(POST + rest + POST + b"\r\n")
    assert (await client.read()).status == 400
    assert await client.ended()
    assert instance.requests == []


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (CHUNKED + b"0\r\nX: ", PIECE),
        (CHUNKED + b"0\r\n", b"X: a\r\n" * 2000),
        (CHUNKED + b"2;", PIECE),
        (CHUNKED, b"1;" + PIECE + b"\r\na\r\n"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", PIECE),
        (b"\r\n", b"\r\n" * 8192),
        (b"GET /", PIECE),
        (b"GET / HTTP/1.1\r\nX: ", PIECE),
    ],
    ids=["trailer", "trailers", "extension", "extensions", "no key", "lines", "target", "header"],
)
async def test_what_has_no_end_is_cut_off(rig: Any, start: bytes, piece: bytes) -> None:
    instance = await up(rig)
    client = await rig.connect()
    sent = 0
    try:
        await client.send(start)
        while sent < ENOUGH:
            async with asyncio.timeout(5):
                await client.send(piece)
            sent += len(piece)
    except OSError:
        pass
    assert sent < ENOUGH
    assert instance.requests == []
    assert (await rig.call()).status == 200
    await rig.quiet()


async def test_bodies_in_the_smallest_of_chunks_are_no_attack(rig: Any) -> None:
    instance = await up(rig)
    client = await rig.connect()
    await client.send(CHUNKED)
    for _ in range(40):
        await client.send(b"1\r\nx\r\n" * 1000)
    await client.send(b"0\r\n\r\n")
    assert (await client.read()).status == 200
    assert instance.requests[0].body == b"x" * 40_000


def test_overhead_is_forgiven_by_what_was_carried() -> None:
    count = Overhead()
    count.reset()
    assert count.add(1_000_000) == 0  # where something begins, what came before is not told apart
    assert count.add(1000) == 1000
    count.body(100)
    assert count.add(600) == 700
    count.body(1000)
    assert count.add(1000) == 0


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", PIECE),
        (b"HTTP/1.1 200 ", PIECE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", PIECE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", PIECE),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 500),
    ],
    ids=["header", "reason", "trailer", "extension", "interim"],
)
async def test_an_answer_without_end_is_cut_off(rig: Any, start: bytes, piece: bytes) -> None:
    sent = 0

    async def behaviour(exchange: Any) -> None:
        nonlocal sent
        exchange.writer.write(start)
        while sent < ENOUGH:
            exchange.writer.write(piece)
            await exchange.writer.drain()
            sent += len(piece)

    await up(rig, behaviour, retries=0)
    await rig.call()
    await rig.quiet()
    assert sent < ENOUGH


async def test_a_tunnel_is_for_websockets_alone(rig: Any) -> None:
    async def behaviour(exchange: Any) -> None:
        await exchange.answer(b"plain")

    instance = await up(rig, behaviour, handler="asgi")
    client = await rig.connect()
    forged = b"GET /second HTTP/1.1\r\nHost: a\r\nX-Headrace-Request-Id: forged\r\n\r\n"
    for protocol in ("h2c", "websocket, h2c", "TLS/1.0"):
        await client.send(
            rig.request(method="GET", extra=f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n") + forged
        )
        answer = await client.read()
        assert (answer.status, answer.get("Connection")) == (200, "close")
        assert await client.ended()
        client = await rig.connect()
    assert len(instance.requests) == 3
    assert not [r for r in instance.requests if r.get("Upgrade") or r.path == "/second"]


async def test_nothing_follows_an_upgrade_that_was_refused(rig: Any) -> None:
    async def behaviour(exchange: Any) -> None:
        # As an engine may that keeps the connection.
        await exchange.answer(b"no", status=403)

    instance = await up(rig, behaviour, handler="asgi", timeout_s=1.0)
    client = await rig.connect()
    forged = b"GET /second HTTP/1.1\r\nHost: a\r\nX-Headrace-Token: token-i0\r\n\r\n"
    await client.send(rig.request(method="GET", extra=UPGRADE) + forged)
    assert (await client.read()).status == 403
    await client.send(forged)
    # Its deadline holds: a slot is not kept by a client that does not leave.
    assert await client.ended()
    assert [r.path for r in instance.requests] == ["/"]
    assert "close" in instance.requests[0].get("Connection")
    await rig.quiet()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 S\r\nX: a\rSet-Cookie: a=b\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 S\r\nSet-Cookie\x00: a=b\r\n\r\n",
        b"HTTP/1.1 101 S\r\nX: a\nSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 -99 S\r\n\r\n",
        b"HTTP/1.1 200 S\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 102 S\r\n\r\n" * 20_000,
        b"HTTP/1.1 101 " + b"S" * (MAX_ANSWER_HEAD + 100),
    ],
    ids=["cr", "nul", "lf", "status", "length", "interim", "endless"],
)
async def test_an_instance_cannot_split_the_answer_to_an_upgrade(rig: Any, head: bytes) -> None:
    async def behaviour(exchange: Any) -> None:
        exchange.writer.write(head)
        await exchange.writer.drain()
        await asyncio.sleep(5)

    await up(rig, behaviour, handler="asgi", timeout_s=5.0, retries=0)
    client = await rig.connect()
    await client.send(rig.request(method="GET", extra=UPGRADE))
    answer = await client.read()
    assert answer.status == 502
    assert answer.get("Set-Cookie") is None
    await rig.quiet()


async def test_strangers_give_way_to_those_who_come(rig: Any) -> None:
    async def behaviour(exchange: Any) -> None:
        await exchange.begin_chunked()
        await exchange.chunk(b"1\n")
        await asyncio.sleep(30)

    await up(rig, behaviour)
    rig.gateway._max_clients = 20
    working = await rig.connect()
    await working.send(rig.request())
    assert (await working.reader.readuntil(b"1\n")).startswith(b"HTTP/1.1 200")
    silent = [await rig.connect() for _ in range(30)]
    for half in silent[:10]:
        half.writer.write(b"GET / HTTP/1.1\r\nHost: a")
    await rig.until(lambda: len(rig.gateway._clients) <= 20)
    # The oldest ones are gone, the one that is served is not, and there is room for the next.
    assert await silent[0].ended()
    assert (await rig.call("/healthz", method="GET", key=None)).status == 200
    assert not working.reader.at_eof()
    assert rig.gateway.dispatcher.in_use() == (1, 0)


async def test_a_client_that_does_not_read_its_answer_is_cut_off_and_a_slow_one_is_not(rig, monkeypatch):
    monkeypatch.setattr(client_module, "IDLE_TIMEOUT_S", 1.5)
    size = 24 << 20

    async def behaviour(exchange):
        await exchange.answer(b"x" * size, media="application/octet-stream")

    await up(rig, behaviour)
    job = (await rig.call("/api/v1/jobs", b'{"endpoint": "echo"}')).json()
    path = f"/api/v1/jobs/{job['id']}"
    assert (await rig.call(f"{path}?wait=20", method="GET")).json()["state"] == "succeeded"
    slow, deaf = await rig.connect(), await rig.connect()
    for client in (slow, deaf):
        await client.send(rig.request(f"{path}/output", method="GET"))
    await slow.reader.readuntil(b"\r\n\r\n")
    for _ in range(12):
        await asyncio.sleep(0.3)
        await slow.reader.readexactly(size // 12)
    await rig.until(lambda: not rig.gateway._clients)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await deaf.reader.readexactly(size)


async def test_clients_that_leave_too_much_unread_in_all_are_cut_off_sooner(rig, monkeypatch):
    monkeypatch.setattr(sweep, "PRESSED_S", 1.0)
    size = 16 << 20

    async def behaviour(exchange):
        await exchange.answer(b"x" * size, media="application/octet-stream")

    await up(rig, behaviour, {"gateway_body_bytes": size * 3 // 2})
    job = (await rig.call("/api/v1/jobs", b'{"endpoint": "echo"}')).json()
    path = f"/api/v1/jobs/{job['id']}"
    assert (await rig.call(f"{path}?wait=20", method="GET")).json()["state"] == "succeeded"
    deaf = [await rig.connect() for _ in range(4)]
    for client in deaf:
        await client.send(rig.request(f"{path}/output", method="GET"))
    await rig.until(lambda: 0 < len(rig.gateway._clients) <= 2)
    await asyncio.sleep(2.5)
    assert len(rig.gateway._clients) >= 1, "below the bound they may take their time"


async def test_what_is_wrong_with_a_head_is_told_in_the_words_of_its_api(rig):
    await up(rig)
    big = f"X: {'a' * 70_000}\r\n"
    for path in ("/v1/chat/completions", "/v2/echo/openai/v1/models"):
        answer = await rig.call(path, extra=big)
        assert (answer.status, answer.json()["error"]["code"]) == (431, "head_too_large")
    assert (await rig.call("/e/echo", extra=big)).json()["type"] == "urn:headrace:head-too-large"
