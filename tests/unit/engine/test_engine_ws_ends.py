"""A WebSocket whose client leaves: the app hears of it, has a grace, and is cancelled then."""

from __future__ import annotations

import asyncio
import base64
import struct

import hr_ws
import pytest
from engine_harness import request, until

KEY = base64.b64encode(b"0123456789abcdef").decode()
HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
}  # fmt: skip


def close_frame(code: int = 1000) -> bytes:
    payload = hr_ws.unmask(struct.pack("!H", code), b"mask")
    return bytes([0x80 | hr_ws.CLOSE, 0x80 | len(payload)]) + b"mask" + payload


class Deaf:
    """An app that never asks for its next event; ``stubborn``: it takes no cancellation either."""

    def __init__(self, *, accepts: bool = True, stubborn: bool = False) -> None:
        self.accepts, self.stubborn = accepts, stubborn
        self.inside = 0
        self.cancelled = 0
        self.open = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        if self.accepts:
            await send({"type": "websocket.accept"})
        self.inside += 1
        while not self.open.is_set():
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if not self.stubborn:
                    raise


async def start(serve, app, grace: float = 0.05, **options):
    running = await serve(app, kind="asgi", **options)
    running.server.cancel_grace_s = grace
    told = []
    running.server.stuck = lambda: told.append(running.server.in_flight)
    return running, told


async def joined(running, app):
    before = app.inside
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    if app.accepts:
        async with asyncio.timeout(10):
            assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
    await until(lambda: app.inside > before)
    return client


@pytest.mark.parametrize("how", ["reset", "close frame", "bad frame", "before it was accepted"])
async def test_an_app_that_does_not_listen_is_cancelled_and_its_slot_is_free(serve, how):
    app = Deaf(accepts=how != "before it was accepted")
    running, told = await start(serve, app)
    client = await joined(running, app)
    assert running.server.in_flight == 1
    if how == "close frame":
        client.send(close_frame() + close_frame())
    elif how == "bad frame":
        client.send(b"\xf1\x80mask")
    else:
        client.writer.transport.abort()
    await until(lambda: not running.server.in_flight)
    assert app.cancelled == 1
    assert told == []


async def test_the_app_hears_of_it_and_has_the_grace_to_return(serve):
    heard = []
    leave = asyncio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        heard.append((await receive())["type"])
        await leave.wait()
        heard.append("returned")

    running, told = await start(serve, app, grace=30.0)
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    async with asyncio.timeout(10):
        await client.reader.readuntil(b"\r\n\r\n")
    client.writer.transport.abort()
    await until(lambda: heard)
    assert (heard, running.server.in_flight) == (["websocket.disconnect"], 1)
    leave.set()
    await until(lambda: not running.server.in_flight)
    assert heard[1:] == ["returned"]
    assert told == []


async def test_an_app_that_does_not_stop_gives_the_instance_up_when_nothing_else_runs(serve):
    app = Deaf(stubborn=True)
    running, told = await start(serve, app, concurrency=2)
    zombie, neighbour = await joined(running, app), await joined(running, app)
    zombie.writer.transport.abort()
    await until(lambda: running.server._zombies)
    assert (app.cancelled, told) == (1, [])
    neighbour.writer.transport.abort()
    await until(lambda: told)
    assert told[0] == 2
    app.open.set()
    await until(lambda: not running.server.in_flight)


async def test_an_app_that_works_on_after_it_has_closed_is_left_to_it(serve):
    work, done = asyncio.Event(), []

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await work.wait()
        done.append(True)

    running, _ = await start(serve, app, grace=0.0)
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    await client.ended()
    client.close()
    await until(lambda: not running.server.connections)
    work.set()
    await until(lambda: not running.server.in_flight)
    assert done


@pytest.mark.parametrize("how", ["closed", "refused"])
async def test_an_app_that_has_closed_and_waits_on_gives_its_slot_back(serve, how):
    heard = []

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        if how == "closed":
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        try:
            while True:
                heard.append((await receive())["type"])
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    running, told = await start(serve, app, timeout=0.2)
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    async with asyncio.timeout(10):
        assert (b" 101 " if how == "closed" else b" 403 ") in await client.reader.readuntil(b"\r\n\r\n")
    client.close()
    await until(lambda: not running.server.in_flight)
    assert heard[-1] == "cancelled"
    assert told == []


async def test_an_instance_that_ends_cancels_at_once(serve):
    app = Deaf()
    running, _ = await start(serve, app, grace=30.0)
    await joined(running, app)
    assert not await running.server.drain(0.0)
    running.server.cut_off()
    await until(lambda: not running.server.in_flight)
    assert app.cancelled == 1


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("how", ["reset", "close frame"])
async def test_an_app_that_only_sends_does_not_keep_the_instance_for_itself(serve, capsys, how, stubborn):
    heard = []

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            try:
                await send({"type": "websocket.send", "bytes": b"x" * 100_000})
            except OSError as error:
                heard.append("left")
                if not stubborn:
                    raise RuntimeError("what a framework makes of it") from error
            except asyncio.CancelledError:
                heard.append("cancelled")
                raise

    running, told = await start(serve, app)
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    async with asyncio.timeout(10):
        await client.reader.readuntil(b"\r\n\r\n")
    if how == "close frame":
        client.send(close_frame())
        client.writer.write_eof()
        async with asyncio.timeout(10):
            while await client.reader.read(1 << 20):
                pass
    else:
        client.writer.transport.abort()
    await until(lambda: not running.server.in_flight)
    assert heard[0] == "left"
    assert heard[-1] == ("cancelled" if stubborn else "left")
    assert told == []
    assert "RuntimeError" not in capsys.readouterr().err, "an app that ends for that has not failed"


async def test_what_an_app_sends_after_it_has_closed_raises(serve):
    heard = []

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        await send({"type": "websocket.close"})
        try:
            await send({"type": "websocket.send", "text": "late"})
        except OSError as error:
            heard.append(str(error))

    running, _ = await start(serve, app)
    client = await running.connect()
    client.send(request(method="GET", headers=HANDSHAKE))
    await client.ended()
    await until(lambda: heard)
    assert heard == ["the WebSocket is closed: its client has left, or the app closed it"]
