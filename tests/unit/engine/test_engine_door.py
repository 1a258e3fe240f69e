"""An instance that is full: turns between those who wait, and requests that run with no neighbour."""

from __future__ import annotations

import asyncio

import hr_door
import pytest
from engine_harness import request, until

ASK = {"X-Headrace-Turn": "ask"}
ALONE = {"X-Headrace-Alone": "1"}


class Gate:
    """Holds what comes until it is let go."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}

    async def __call__(self, x: str) -> str:
        self.inside.append(x)
        try:
            await self.doors.setdefault(x, asyncio.Event()).wait()
        finally:
            self.inside.remove(x)
        return x

    def let(self, x: str) -> None:
        self.doors.setdefault(x, asyncio.Event()).set()


@pytest.fixture
def at_once(monkeypatch):
    """Whoever waits is first, however short."""
    monkeypatch.setattr(hr_door, "SLICE_S", 0.0)


async def started(serve, *values, **options):
    gate = Gate()
    running = await serve(gate, kind="class", **options)
    clients = []
    for value in values:
        client = await running.connect()
        client.send(request(value))
        clients.append(client)
        await until(lambda value=value: value in gate.inside)
    return gate, running, clients


async def asks(running, value="asks"):
    """A client that has the head of a refusal and waits for its end."""
    before = len(running.server.door._waiting)
    client = await running.connect()
    client.send(request(value, headers=ASK))
    head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    assert "503" in head.split("\r\n")[0]
    assert "X-Headrace-Refused: wait" in head
    assert len(running.server.door._waiting) == before + 1
    return client


async def turn_of(client):
    assert await client.reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"


async def refused(running, value, **headers):
    answer = await running.call(value, headers=headers)
    return answer.status == 503 and answer.headers["x-headrace-refused"] == "full"


async def test_a_slot_that_becomes_free_is_kept_for_who_waited_first(serve, at_once, monkeypatch):
    monkeypatch.setattr(hr_door, "OFFER_S", 3600.0)
    gate, running, (holder,) = await started(serve, "a")
    first, second = await asks(running), await asks(running)
    gate.let("a")
    assert (await holder.answer()).status == 200
    await turn_of(first)
    assert await refused(running, "pushy"), "the slot is the first one's"
    first.send(request("b"))
    await until(lambda: gate.inside == ["b"])
    gate.let("b")
    await first.answer()
    await turn_of(second)
    second.send(request("c"))
    await until(lambda: gate.inside == ["c"])
    gate.let("c")
    assert (await second.answer()).json() == "c"
    gate.let("d")
    assert (await running.call("d")).status == 200, "nobody waits: the plain rule holds again"


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_does_not_come_in_its_turn_loses_it(serve, at_once, monkeypatch, leaves):
    monkeypatch.setattr(hr_door, "OFFER_S", 3600.0 if leaves else 0.01)
    gate, running, _ = await started(serve, "a")
    first, second, gone = await asks(running), await asks(running), await asks(running)
    gone.close()
    gate.let("a")
    await turn_of(first)
    if leaves:
        first.close()
    await turn_of(second)
    await until(lambda: not running.server.door._waiting)


async def test_a_short_wait_gives_no_slot_that_another_takes(serve, monkeypatch):
    monkeypatch.setattr(hr_door, "SLICE_S", 3600.0)
    monkeypatch.setattr(hr_door, "GAP_S", 3600.0)
    gate, running, (holder,) = await started(serve, "a")
    waits = await asks(running)
    gate.let("a")
    await holder.answer()
    holder.send(request("b"))
    await until(lambda: gate.inside == ["b"])
    monkeypatch.setattr(hr_door, "GAP_S", 0.0)
    running.server.door._gap.cancel()
    running.server.door._gap = None
    gate.let("b")
    await turn_of(waits)


async def test_nobody_waits_for_ever_nor_for_an_instance_that_goes(serve, monkeypatch):
    monkeypatch.setattr(hr_door, "TURN_S", 0.01)
    gate, running, _ = await started(serve, "a")
    await turn_of(await asks(running))
    monkeypatch.setattr(hr_door, "TURN_S", 3600.0)
    waits = await asks(running)
    draining = asyncio.create_task(running.server.drain(10))
    await turn_of(waits)
    gate.let("a")
    assert await draining


async def test_those_who_cannot_wait_are_refused_as_ever(serve, monkeypatch):
    gate, running, _ = await started(serve, "a")
    assert await refused(running, "b")
    assert await refused(running, "b", **ASK, Connection="close")
    monkeypatch.setattr(hr_door, "MAX_WAITING", 0)
    assert await refused(running, "b", **ASK)
    gate.let("a")


async def test_alone_means_that_nothing_else_runs_there(serve, monkeypatch):
    monkeypatch.setattr(hr_door, "EMPTYING_S", 3600.0)
    gate, running, (first, second) = await started(serve, "a", "b", concurrency=4)
    assert await refused(running, "alone", **ALONE)
    assert await refused(running, "c"), "it is being emptied"
    for value, client in (("a", first), ("b", second)):
        gate.let(value)
        await client.answer()
    assert await refused(running, "c")
    alone = await running.connect()
    alone.send(request("alone", headers=ALONE))
    await until(lambda: gate.inside == ["alone"])
    assert await refused(running, "c")
    assert await refused(running, "other", **ALONE)
    waits = await asks(running)
    gate.let("alone")
    assert (await alone.answer()).status == 200
    await turn_of(waits)
    gate.let("c")
    assert (await running.call("c")).status == 200


async def test_an_instance_is_not_kept_empty_for_one_that_does_not_come(serve, monkeypatch):
    monkeypatch.setattr(hr_door, "EMPTYING_S", 0.01)
    gate, running, _ = await started(serve, "a", concurrency=2)
    assert await refused(running, "alone", **ALONE)
    await until(lambda: running.server.door.limit)
    other = await running.connect()
    other.send(request("b"))
    await until(lambda: gate.inside == ["a", "b"])
    gate.let("a")
    gate.let("b")
