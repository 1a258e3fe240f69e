"""Several gateways and one real engine: they share a full instance, and what runs alone is alone for all."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest
from headrace.gateway.call import Call
from headrace.gateway.request import Request

ENGINE = str(Path(__file__).parents[3] / "platform" / "headrace" / "engines" / "python")
if ENGINE not in sys.path:
    sys.path.append(ENGINE)

import hr_server  # noqa: E402


class Work:
    """The engine's app: everything takes ``seconds``; what ran beside what is written down."""

    def __init__(self, server, seconds):
        self.server, self.seconds = server, seconds
        self.beside = []
        """Of each start: its body, and how many ran then, with itself."""

    def start(self, x):
        self.beside.append((bytes(x.body), self.server.in_flight))
        asyncio.get_running_loop().call_later(self.seconds, self.end, x)

    def end(self, x):
        self.server.release(x)
        x.respond(200, b"application/json", b"{}")


class Sink:
    """A client without a connection."""

    writable = True

    def reply(self, request, data):
        pass

    def closes(self, request):
        return False


@pytest.fixture
async def engine(rig):
    """``await engine(capacity, seconds)``: an instance of the endpoint that runs the real engine."""
    servers = []

    async def start(capacity, seconds):
        path = rig.dir / "engine.sock"
        server = hr_server.Server("token-engine", capacity, 1 << 20, 30.0)
        server.app = Work(server, seconds)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(128)
        await server.listen(sock)
        servers.append(server)
        made = type("Route", (), {"id": "engine", "path": path})
        rig.announce(made, concurrency=capacity)
        await rig.until(lambda: all(g.table.instances for g in rig.gateways))
        return server.app

    yield start
    for server in servers:
        server._server.close()
        for connection in list(server.connections):
            connection.abort()


class Load:
    """Clients in closed loops, so many at each gateway, until ``total`` answers have come."""

    def __init__(self, rig, clients, total):
        self.rig, self.total = rig, total
        self.answers = Counter()
        self.tasks = [
            asyncio.create_task(self.client(number, gateway))
            for number, gateway in enumerate(rig.gateways)
            for _ in range(clients)
        ]

    async def client(self, number, gateway):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            while self.answers.total() < self.total:
                writer.write(self.rig.request())
                assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"200"
                await reader.readexactly(2)
                self.answers[number] += 1
        finally:
            writer.close()


@pytest.mark.parametrize("capacity", [1, 4])
async def test_two_gateways_get_their_shares_of_a_full_instance(rig, engine, capacity):
    rig.endpoint()
    await rig.up()
    await rig.up()
    await engine(capacity, 0.02)
    load = Load(rig, 6 * capacity, 120 * capacity)
    await asyncio.wait_for(asyncio.gather(*load.tasks), 60)
    assert min(load.answers[n] for n in range(2)) > load.total * 0.3, load.answers
    for gateway in rig.gateways:
        await rig.until(lambda g=gateway: g.dispatcher.in_use() == (0, 0))
        (instance,) = gateway.dispatcher.state("default/echo").instances.values()
        await rig.until(lambda i=instance: (i.turn, i.asking) == (None, None))


async def test_alone_is_alone_for_all_gateways(rig, engine):
    rig.endpoint()
    await rig.up()
    await rig.up()
    work = await engine(8, 0.05)
    load = Load(rig, 8, 120)
    await rig.until(lambda: load.answers.total() > 20)
    calls = []
    for gateway in rig.gateways:
        request = Request(Sink())
        request.body = b"alone"
        call = Call(gateway.dispatcher, request, gateway.dispatcher.state("default/echo"), None, b"/", 30.0)
        call.alone = True
        gateway.dispatcher.requeue(call)
        calls.append(call)
    await rig.until(lambda: all(call.done for call in calls))
    assert [call.phase for call in calls] == ["answered"] * 2
    await asyncio.wait_for(asyncio.gather(*load.tasks), 60)
    starts = [(body, count) for body, count in work.beside if body == b"alone"]
    assert starts == [(b"alone", 1)] * 2
    for at in [n for n, (body, _) in enumerate(work.beside) if body == b"alone"]:
        if at + 1 < len(work.beside):
            assert work.beside[at + 1][1] == 1, "nothing came in beside it"


async def test_who_waits_at_a_full_instance_asks_rarely(rig, engine):
    """The rate of refusals does not grow with the time that somebody waits, nor with how many do."""
    rig.endpoint()
    await rig.up()
    await rig.up()
    await engine(2, 0.7)
    first, second = rig.gateways

    async def ask(gateway):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(rig.request())
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    tasks = [asyncio.create_task(ask(first)) for _ in range(2)]
    await rig.until(lambda: first.dispatcher.in_use()[0] == 2)
    tasks += [asyncio.create_task(ask(second)) for _ in range(4)]
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    meter = second.dispatcher.state("default/echo").meter
    assert meter.attempts["refused"] <= 12
    assert meter.attempts["answered"] == 4
