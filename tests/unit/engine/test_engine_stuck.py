"""Cancelled work that does not stop: its slot, its grace, and when the instance is given up for it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from engine_harness import request, until


class Stubborn:
    """A sync handler that stays inside until it is let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = threading.Event()

    def __call__(self, x: int = 0) -> int:
        self.inside += 1
        self.open.wait(20)
        return x


class StubbornAsync:
    """Takes its cancellation for nothing."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = asyncio.Event()

    async def __call__(self, x: int = 0) -> int:
        self.inside += 1
        while not self.open.is_set():
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                continue
        return x


async def start(serve, gate, **options):
    running = await serve(gate, kind="class", **options)
    told = []
    running.server.cancel_grace_s = 0.02
    running.server.stuck = lambda: told.append(running.server.in_flight)
    return running, told


async def abandoned(running, gate, value):
    before = gate.inside
    client = await running.connect()
    client.send(request(value))
    await until(lambda: gate.inside > before)
    client.close()


@pytest.mark.parametrize("make", [Stubborn, StubbornAsync])
async def test_work_that_goes_on_after_its_cancellation_gives_the_instance_up(serve, make):
    gate = make()
    running, told = await start(serve, gate)
    await abandoned(running, gate, {"x": 1})
    await until(lambda: told)
    assert told[0] == 1, "its slot is taken until its work ends"
    answer = await running.call({"x": 2})
    assert (answer.status, answer.headers["x-headrace-refused"]) == (503, "draining")
    gate.open.set()
    await until(lambda: running.server.in_flight == 0)


async def test_a_zombie_waits_until_nobody_else_runs(serve):
    gate = Stubborn()
    running, told = await start(serve, gate, concurrency=2)
    neighbour = await running.connect()
    neighbour.send(request({"x": 7}))
    await until(lambda: gate.inside == 1)
    await abandoned(running, gate, {"x": 1})
    await until(lambda: running.server._zombies)
    assert told == []
    assert (await running.call({"x": 2})).headers["x-headrace-refused"] == "full"
    gate.open.set()
    assert (await neighbour.answer()).json() == 7
    await until(lambda: running.server.in_flight == 0)


async def test_the_last_neighbour_that_ends_gives_the_instance_up(serve):
    stay, go = threading.Event(), threading.Event()
    inside = []

    def handler(x: int) -> int:
        inside.append(x)
        (stay if x == 1 else go).wait(20)
        return x

    running = await serve(handler, concurrency=2)
    told = []
    running.server.cancel_grace_s = 0.02
    running.server.stuck = lambda: told.append(running.server.in_flight)
    zombie, neighbour = await running.connect(), await running.connect()
    zombie.send(request({"x": 1}))
    neighbour.send(request({"x": 2}))
    await until(lambda: sorted(inside) == [1, 2])
    zombie.close()
    await until(lambda: running.server._zombies)
    assert told == []
    go.set()
    assert (await neighbour.answer()).json() == 2
    await until(lambda: told)
    assert told[0] == 1
    stay.set()
    await until(lambda: running.server.in_flight == 0)


async def test_a_handler_that_returns_within_the_grace_costs_nothing(serve):
    gate = Stubborn()
    running, told = await start(serve, gate)
    running.server.cancel_grace_s = 20.0
    await abandoned(running, gate, {"x": 1})
    await until(lambda: not running.server.connections)
    gate.open.set()
    await until(lambda: running.server.in_flight == 0)
    assert (await running.call({"x": 2})).json() == 2
    assert told == []


async def test_the_deadline_counts_like_a_hang_up(serve):
    gate = Stubborn()
    running, told = await start(serve, gate)
    answer = await running.call({"x": 1}, headers={"X-Headrace-Deadline-Ms": "20"})
    assert answer.status == 504
    await until(lambda: told)
    gate.open.set()
    await until(lambda: running.server.in_flight == 0)


async def test_a_generator_and_a_batch_that_do_not_return(serve):
    gate = threading.Event()
    inside = []

    def stream(x: int = 0):
        inside.append(x)
        gate.wait(20)
        yield x

    def batch(xs: list[int]) -> list[int]:
        inside.extend(xs)
        gate.wait(20)
        return xs

    for running in (
        await serve(stream, kind="generator"),
        await serve(batch, batch=2, concurrency=1),
    ):
        told = []
        running.server.cancel_grace_s = 0.02
        running.server.stuck = lambda told=told: told.append(True)
        inside.clear()
        client = await running.connect()
        client.send(request(1))
        await until(lambda: inside)
        client.close()
        await until(lambda told=told: told)
    gate.set()
    await until(lambda: running.server.in_flight == 0)


async def test_what_comes_while_the_drain_begins_is_refused_not_reset(serve):
    running = await serve(lambda x=0: x)
    client = await running.connect()
    assert (await client.call({"x": 1})).json() == 1
    drain = asyncio.create_task(running.server.drain(5.0))
    client.send(request({"x": 2}))
    answer = await client.answer()
    assert (answer.status, answer.headers["x-headrace-refused"]) == (503, "draining")
    assert await drain
