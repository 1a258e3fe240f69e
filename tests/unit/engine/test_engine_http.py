"""The HTTP parser and connection: split anywhere, pipelined, malformed, too large, unauthorised."""

from __future__ import annotations

import asyncio
import json

import hr_http
import pytest
from engine_harness import TOKEN, request
from hypothesis import given
from hypothesis import strategies as st

HEAD = b"POST / HTTP/1.1\r\nHost: i\r\nX-Headrace-Token: t0ken\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n4;x=y\r\n[1, \r\n2\r\n2]\r\n0\r\nTrailer: z\r\n\r\n"
SIZED = HEAD + b"Content-Length: 6\r\n\r\n[1, 2]"


async def echo(x):
    return x


@pytest.mark.parametrize("data", [SIZED, CHUNKED], ids=["sized", "chunked"])
async def test_a_request_may_arrive_in_any_two_pieces(serve, data):
    running = await serve(echo, kind="async_function")
    client = await running.connect()
    await client.call([0])
    (connection,) = running.server.connections
    for cut in range(len(data) + 1):
        # Straight into the parser: no timing decides where a piece ends.
        connection.data_received(data[:cut])
        connection.data_received(data[cut:])
        answer = await client.answer()
        assert (answer.status, answer.json()) == (200, [1, 2])


async def test_a_request_may_arrive_byte_by_byte(serve):
    running = await serve(echo, kind="async_function")
    client = await running.connect()
    await client.call([0])
    (connection,) = running.server.connections
    for data in (SIZED, CHUNKED):
        for i in range(len(data)):
            connection.data_received(data[i : i + 1])
        assert (await client.answer()).json() == [1, 2]


async def test_pipelined_requests_are_answered_in_order_one_at_a_time(serve):
    running_now = most = 0

    async def slow(x):
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0)
        running_now -= 1
        return x

    running = await serve(slow, kind="async_function", concurrency=4)
    client = await running.connect()
    client.send(b"".join(request(i) for i in range(50)) + CHUNKED)
    assert [(await client.answer()).json() for _ in range(51)] == [*range(50), [1, 2]]
    assert most == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /  HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: 1\nB: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n1", 400),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1", 400),
        (HEAD + b"Content-Length: +1\r\n\r\n1", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * hr_http.MAX_HEAD, 431),
        (HEAD + b"Content-Length: 9999999\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_ends(serve, data, status):
    running = await serve(echo, kind="async_function")
    client = await running.connect()
    client.send(data)
    answer = await client.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert await client.ended() == b""
    assert running.server.in_flight == 0


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "tökén"])
async def test_the_token_is_checked_before_the_body_is_read(serve, token):
    running = await serve(echo, kind="async_function")
    client = await running.connect()
    client.send(
        b"POST / HTTP/1.1\r\nX-Headrace-Token: " + token.encode() + b"\r\nContent-Length: 100\r\n\r\n"
    )
    assert (await client.answer()).status == 403


async def test_a_client_that_asks_is_told_to_go_on(serve):
    running = await serve(echo, kind="async_function")
    client = await running.connect()
    client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 6\r\n\r\n")
    assert (await client.answer()).status == 100
    client.send(b"[1, 2]")
    assert (await client.answer()).json() == [1, 2]


async def test_connection_close_and_http_1_0_end_the_connection(serve):
    running = await serve(echo, kind="async_function")
    for data in (SIZED.replace(b"Host: i", b"Connection: close"), SIZED.replace(b"HTTP/1.1", b"HTTP/1.0")):
        client = await running.connect()
        client.send(data)
        answer = await client.answer()
        assert (answer.json(), answer.headers["connection"]) == ([1, 2], "close")
        assert await client.ended() == b""


async def test_every_answer_carries_the_handlers_time_and_the_request_id_in_problems(serve):
    running = await serve(echo, kind="async_function")
    good, bad = await running.call({"x": 1}), await running.call({"x": 1}, path="/sub")
    assert float(good.headers["x-headrace-timing"]) >= 0
    assert float(bad.headers["x-headrace-timing"]) >= 0
    assert (bad.status, bad.json()["request_id"]) == (404, "r-1")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_a_chunked_body_comes_out_whole_however_it_is_cut(parts, data):
    wire = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\nrest"
    decoder = hr_http.ChunkedDecoder(10_000)
    rest = None
    at = 0
    while rest is None:
        step = data.draw(st.integers(1, len(wire) - at))
        rest = decoder.feed(wire[at : at + step])
        at += step
    assert decoder.body() == b"".join(parts)
    assert rest + wire[at:] == b"rest"


@given(st.binary(max_size=300))
def test_no_bytes_make_the_head_parser_raise_anything_else(junk):
    for data in (junk, b"GET / HTTP/1.1\r\n" + junk):
        try:
            head = hr_http.parse_head(data)
        except hr_http.BadHttp:
            continue
        assert head.method.isalpha()
        assert json.dumps(head.target.decode("latin-1"))
