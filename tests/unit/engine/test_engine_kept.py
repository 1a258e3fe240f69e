"""Answers that are kept for who asks again: also of work whose client has gone, and within bounds."""

from __future__ import annotations

import asyncio
import threading

import hr_kept
import pytest
from engine_harness import request, until

KEEP = {"X-Headrace-Keep": "1"}


def recalled(running, name="r-1"):
    return running.call(method="GET", headers={"X-Headrace-Recall": name, "X-Headrace-Request-Id": name})


async def test_an_answer_is_given_again_and_nothing_runs_twice(serve):
    ran = []

    def add(x: int) -> int:
        ran.append(x)
        return x + 1

    running = await serve(add)
    assert (await recalled(running)).status == 404
    assert (await running.call({"x": 1}, headers=KEEP)).json() == 2
    again = await recalled(running)
    assert (again.status, again.json()) == (200, 2)
    assert again.headers["content-type"] == "application/json"
    assert (await recalled(running, "r-2")).status == 404
    assert ran == [1]


async def test_nothing_is_kept_of_requests_that_do_not_ask_for_it_or_fail(serve):
    def fail(x: int) -> int:
        if x:
            raise ValueError("no")
        return x

    running = await serve(fail)
    assert (await running.call({"x": 0})).status == 200
    assert (await recalled(running)).status == 404
    assert (await running.call({"x": 1}, headers=KEEP)).status == 500
    assert (await recalled(running)).status == 404


async def test_a_thread_that_outlives_its_connection_is_waited_for(serve):
    go, inside = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        go.wait(20)
        return "done"

    running = await serve(slow)
    client = await running.connect()
    try:
        client.send(request(headers=KEEP))
        await until(inside.is_set)
        client.close()
        found = await recalled(running)
        assert (found.status, found.headers["x-headrace-refused"]) == (202, "running")
    finally:
        go.set()
    await until(lambda: running.server.in_flight == 0)
    await asyncio.sleep(0)
    found = await recalled(running)
    assert (found.status, found.json()) == (200, "done")


async def test_an_instance_is_not_given_up_for_work_that_somebody_waits_for(serve, monkeypatch):
    go, inside = threading.Event(), threading.Event()

    def slow() -> str:
        inside.set()
        go.wait(20)
        return "done"

    running = await serve(slow)
    looks, stuck = [], []
    running.server.cancel_grace_s = 0.05
    running.server.stuck = lambda: stuck.append(True)
    overdue = running.server._overdue
    monkeypatch.setattr(running.server, "_overdue", lambda x: (looks.append(x), overdue(x)))
    client = await running.connect()
    try:
        client.send(request(headers=KEEP))
        await until(inside.is_set)
        assert (await recalled(running)).status == 202
        client.close()
        await until(lambda: len(looks) >= 3)
        assert not stuck
        monkeypatch.setattr(hr_kept, "WANTED_S", 0.0)
        await until(lambda: stuck)
    finally:
        go.set()
    await until(lambda: running.server.in_flight == 0)
    await asyncio.sleep(0)
    assert running.server.kept._asked == {}


async def test_cancelled_work_leaves_no_answer(serve):
    inside = asyncio.Event()

    async def slow() -> str:
        inside.set()
        await asyncio.sleep(30)
        return "done"

    running = await serve(slow)
    client = await running.connect()
    client.send(request(headers=KEEP))
    async with asyncio.timeout(5):
        await inside.wait()
    client.close()
    await until(lambda: running.server.in_flight == 0)
    await asyncio.sleep(0)
    assert (await recalled(running)).status == 404


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hr_kept, "MAX_BYTES", 10)
    kept = hr_kept.Kept()
    for name in ("a", "b", "c"):
        kept.put(name, 200, b"", b"1234", b"")
    assert list(kept._answers) == ["b", "c"]
    kept.put("c", 200, b"", b"12", b"")
    kept.put("d", 200, b"", b"x" * (hr_kept.MAX_BODY + 1), b"")
    assert (list(kept._answers), kept._bytes) == (["b", "c"], 6)
    monkeypatch.setattr(hr_kept, "MAX_ANSWERS", 1)
    kept.put("e", 200, b"", b"", b"")
    assert list(kept._answers) == ["e"]
