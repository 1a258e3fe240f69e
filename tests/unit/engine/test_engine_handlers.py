"""Calls in flight: slots, hang-ups, deadlines, failures, streams, batches, draining."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hr_secrets
import hr_server
import pytest
from engine_harness import request, until

SSE = {"Accept": "text/event-stream"}


class Gate:
    """A sync handler that stays inside until it is let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = threading.Event()

    def __call__(self, x: int = 0) -> int:
        self.inside += 1
        self.open.wait(20)
        self.inside -= 1
        return x


class AsyncGate:
    def __init__(self) -> None:
        self.inside = 0
        self.cancelled = 0
        self.open = asyncio.Event()

    async def __call__(self, x: int = 0) -> int:
        self.inside += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return x


@pytest.mark.parametrize("make", [Gate, AsyncGate])
async def test_never_more_than_concurrency_and_the_rest_is_refused_as_not_started(serve, make):
    gate = make()
    running = await serve(gate, kind="class", concurrency=2)
    busy = [await running.connect() for _ in range(2)]
    for i, client in enumerate(busy):
        client.send(request({"x": i}))
    await until(lambda: gate.inside == 2)
    answer = await running.call({"x": 9})
    assert (answer.status, answer.headers["x-headrace-refused"]) == (503, "full")
    assert answer.headers.get("connection") != "close"
    gate.open.set()
    assert [(await client.answer()).json() for client in busy] == [0, 1]
    assert (await running.call({"x": 9})).json() == 9
    assert running.server.in_flight == 0


async def test_a_hang_up_cancels_an_async_handler_and_frees_its_slot(serve):
    gate = AsyncGate()
    running = await serve(gate, kind="class")
    client = await running.connect()
    client.send(request({"x": 1}))
    await until(lambda: gate.inside)
    client.close()
    await until(lambda: running.server.in_flight == 0)
    assert gate.cancelled == 1
    gate.open.set()
    assert (await running.call({"x": 2})).json() == 2


async def test_a_hang_up_before_the_first_step_frees_the_slot_too(serve):
    running = await serve(AsyncGate(), kind="class")
    client = await running.connect()
    await client.call(["bad"])
    (connection,) = running.server.connections
    connection.data_received(request({"x": 1}))
    assert running.server.in_flight == 1
    connection.abort()
    await until(lambda: running.server.in_flight == 0)


async def test_a_hang_up_frees_a_sync_slot_only_when_the_thread_is_done(serve):
    gate = Gate()
    running = await serve(gate)
    client = await running.connect()
    client.send(request({"x": 1}))
    await until(lambda: gate.inside)
    client.close()
    await until(lambda: not running.server.connections)
    assert (await running.call({"x": 2})).headers["x-headrace-refused"] == "full"
    gate.open.set()
    await until(lambda: running.server.in_flight == 0)
    assert (await running.call({"x": 3})).json() == 3


@pytest.mark.parametrize("make", [Gate, AsyncGate])
async def test_the_deadline_is_answered_even_if_the_handler_goes_on(serve, make):
    gate = make()
    running = await serve(gate, kind="class")
    late = asyncio.create_task(running.call({"x": 1}, headers={"X-Headrace-Deadline-Ms": "30"}))
    answer = await late
    assert (answer.status, answer.json()["type"]) == (504, "urn:headrace:deadline-exceeded")
    gate.open.set()
    await until(lambda: running.server.in_flight == 0)
    assert (await running.call({"x": 3}, headers={"X-Headrace-Deadline-Ms": "20000"})).json() == 3


async def test_the_endpoints_timeout_bounds_a_request_without_a_deadline(serve):
    running = await serve(AsyncGate(), kind="class", timeout=0.03)
    assert (await running.call({"x": 1})).status == 504


async def test_a_later_shorter_deadline_is_kept(serve):
    gate = AsyncGate()
    running = await serve(gate, kind="class", concurrency=2)
    client = await running.connect()
    client.send(request({"x": 1}, headers={"X-Headrace-Deadline-Ms": "20000"}))
    await until(lambda: gate.inside)
    assert (await running.call({"x": 2}, headers={"X-Headrace-Deadline-Ms": "20"})).status == 504
    gate.open.set()
    assert (await client.answer()).json() == 1


class Custom(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Custom("no luck"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_whatever_a_handler_raises_is_500_with_its_type(serve, capfd, error, is_async):
    def fail():
        raise error

    async def fail_async():
        raise error

    running = await serve(fail_async if is_async else fail)
    answer = await running.call()
    name = type(error).__name__
    assert (answer.status, answer.json()["type"]) == (500, "urn:headrace:handler-error")
    assert answer.headers["x-headrace-exception"] == name
    assert answer.json()["detail"].startswith(name)
    assert "Traceback" not in answer.body.decode()
    logged = capfd.readouterr().err
    assert "raise error" in logged
    assert "hr_native" not in logged
    assert (await running.call()).status == 500


async def test_a_failure_does_not_tell_callers_a_secret(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(hr_secrets, "_found", [])
    given = {"TOKEN": "tok-0123456789", "PEM": "first line\nsecond line\n", "PIN": "123"}
    kept = hr_secrets.keep({"secrets": given, "secrets_dir": str(tmp_path / "s")}, "")
    token = (Path(kept[hr_secrets.VARIABLE]) / "TOKEN").read_text()

    def fail(how: str) -> object:
        if how == "key":
            return {}[given["PEM"]]
        if how == "exit":
            raise SystemExit(f"with {token}")
        if how == "cut":
            raise ValueError("x" * 3995 + token)
        if how == "output":
            return Telling()
        raise ValueError(f"{token}, {given['PIN']}")

    class Telling:
        def model_dump(self, mode: str) -> object:
            raise ValueError(token)

    running = await serve(fail)
    for how in ("raise", "key", "exit", "cut", "output"):
        told = (await running.call({"how": how})).body.decode()
        assert "***" in told, told
        assert not any(part in told for part in ("tok-0", "first line", "second line")), told
        assert ("123" in told) is (how == "raise")


def count(n: int = 3, fail_at: int = -1) -> Iterator[int]:
    for i in range(n):
        if i == fail_at:
            raise Custom("broke")
        yield i


async def count_async(n: int = 3, fail_at: int = -1) -> AsyncIterator[int]:
    for i in count(n, fail_at):
        yield i


@pytest.mark.parametrize("handler", [count, count_async])
async def test_generators_stream_lines_or_events(serve, handler):
    running = await serve(handler)
    lines = await running.call({"n": 3})
    assert (lines.headers["content-type"], lines.chunks) == ("application/x-ndjson", [b"0\n", b"1\n", b"2\n"])
    events = await running.call({"n": 2}, headers=SSE)
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.body == b"data: 0\n\ndata: 1\n\n"
    assert (await running.call({"n": 0})).body == b""
    assert running.server.in_flight == 0


@pytest.mark.parametrize("handler", [count, count_async])
async def test_a_generator_that_fails(serve, handler):
    running = await serve(handler)
    early = await running.call({"fail_at": 0})
    assert (early.status, early.headers["x-headrace-exception"]) == (500, "Custom")
    late = await running.call({"fail_at": 2})
    assert late.status == 200
    assert json.loads(late.chunks[-1])["error"]["type"] == "urn:headrace:handler-error"
    event = await running.call({"fail_at": 1}, headers=SSE)
    assert event.chunks[-1].startswith(b"event: error\ndata: {")
    assert running.server.in_flight == 0


async def test_items_that_are_not_json_end_the_stream_with_the_reason(serve):
    def handler():
        yield 1
        yield {1}

    answer = await (await serve(handler)).call()
    assert json.loads(answer.chunks[-1])["error"]["type"] == "urn:headrace:output-invalid"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_stream_is_pulled_only_as_far_as_the_client_takes_it_and_closed_when_it_leaves(
    serve, is_async
):
    made, closed = [], []
    item = "x" * 100_000

    def endless():
        try:
            while True:
                made.append(1)
                yield item
        finally:
            closed.append(threading.get_ident())

    async def endless_async():
        try:
            while True:
                made.append(1)
                yield item
        finally:
            closed.append(1)

    running = await serve(endless_async if is_async else endless)
    client = await running.connect()
    client.writer.transport.pause_reading()
    client.send(request())
    (connection,) = [await only(running)]
    await until(lambda: connection.paused)
    before = -1
    while before != len(made):
        before = len(made)
        await asyncio.sleep(0.05)
    assert before < 40
    client.writer.transport.abort()
    await until(lambda: closed and running.server.in_flight == 0)


async def only(running):
    await until(lambda: len(running.server.connections) == 1)
    (connection,) = running.server.connections
    return connection


async def test_a_deadline_in_the_middle_of_a_stream_is_its_last_line(serve):
    async def slow():
        yield 1
        await asyncio.sleep(30)

    answer = await (await serve(slow)).call(headers={"X-Headrace-Deadline-Ms": "50"})
    assert answer.chunks[0] == b"1\n"
    assert json.loads(answer.chunks[-1])["error"]["type"] == "urn:headrace:deadline-exceeded"


@pytest.mark.parametrize("is_async", [True, False])
async def test_batches_are_filled_and_results_go_to_their_requests(serve, is_async):
    sizes: list[int] = []

    def double(xs: list[int]) -> list[int]:
        sizes.append(len(xs))
        return [x * 2 for x in xs]

    async def double_async(xs: list[int]) -> list[int]:
        return double(xs)

    running = await serve(double_async if is_async else double, batch=4, wait_ms=20_000)
    answers = await asyncio.gather(*(running.call({"xs": i}) for i in range(4)))
    assert [a.json() for a in answers] == [0, 2, 4, 6]
    assert sizes == [4]
    wrong = await running.call({"xs": "no"})
    assert (wrong.status, wrong.json()["errors"][0]["loc"]) == (422, ["xs"])


async def test_a_batch_goes_when_its_time_is_up_and_leaves_out_who_left(serve):
    seen: list[list[int]] = []

    def handler(xs: list[int]) -> list[int]:
        seen.append(xs)
        return xs

    running = await serve(handler, batch=8, wait_ms=60)
    gone = await running.connect()
    gone.send(request({"xs": 1}))
    await until(lambda: running.server.in_flight == 1)
    gone.close()
    await until(lambda: running.server.in_flight == 0)
    assert (await running.call({"xs": 2})).json() == 2
    assert seen == [[2]]


@pytest.mark.parametrize("result", [[1], "ab", None, {"a": 1}])
async def test_a_batch_result_of_the_wrong_shape_fails_all(serve, result):
    running = await serve(lambda xs: result, batch=2, wait_ms=20_000)
    answers = await asyncio.gather(running.call(1), running.call(2))
    assert {a.json()["type"] for a in answers} == {"urn:headrace:output-invalid"}
    assert running.server.in_flight == 0


async def test_a_batch_that_raises_fails_all_of_it_and_the_next_goes_on(serve):
    def handler(xs):
        if 0 in xs:
            raise Custom("zero")
        return xs

    running = await serve(handler, batch=2, wait_ms=1)
    answers = await asyncio.gather(running.call(0), running.call(1))
    assert "Custom" in {a.headers.get("x-headrace-exception") for a in answers}
    assert (await running.call(5)).json() == 5


async def test_draining_ends_idle_connections_refuses_new_work_and_waits_for_what_runs(serve):
    gate = AsyncGate()
    running = await serve(gate, kind="class", concurrency=4)
    idle, busy = await running.connect(), await running.connect()
    await idle.call(["x"])
    busy.send(request({"x": 1}))
    await until(lambda: gate.inside)
    draining = asyncio.create_task(running.server.drain(20))
    assert await idle.ended() == b""
    answer = await running.call({"x": 2})
    assert (answer.headers["x-headrace-refused"], answer.headers["connection"]) == ("draining", "close")
    gate.open.set()
    assert (await busy.answer()).json() == 1
    assert await draining is True


async def test_a_request_that_was_sent_when_draining_began_is_refused_not_lost(serve):
    running = await serve(lambda x: x, concurrency=2)
    kept, busy = await running.connect(), await running.connect()
    await kept.call(1)
    await busy.call(1)
    draining = asyncio.create_task(running.server.drain(20))
    await until(lambda: running.server.draining)
    kept.send(request(2))
    answer = await kept.answer()
    assert (answer.status, answer.headers["x-headrace-refused"]) == (503, "draining")
    assert await draining is True
    assert await busy.ended() == b""


async def test_who_is_known_to_be_left_does_not_wait_for_what_may_be_on_its_way(serve, monkeypatch):
    monkeypatch.setattr(hr_server, "_ON_ITS_WAY_S", 3600.0)
    running = await serve(lambda x: x, concurrency=2)
    kept = await running.connect()
    await kept.call(1)
    draining = asyncio.create_task(running.server.drain(3600))
    await until(lambda: running.server.draining)
    kept.send(request(2))
    assert (await kept.answer()).headers["x-headrace-refused"] == "draining"
    running.server.left()
    assert await draining is True


async def test_what_outlasts_the_grace_is_cut_off_without_an_answer(serve):
    gate = AsyncGate()
    running = await serve(gate, kind="class")
    client = await running.connect()
    client.send(request({"x": 1}))
    await until(lambda: gate.inside)
    assert await running.server.drain(0.01) is False
    running.server.cut_off()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.answer()
