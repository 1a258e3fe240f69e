from __future__ import annotations

import asyncio
import hashlib
import json

import headrace.gateway.client as module
import pytest
from headrace import wire

POST = b"POST /e/echo HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /e/echo HTTP/1.1\r\nHost: a\r\n"


async def up(rig, behaviour=None, settings=None, **route):
    rig.endpoint(**route)
    await rig.up(**(settings or {}))
    instance = await rig.instance(behaviour) if behaviour else await rig.instance()
    await rig.known(lambda t: t.instances)
    return instance


async def test_a_request_reaches_the_instance_and_comes_back(rig):
    instance = await up(rig)
    answer = await rig.call("/e/echo/a%2Fb/../c?x=%20y", b'{"a": 1}', extra="X-Other: 1\r\n")
    assert answer.status == 200
    assert answer.json() == {"ok": True}
    request = instance.requests[0]
    assert request.path == "/a%2Fb/../c?x=%20y"
    assert request.body == b'{"a": 1}'
    assert request.get("X-Other") == "1"
    assert request.get("X-Headrace-Token") == "token-i0"
    assert request.get("X-Headrace-Attempt") == "1"
    assert 0 < int(request.get("X-Headrace-Deadline-Ms")) <= 600_000
    assert request.get("X-Headrace-Request-Id") == answer.get("X-Headrace-Request-Id")
    assert "queue;dur=" in answer.get("Server-Timing")
    assert "boot;dur=" not in answer.get("Server-Timing"), "it did not wait for the start"
    await rig.quiet()


async def test_what_must_not_travel_stays_here(rig):
    async def behaviour(exchange):
        await exchange.answer(
            b"<h1>x</h1>",
            media="text/html; charset=utf-8",
            extra="Set-Cookie: a=b\r\nX-Headrace-Timing: 5\r\nX-Headrace-S: 1\r\n",
        )

    instance = await up(rig, behaviour)
    extra = (
        "X-Headrace-Token: forged\r\nX_Headrace_Token: forged\r\nX-Headrace-Priority: high\r\n"
        "X-Headrace-Timeout: 9\r\nCookie: session=hr-key; theme=dark\r\n"
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
    )
    answer = await rig.call(extra=extra)
    request = instance.requests[0]
    assert request.all("X-Headrace-Token") == ["token-i0"]
    assert request.get("X_Headrace_Token") is None
    assert request.get("X-Headrace-Priority") == "high"
    assert request.get("Authorization") is None
    assert request.get("Cookie") == "theme=dark"
    assert request.get("X-Hop") is None
    assert request.get("TE") is None
    assert answer.get("Set-Cookie") is None
    assert answer.get("X-Headrace-S") is None
    assert answer.get("Content-Security-Policy") == "sandbox"
    assert "handler;dur=5.00" in answer.get("Server-Timing")


async def test_who_may_call(rig):
    await up(rig)
    rig.control.keys += [
        wire.KeyRecord(id="inv", hash=_sha("inv"), scopes=("invoke",)),
        wire.KeyRecord(id="dep", hash=_sha("dep"), scopes=("deploy",)),
        wire.KeyRecord(id="other", hash=_sha("other"), project="other"),
    ]
    rig.control.send(wire.RouteDelta(epoch=1, keys=rig.control.keys))
    await rig.known(lambda t: len(t.keys) == 4)
    none = await rig.call(key=None)
    assert none.status == 401
    assert none.get("WWW-Authenticate") == "Bearer"
    assert none.json()["request_id"] == none.get("X-Headrace-Request-Id")
    assert (await rig.call(key="wrong")).status == 401
    assert (await rig.call(key=None, extra="Authorization: Basic aHI6a2V5\r\n")).status == 401
    assert (await rig.call(key=None, extra="Authorization: hr-key\r\n")).status == 200
    assert (await rig.call(key="inv")).status == 200
    assert (await rig.call(key="dep")).status == 403
    assert (await rig.call("/api/v1/status", key="inv", method="GET")).status == 403
    assert (await rig.call(key="other")).status == 404, "names are those of the key's project"


async def test_unknown_names_say_the_closest(rig):
    rig.endpoint("embedder", versions=(2, 3), version=3)
    await rig.up()
    answer = await rig.call("/e/embeder")
    assert answer.status == 404
    assert answer.json()["type"] == "urn:headrace:endpoint-not-found"
    assert answer.json()["suggestion"] == "embedder"
    assert (await rig.call("/e/EMBEDDER")).json()["suggestion"] == "embedder"
    assert (await rig.call("/e/bedder-v2")).json()["suggestion"] == "embedder"
    version = await rig.call("/e/embedder@7")
    assert version.status == 404
    assert version.json()["versions"] == [2, 3]
    assert (await rig.call("/nowhere")).status == 404
    assert (await rig.call("/e/")).status == 404


async def test_a_pinned_version_goes_to_its_instances(rig):
    rig.endpoint(version=2, versions=(1, 2))
    await rig.up()
    old, new = await rig.instance(), await rig.instance(version=2)
    await rig.known(lambda t: len(t.instances) == 2)
    for _ in range(3):
        assert (await rig.call()).status == 200
    assert (await rig.call("/e/echo@1")).status == 200
    assert (len(old.requests), len(new.requests)) == (1, 3)


async def test_a_body_above_the_limit_is_refused_unread(rig):
    instance = await up(rig, max_body=20_000)
    client = await rig.connect()
    await client.send(POST + b"Authorization: hr-key\r\nContent-Length: 50000000\r\n\r\n")
    answer = await client.read()
    assert answer.status == 413
    assert answer.get("Connection") == "close"
    assert await client.ended()

    client = await rig.connect()
    await client.send(POST + b"Authorization: hr-key\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n2711\r\n" + b"x" * 10_001 + b"\r\n")
    assert (await client.read()).status == 413
    assert instance.requests == []
    await rig.quiet()


async def test_bodies_held_in_all_are_bounded(rig):
    await up(rig, settings={"gateway_body_bytes": 1000})
    assert (await rig.call(body=b" " * 1001)).status == 429
    assert (await rig.call(body=b" " * 999)).status == 200
    await rig.quiet()


async def test_chunked_and_expected_bodies_arrive_whole(rig):
    instance = await up(rig)
    client = await rig.connect()
    await client.send(
        POST + b"Authorization: hr-key\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await client.read()).status == 100
    await client.send(b"3\r\nabc\r\n")
    await client.send(b"2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert (await client.read()).status == 200
    assert instance.requests[0].body == b"abcde"
    assert instance.requests[0].get("Expect") is None
    assert instance.requests[0].all("Content-Length") == ["5"]


async def test_pipelined_requests_are_answered_in_their_order(rig):
    async def behaviour(exchange):
        number = json.loads(exchange.request.body)
        await asyncio.sleep(0.05 if number == 0 else 0)
        await exchange.answer(exchange.request.body)

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(
        b"".join(rig.request(body=str(n).encode()) for n in range(5))
        + rig.request("/e/none")
        + rig.request(body=b"6")
    )
    assert [(await client.read()).json() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert (await client.read()).status == 404
    assert (await client.read()).json() == 6
    await rig.quiet()


async def test_head_has_a_length_and_no_body(rig):
    await up(rig)
    client = await rig.connect()
    await client.send(rig.request(method="HEAD") + rig.request(method="HEAD"))
    for _ in range(2):
        answer = await client.read(head_only=True)
        assert (answer.status, answer.get("Content-Length")) == (200, "11")
    await client.send(rig.request())
    assert (await client.read()).json() == {"ok": True}


async def test_answers_that_end_with_the_connection_are_framed_for_the_client(rig):
    async def behaviour(exchange):
        exchange.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")
        await exchange.writer.drain()
        exchange.writer.close()

    await up(rig, behaviour)
    client = await rig.connect()
    for _ in range(2):
        await client.send(rig.request())
        answer = await client.read()
        assert (answer.body, answer.complete) == (b"all of it", True)
    await client.send(b"GET /e/echo HTTP/1.0\r\nAuthorization: hr-key\r\n\r\n")
    answer = await client.read()
    assert answer.get("Transfer-Encoding") is None
    assert answer.body == b"all of it"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (
            POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
        ),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (
            POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (GET + b"Host: b\r\n\r\n", 400),
        (b"GET /e/echo HTTP/1.1\r\n\r\n", 400),
        (b"GET http://b/e/echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /e/echo HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /e/echo HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (GET + b"X: a\nY: b\r\n\r\n", 400),
        (GET + b"X: a\r\n folded\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (GET + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    ],
)
async def test_malformed_requests_are_refused_and_the_connection_ends(rig, raw, status):
    instance = await up(rig)
    client = await rig.connect()
    await client.send(raw + GET + b"Authorization: hr-key\r\n\r\n")
    answer = await client.read()
    assert answer.status == status
    assert answer.get("Content-Type") == "application/problem+json"
    assert await client.ended()
    assert instance.requests == []


async def test_a_head_without_end_is_cut_off(rig):
    await up(rig)
    client = await rig.connect()
    await client.send(GET + b"X: ")
    for _ in range(70):
        await client.send(b"a" * 1024)
        await asyncio.sleep(0)
    assert (await client.read()).status == 431


async def test_slow_and_idle_clients_are_closed(rig, monkeypatch):
    monkeypatch.setattr(module, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.3)
    await up(rig)
    slow, idle = await rig.connect(), await rig.connect()
    await slow.send(b"GET /e/echo HTTP/1.1\r\nHo")
    await idle.send(rig.request())
    assert (await idle.read()).status == 200
    assert await slow.ended()
    assert await idle.ended()


async def test_health_needs_no_key_and_readiness_a_link(rig):
    await up(rig)
    assert (await rig.call("/healthz", method="GET", key=None)).json() == {"status": "ok"}
    assert (await rig.call("/readyz", method="GET", key=None)).status == 200
    assert (await rig.call("/", method="GET")).json()["name"] == "headrace"
    for key in (None, "wrong"):
        answer = await rig.call("/", method="GET", key=key)
        assert answer.status == 401
        assert b"version" not in answer.body
    await rig.control.stop()
    await rig.until(lambda: not rig.gateway._control.is_up)
    answer = await rig.call("/readyz", method="GET", key=None)
    assert answer.status == 503
    assert "link" in answer.json()["reason"]
    assert (await rig.call("/healthz", method="GET", key=None)).status == 200


async def test_without_keys_only_this_machines_own_pages_may_call(rig):
    await up(rig, settings={"keyless": True})
    assert (await rig.call(key=None, host="127.0.0.1:8700")).status == 200
    assert (await rig.call(key="whatever", host="localhost")).status == 200
    assert (await rig.call(key=None, host="[::1]:8700", extra="Origin: http://[::1]:8700\r\n")).status == 200
    for host, extra in (
        ("evil.example", ""),
        ("127.0.0.1.evil.example", ""),
        ("localhost:8700", "Origin: http://evil.example\r\n"),
        ("localhost:8700", "Origin: https://localhost:8700\r\n"),
        ("localhost:8700", "Origin: http://localhost:9999\r\n"),
        ("localhost:8700", "Origin: null\r\n"),
        ("localhost:8700", "Sec-Fetch-Site: cross-site\r\n"),
        ("localhost:8700", "Sec-Fetch-Site: same-site\r\n"),
        ("localhost:1234@evil.example", ""),
    ):
        assert (await rig.call(key=None, host=host, extra=extra)).status == 403, (host, extra)
        assert (
            await rig.call("/api/v1/status", method="GET", key=None, host=host, extra=extra)
        ).status == 403


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
