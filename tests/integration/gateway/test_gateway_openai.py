"""OpenAI's contract on the wire: what a client gets of instances that break off, compress, or wake."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from headrace.gateway.api.openai_client import MAX_EVENT_BYTES, events_end

PATH = "/v1/chat/completions"
BODY = b'{"model": "echo", "stream": true}'
SSE = "text/event-stream"


async def up(rig, behaviour, **route):
    rig.endpoint(**{"api": "openai", "handler": "asgi", **route})
    await rig.up()
    if behaviour is not None:
        instance = await rig.instance(behaviour, concurrency=4)
        await rig.known(lambda t: t.instances)
        return instance
    return None


def last_error(body):
    last = body.decode().rstrip().rpartition("\n\n")[2]
    return json.loads(last.removeprefix("data: "))["error"]


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"", 0), (b"data: 1\n", 0), (b"data: 1\n\n", 9), (b"data: 1\n\ndata", 9), (b"data: 1\r\n\r\nd", 11),
        (b"data: 1\r\r", 9), (b": c\n\nd: 1\n\nx", 11), (b"data: 1\r\n\r", 10),
    ],
)  # fmt: skip
def test_where_events_end(data, end):
    assert events_end(data) == end


@pytest.mark.parametrize("key", ["", "Idempotency-Key: k1\r\n"])
async def test_half_an_event_is_not_given_to_a_client(rig, key):
    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        await exchange.chunk(b'data: {"a": 1}\n\ndata: {"hal')
        await asyncio.sleep(0.05)
        exchange.reset()

    await up(rig, behaviour, retries=0)
    answer = await rig.call(PATH, BODY, extra=key)
    assert answer.complete
    whole, _, rest = answer.body.partition(b"\n\n")
    assert whole == b'data: {"a": 1}'
    assert b"hal" not in rest
    assert last_error(answer.body)["code"] == "instance_died"


PIECES = [
    b": hi\n\nda", b'ta: {"a":', b" 1}\r\n", b"\r", b"\n", b"event: x\rdata: y\r", b"\rdata: 2\n\n",
    b"data: " + b"z" * (2 * MAX_EVENT_BYTES), b"z\n", b"\ndata: [DONE]\n\n", b"data: no end",
]  # fmt: skip


@pytest.mark.parametrize("key", ["", "Idempotency-Key: k2\r\n"])
@pytest.mark.parametrize("sized", [False, True])
async def test_events_pass_byte_for_byte_however_they_are_cut(rig, sized, key):
    whole = b"".join(PIECES)

    async def behaviour(exchange):
        if sized:
            await exchange.answer(whole, media=SSE)
            return
        await exchange.begin_chunked(SSE)
        for piece in PIECES:
            await exchange.chunk(piece)
            await asyncio.sleep(0.01)
        await exchange.chunk(b"")

    await up(rig, behaviour)
    client = await rig.connect()
    for _ in range(1 if key else 2):
        await client.send(rig.request(PATH, BODY, extra=key))
        answer = await client.read()
        assert (answer.status, answer.complete) == (200, True)
        assert answer.body == whole


PROBLEM = b'{"type":"urn:headrace:handler-error","title":"t","status":500,"detail":"ValueError: mid"}'
WORDS = b"event: error\ndata: " + PROBLEM + b"\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: 1\n\n", WORDS], [b"data: 1\n\n" + WORDS], [b'data: 1\n\ndata: {"ha', b"\n\n" + WORDS],
        [b"data: 1\n\n", WORDS[:20], WORDS[20:]], [b"data: 1\n\n", b"\n\n" + WORDS[:40], WORDS[40:]],
    ],
)  # fmt: skip
async def test_a_handler_that_raised_in_the_middle_is_told_in_openais_shape(rig, pieces):
    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        for piece in (*pieces, b""):
            await exchange.chunk(piece)
            await asyncio.sleep(0.01)

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request(PATH, BODY))
    answer = await client.read()
    assert answer.complete
    assert answer.body.startswith(b"data: 1\n\n")
    assert b"ha" not in answer.body.replace(b"handler", b"")
    assert b"urn:" not in answer.body
    assert last_error(answer.body)["code"] == "handler_error"
    assert last_error(answer.body)["message"] == "ValueError: mid"
    await client.send(rig.request("/healthz", method="GET"))
    assert (await client.read()).status == 200
    await rig.quiet()


async def test_an_error_event_of_the_endpoints_own_passes(rig):
    own = b'event: error\ndata: {"error": {"message": "mine"}}\n\n'

    async def behaviour(exchange):
        await exchange.answer(own, media=SSE)

    await up(rig, behaviour)
    assert (await rig.call(PATH, BODY)).body == own


async def test_an_event_is_not_held_back_longer_than_it_takes(rig):
    go = asyncio.Event()

    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        await exchange.chunk(b"data: 1\n")
        await exchange.chunk(b"\n")
        await go.wait()
        await exchange.chunk(b"")

    await up(rig, behaviour)
    client = await rig.connect()
    await client.send(rig.request(PATH, BODY))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b"data: 1\n\n")
    go.set()


@pytest.mark.parametrize("status", [200, 400])
async def test_what_is_compressed_cannot_follow_a_comment(rig, status):
    async def behaviour(exchange):
        data = gzip.compress(b"data: 1\n\n")
        media = SSE if status == 200 else "application/json"
        await exchange.answer(data, status=status, media=media, extra="Content-Encoding: gzip\r\n")

    await up(rig, None, state="idle")
    client = await rig.connect()
    await client.send(rig.request(PATH, BODY, extra="Accept-Encoding: gzip, br\r\n"))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b": waking")
    instance = await rig.instance(behaviour)
    async with asyncio.timeout(5):
        rest = await client.reader.readuntil(b"0\r\n\r\n")
    events = rest.decode().split("data: ")
    error = json.loads(events[1].partition("\n")[0])["error"]
    assert error["code"] == "endpoint_error"
    assert f"{status}, compressed (gzip)" in error["message"]
    assert len(events) == 2
    # It was asked not to.
    assert instance.requests[0].all("accept-encoding") == ["identity"]
    await rig.quiet()


async def test_a_stream_with_a_key_runs_once(rig):
    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        await exchange.chunk(b"data: 1\n\n")
        await exchange.chunk(b"")

    instance = await up(rig, behaviour)
    first = await rig.call(PATH, BODY, extra="Idempotency-Key: s1\r\n")
    assert (first.status, first.body) == (200, b"data: 1\n\n")
    again = await rig.call(PATH, BODY, extra="Idempotency-Key: s1\r\n")
    assert (again.status, again.json()["error"]["code"]) == (409, "conflict")
    # The client would ask three times in all, otherwise.
    assert again.get("x-should-retry") == "false"
    assert len(instance.requests) == 1
    other = await rig.call(PATH, BODY, extra="Idempotency-Key: s2\r\n")
    assert other.status == 200


async def test_a_stream_with_a_key_says_that_it_waits(rig):
    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        await exchange.chunk(b"data: 1\n\n")
        await exchange.chunk(b"")

    await up(rig, None, state="idle")
    client = await rig.connect()
    await client.send(rig.request(PATH, BODY, extra="Idempotency-Key: w1\r\n"))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b": waking")
    await rig.instance(behaviour)
    async with asyncio.timeout(5):
        rest = await client.reader.readuntil(b"0\r\n\r\n")
    assert b"data: 1\n\n" in rest


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_calls_with_a_key_are_those_of_calls_without(rig, stream):
    own = {"error": {"message": "short", "type": "x", "param": "user", "code": "pot"}}

    async def behaviour(exchange):
        if b"pot" in exchange.request.body:
            await exchange.answer(json.dumps(own).encode(), status=418)
            return
        problem = {
            "type": "urn:headrace:validation-failed",
            "status": 422,
            "detail": "no",
            "hint": "Say yes.",
        }
        await exchange.answer(json.dumps(problem).encode(), status=422, media="application/problem+json")

    await up(rig, behaviour)
    for what in ("pot", "problem"):
        body = json.dumps({"model": "echo", "user": what, "stream": stream}).encode()
        plain = await rig.call(PATH, body)
        keyed = await rig.call(PATH, body, extra=f"Idempotency-Key: {what}\r\n")
        replayed = await rig.call(PATH, body, extra=f"Idempotency-Key: {what}\r\n")
        assert plain.status == keyed.status == replayed.status
        assert plain.json() == keyed.json() == replayed.json()
    assert plain.json()["error"]["code"] == "validation_failed"
    assert plain.json()["error"]["message"] == "no. Say yes."


@pytest.mark.parametrize(("idempotent", "word"), [(True, None), (False, "false")])
async def test_a_gateway_that_stops_says_whether_to_send_again(rig, idempotent, word):
    async def behaviour(exchange):
        await asyncio.Event().wait()

    instance = await up(rig, behaviour, idempotent=idempotent)
    call = asyncio.create_task(rig.call(PATH, b'{"model": "echo"}'))
    await rig.until(lambda: instance.in_flight)
    await rig.gateway.stop(0.1)
    answer = await call
    assert (answer.status, answer.json()["error"]["code"]) == (503, "gateway_stopping")
    assert answer.get("x-should-retry") == word


async def test_a_stream_ends_in_openais_shape_when_the_gateway_stops(rig):
    async def behaviour(exchange):
        await exchange.begin_chunked(SSE)
        await exchange.chunk(b"data: 1\n\ndata: {")
        await asyncio.Event().wait()

    await up(rig, behaviour)
    for key in ("", "Idempotency-Key: g1\r\n"):
        client = await rig.connect()
        await client.send(rig.request(PATH, BODY, extra=key))
        await client.reader.readuntil(b"data: 1\n\n\r\n")
    await rig.gateway.stop(0.1)
    for client in rig.clients:
        size = int((await client.reader.readuntil(b"\r\n"))[:-2], 16)
        event = await client.reader.readexactly(size)
        assert last_error(event)["code"] == "gateway_stopping"
        assert await client.reader.read() == b"\r\n0\r\n\r\n"
