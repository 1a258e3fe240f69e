"""Gateways among each other: their sockets, hints, questions, and those that are dead or hang."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from headrace import link, wire
from headrace.errors import GatewayAway, LinkRefused
from headrace.gateway import peers as module
from headrace.gateway.peers import Peers

from tests.integration.conftest import until

QUESTION = wire.ApiCall(method="GET", path="/jobs/x")


class Some:
    """Gateways' peers with one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[Peers] = []
        self.heard: dict[str, list[str]] = {}

    async def add(self, prefix: str, token: str = "t") -> Peers:
        made = Peers(self.directory, token, prefix, f"gw-{prefix}")

        async def answer(question: wire.ApiCall) -> wire.ApiReply:
            return wire.ApiReply(status=200, body=f"{prefix} {question.path}".encode())

        made.answer = answer
        made.hinted = self.heard.setdefault(prefix, []).extend
        await made.start()
        self.all.append(made)
        return made

    def socket(self, name: str, *, living: bool) -> socket.socket:
        """The socket of a gateway that is dead, or lives and never answers."""
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(self.directory / name))
        if living:
            made.listen()
        else:
            made.close()
        return made


@pytest_asyncio.fixture
async def some(tmp_path: Path) -> AsyncIterator[Some]:
    made = Some(tmp_path / "g")
    yield made
    for one in made.all:
        await one.stop()
    assert list(made.directory.iterdir()) == []


async def test_hints_reach_all_others(some: Some) -> None:
    a, b, _ = [await some.add(prefix) for prefix in ("aa", "bb", "cc")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in some.directory.iterdir()} == {0o600}
    assert stat.S_IMODE(some.directory.stat().st_mode) == 0o700

    def told() -> bool:
        a.tell("job-1")
        return "job-1" in some.heard["bb"] and "job-1" in some.heard["cc"]

    # Links take a moment; hints before that go by.
    await until(told)
    b.tell("job-2")
    b.tell("job-2")
    await until(lambda: "job-2" in some.heard["aa"] and "job-2" in some.heard["cc"])
    assert some.heard["aa"].count("job-2") == 1
    assert some.heard["bb"].count("job-2") == 0


async def test_links_that_broke_come_back(some: Some, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_S", 0.05)
    a = await some.add("aa")
    b = await some.add("bb")
    await until(lambda: a._links and b._links)
    for known in [*a._open, *b._open]:
        known.close("for the test")

    def told() -> bool:
        a.tell("job")
        return "job" in some.heard["bb"]

    await until(told)


async def test_a_request_is_asked_of_the_gateway_that_has_it(some: Some) -> None:
    a = await some.add("aa")
    await some.add("bb")
    c = await some.add("cc")
    reply = await a.ask("bb0001", QUESTION, 0.0)
    assert reply == wire.ApiReply(status=200, body=b"bb /jobs/x")
    assert not a.may_know("aa0001")
    assert not a.may_know("dd0001")
    assert await a.ask("dd0001", QUESTION, 0.0) is None
    await c.stop()
    assert await a.ask("cc0001", QUESTION, 0.0) is None


async def test_what_a_dead_gateway_left_is_removed(some: Some) -> None:
    some.directory.mkdir(0o700)
    some.socket("dd.gw-dead", living=False)
    a = await some.add("aa")
    await until(lambda: [path.name for path in some.directory.iterdir()] == ["aa.gw-aa"])
    some.socket("ee.gw-dead", living=False)
    assert await a.ask("ee0001", QUESTION, 0.0) is None
    assert [path.name for path in some.directory.iterdir()] == ["aa.gw-aa"]


async def test_one_that_hangs_keeps_nobody_waiting(some: Some, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.1)
    monkeypatch.setattr(module, "ANSWER_S", 0.1)
    some.directory.mkdir(0o700)
    hangs = some.socket("hh.gw-hangs", living=True)
    a, b = await some.add("aa"), await some.add("bb")
    with pytest.raises(GatewayAway):
        await a.ask("hh0001", QUESTION, 0.0)

    async def never(question: wire.ApiCall) -> wire.ApiReply:
        await asyncio.Event().wait()
        raise AssertionError

    b.answer = never
    with pytest.raises(GatewayAway):
        await a.ask("bb0001", QUESTION, 0.0)
    hangs.close()
    assert await a.ask("hh0001", QUESTION, 0.0) is None


async def test_strangers_are_refused(some: Some) -> None:
    a = await some.add("aa")
    with pytest.raises(LinkRefused):
        await link.connect(f"unix:{some.directory}/aa.gw-aa", role="gateway", id="bb.x", token="wrong")
    host = await link.connect(f"unix:{some.directory}/aa.gw-aa", role="host", id="bb.x", token="t")
    async with asyncio.timeout(10):
        await asyncio.shield(host.closed)
    assert not a._links


async def test_a_gateway_without_a_place_for_its_socket_serves_all_the_same(tmp_path: Path) -> None:
    alone = Peers(tmp_path / "no" / "such", "t", "aa", "gw-a")
    await alone.start()
    alone.tell("job")
    assert not alone.may_know("bb0001")
    assert await alone.ask("bb0001", QUESTION, 0.0) is None
    await alone.stop()
