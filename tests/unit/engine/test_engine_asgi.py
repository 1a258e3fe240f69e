"""ASGI apps: scope, streams, hang-ups, lifespan, WebSocket."""

from __future__ import annotations

import asyncio
import os
import struct

import aiohttp
import hr_loader
import hr_ws
import pytest
from engine_harness import TOKEN, request, until
from hypothesis import given
from hypothesis import strategies as st


def on_http(handler):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await handler(scope, receive, send)

    return app


async def start(send, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send, data=b"", more=False):
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def test_the_scope_and_a_whole_answer(serve):
    seen = {}

    async def handler(scope, receive, send):
        seen.update(scope, event=await receive())
        await start(
            send, 201, [(b"content-type", b"text/plain"), (b"X-Headrace-Token", b"x"), (b"x-own", b"1")]
        )
        await body(send, b"made")

    running = await serve(on_http(handler), kind="asgi")
    answer = await running.call(body=b"in", path="/a%20b/c?q=1&r", method="PUT", headers={"X-Own": "y"})
    assert (answer.status, answer.body, answer.headers["content-type"]) == (201, b"made", "text/plain")
    assert "x-headrace-token" not in answer.headers
    assert answer.headers["x-own"] == "1"
    assert (seen["path"], seen["raw_path"], seen["query_string"]) == ("/a b/c", b"/a%20b/c", b"q=1&r")
    assert (seen["method"], seen["event"]["body"]) == ("PUT", b"in")
    assert (b"x-own", b"y") in seen["headers"]
    assert not [name for name, _ in seen["headers"] if name.startswith(b"x-headrace")]


@pytest.mark.parametrize(
    ("media", "sent", "last"),
    [
        (b"text/event-stream; charset=utf-8", b"data: 1\n\n", b"event: error\ndata: "),
        (b"text/event-stream", b"data: ha", b"\n\nevent: error\ndata: "),
        (b"application/x-ndjson", b"1\n", b'{"error":'),
    ],
)
async def test_a_stream_that_fails_ends_with_the_error_in_its_own_form(serve, media, sent, last):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", media)]})
            await send({"type": "http.response.body", "body": sent, "more_body": True})
            raise KeyError("late")

    running = await serve(app, kind="asgi")
    client = await running.connect()
    answer = await client.call()
    assert answer.body.startswith(sent + last)
    assert b"KeyError: 'late'" in answer.body
    assert (await client.call()).status == 200, "the connection is as good as before"


async def test_a_stream_of_another_kind_that_fails_is_broken_off(serve):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ab", "more_body": True})
            raise KeyError("late")

    running = await serve(app, kind="asgi")
    client = await running.connect()
    client.send(b"GET / HTTP/1.1\r\nX-Headrace-Token: t0ken\r\n\r\n")
    assert not (await client.ended()).endswith(b"0\r\n\r\n")


async def test_streamed_sized_and_head_answers(serve):
    async def handler(scope, receive, send):
        sized = scope["path"] == "/sized"
        await start(send, 200, [(b"content-length", b"4")] if sized else [])
        await body(send, b"ab", more=True)
        await body(send, b"cd")

    running = await serve(on_http(handler), kind="asgi")
    streamed, sized = await running.call(path="/s"), await running.call(path="/sized")
    assert streamed.chunks == [b"ab", b"cd"]
    assert (sized.body, sized.headers["content-length"]) == (b"abcd", "4")
    client = await running.connect()
    client.send(request(method="HEAD", path="/sized") + request(method="GET", path="/sized"))
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"content-length: 4" in head
    assert (await client.answer()).body == b"abcd"


async def test_failures_before_and_after_the_start(serve):
    async def handler(scope, receive, send):
        if scope["path"] == "/silent":
            return
        if scope["path"] == "/late":
            await start(send)
            await body(send, b"half", more=True)
        if scope["path"] == "/split":
            await start(send, 200, [(b"x", b"a\r\nb: c")])
        raise ValueError("broken app")

    running = await serve(on_http(handler), kind="asgi")
    early = await running.call(path="/early")
    assert (early.status, early.headers["x-headrace-exception"]) == (500, "ValueError")
    assert (await running.call(path="/silent")).status == 500
    assert (await running.call(path="/split")).status == 500
    client = await running.connect()
    client.send(request(path="/late"))
    with pytest.raises((asyncio.IncompleteReadError, ValueError, ConnectionError)):
        await client.answer()
    assert running.server.in_flight == 0


async def test_a_hang_up_is_told_and_cancels(serve):
    told = []

    async def handler(scope, receive, send):
        await receive()
        try:
            told.append(await receive())
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    running = await serve(on_http(handler), kind="asgi")
    client = await running.connect()
    client.send(request(1))
    await until(lambda: running.server.in_flight)
    client.close()
    await until(lambda: not running.server.in_flight)
    assert told


def lifespan_app(startup: str, log: list[str]):
    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        if startup == "raise":
            raise RuntimeError("no lifespan here")
        log.append((await receive())["type"])
        await send({"type": f"lifespan.startup.{startup}", "message": "no database"})
        log.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    return app


async def test_lifespan(serve):
    log: list[str] = []
    running = await serve(lifespan_app("complete", log), kind="asgi")
    await running.app.shutdown()
    assert log == ["lifespan.startup", "lifespan.shutdown"]
    await serve(lifespan_app("raise", log), kind="asgi")
    with pytest.raises(hr_loader.StartFailed, match="no database"):
        await serve(lifespan_app("failed", log), kind="asgi")


async def ws_app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/no":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "so long"})
            return
        if event.get("text") == "fail":
            raise ValueError("broken socket")
        await send({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})


async def test_websocket_with_a_real_client(serve):
    running = await serve(ws_app, kind="asgi", concurrency=4)
    headers = {"X-Headrace-Token": TOKEN}
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(running.path), headers=headers
    ) as session:
        async with session.ws_connect("http://i/x", protocols=("a", "b")) as ws:
            assert ws.protocol == "a"
            for size in (0, 5, 125, 126, 70_000):
                await ws.send_str("é" * (size // 2))
                assert await ws.receive_str() == "é" * (size // 2)
                await ws.send_bytes(data := os.urandom(size))
                assert await ws.receive_bytes() == data
            assert running.server.in_flight == 1
            await ws.send_str("bye")
            closing = await ws.receive()
            assert (closing.type, closing.data, closing.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "so long")
        async with session.ws_connect("http://i/x") as ws:
            await ws.send_str("fail")
            assert (await ws.receive()).data == 1011
        async with session.ws_connect("http://i/x") as ws:
            await ws.close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect("http://i/no")
        assert refused.value.status == 403
        assert (await session.get("http://i/x", headers={"Upgrade": "websocket"})).status == 400
    await until(lambda: not running.server.in_flight)


def masked(opcode: int, payload: bytes, final: bool = True) -> bytes:
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    head += bytes([0x80 | size]) if size < 126 else bytes([0xFE]) + struct.pack("!H", size)
    return head + b"mask" + hr_ws.unmask(payload, b"mask")


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 7))
def test_fragmented_messages_come_out_whole_with_control_frames_between(parts, step):
    wire = b""
    for i, part in enumerate(parts):
        wire += masked(0 if i else hr_ws.BINARY, part, i == len(parts) - 1) + masked(hr_ws.PING, b"p")
    reader = hr_ws.FrameReader(10_000)
    found = [m for i in range(0, len(wire), step) for m in reader.feed(wire[i : i + step])]
    assert [m for m in found if m[0] == hr_ws.BINARY] == [(hr_ws.BINARY, b"".join(parts))]
    assert len(found) == len(parts) + 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01a", 1002),
        (b"\xf1\x80mask", 1002),
        (masked(hr_ws.PING, b"x", final=False), 1002),
        (masked(0, b"x"), 1002),
        (masked(3, b"x"), 1002),
        (masked(hr_ws.TEXT, b"x" * 200), 1009),
    ],
)
def test_frames_that_break_the_protocol_are_refused(data, code):
    with pytest.raises(hr_ws.BadFrame) as error:
        hr_ws.FrameReader(100).feed(data)
    assert error.value.code == code
