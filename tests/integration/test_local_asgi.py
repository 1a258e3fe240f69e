"""ASGI apps through the gateway: answers that break off, WebSockets, and who keeps the instance."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = """
    import os

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                await send({"type": "websocket.send", "text": str(os.getpid())})
            print("it left", flush=True)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/half":
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                raise ValueError("in the middle")
            await send({"type": "http.response.body", "body": str(os.getpid()).encode()})

    app = headrace.endpoint(name="asgi", scaling=headrace.Scaling(max=1, idle_timeout=0.3))(app)
"""


async def pid(platform: Platform) -> int:
    status, _, body = await platform.request("GET", "/e/asgi/")
    assert status == 200, body
    return int(body)


async def test_an_app_that_breaks_off_its_answer_stays_in_use(platform: Platform) -> None:
    done = await platform.deploy(APP)
    assert done["state"] == "succeeded", done
    await pid(platform)
    with pytest.raises(aiohttp.ClientPayloadError):
        await platform.request("GET", "/e/asgi/half")
    # Only that connection broke: without another word from control nothing could be answered (max=1).
    await asyncio.wait_for(pid(platform), 20)


async def test_a_websocket_keeps_its_instance_until_it_ends(platform: Platform) -> None:
    url = f"{platform.cluster.url}/e/asgi/chat"
    ws = await platform.http.ws_connect(url, headers=platform.auth)
    await ws.send_str("who?")
    first = (await ws.receive()).data
    # Much longer than its idle timeout.
    await asyncio.sleep(1.5)
    await ws.send_str("who?")
    assert (await ws.receive()).data == first
    # Its connection breaks: the slot (there is one) is free again.
    assert ws._response.connection is not None
    assert ws._response.connection.transport is not None
    ws._response.connection.transport.abort()
    await asyncio.wait_for(pid(platform), 20)

    async def told() -> bool:
        page = await platform.api("GET", "/endpoints/asgi/logs")
        return any(line["text"] == "it left" for line in page["items"])

    await until(told)
