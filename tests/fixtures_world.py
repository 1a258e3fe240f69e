"""A machine and the world beyond it, as two network namespaces: nothing of the real machine is touched.

The machine has no default route. In the world a server answers at addresses that stand for the public ones
(documentation ranges), for private ones and for metadata services; another resolves names.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest_asyncio
from headrace_runtimes.network import dns
from headrace_runtimes.network.space import Space

SHOP, MAIL, INNER = "198.51.100.10", "203.0.113.10", "10.20.0.5"
METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16")
NAMES = ("198.51.100.53", 53)
MACHINE = "192.0.2.2"
PORT = 8080
FIRM_S = 1.5


def _listener(kind: socket.SocketKind, port: int, address: str = "0.0.0.0") -> socket.socket:
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


@dataclass
class World:
    """``zone``: name -> addresses with their seconds; ``asked``: what the resolver was asked for."""

    machine: Space
    beyond: Space
    zone: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    """Whom the world has seen connect."""
    long: bool = False
    """Whether its resolver answers datagrams with "too long"."""
    mute: bool = False

    async def serve(self) -> list[asyncio.Server]:
        """Start everything that answers; the datagram sockets end with the loop's transports."""
        servers = []
        for space, port in ((self.beyond, PORT), (self.machine, PORT)):
            end = await space.call(_listener, socket.SOCK_STREAM, port)
            servers.append(await asyncio.start_server(self._hello, sock=end))
        stream = await self.beyond.call(_listener, socket.SOCK_STREAM, NAMES[1])
        servers.append(await asyncio.start_server(self._by_stream, sock=stream))
        end = await self.beyond.call(_listener, socket.SOCK_DGRAM, NAMES[1], NAMES[0])
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Names(self), sock=end
        )
        return servers

    def close(self) -> None:
        """The resolver's end."""
        self._transport.close()

    def answer(self, data: bytes) -> bytes:
        """What the resolver says."""
        question = dns.read_question(data)
        self.asked.append((question.name, question.kind))
        found = self.zone.get(question.name)
        if found is None:
            return dns.reply(question, dns.NXDOMAIN)
        addresses = [(IPv4Address(a), ttl) for a, ttl in found] if question.kind == dns.A else []
        return dns.reply(question, dns.NOERROR, tuple(addresses))

    async def _hello(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        writer.write(writer.get_extra_info("sockname")[0].encode())
        await writer.drain()
        writer.close()

    async def _by_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answer(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()


class _Names(asyncio.DatagramProtocol):
    def __init__(self, world: World) -> None:
        self._world = world

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._world.mute:
            return
        answer = self._world.answer(data)
        if self._world.long:
            answer = answer[:2] + bytes([answer[2] | 2]) + answer[3:]
        self._transport.sendto(answer, addr)


async def build(machine: Space, beyond: Space) -> None:
    """Links, addresses and routes."""
    answered = "".join(f"addr add {a}/32 dev lo\n" for a in (SHOP, MAIL, INNER, NAMES[0], *METADATA))
    await machine.run(
        ("ip", "-batch", "-"),
        "link set lo up\n"
        f"link add wan type veth peer name lan netns {beyond.path}\n"
        f"addr add {MACHINE}/24 dev wan\nlink set wan up\n",
    )
    await beyond.run(
        ("ip", "-batch", "-"), f"link set lo up\naddr add 192.0.2.1/24 dev lan\nlink set lan up\n{answered}"
    )
    ways = ("198.51.100.0/24", "203.0.113.0/24", "10.20.0.0/16", *METADATA)
    await machine.run(("ip", "-batch", "-"), "".join(f"route add {way} via 192.0.2.1\n" for way in ways))
    await machine.call(Path("/proc/sys/net/ipv4/ip_forward").write_text, "0")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A new one."""
    machine, beyond = Space(new=True), Space(new=True)
    servers: list[asyncio.Server] = []
    made = World(machine, beyond)
    try:
        await machine.open()
        await beyond.open()
        await build(machine, beyond)
        servers = await made.serve()
        yield made
    finally:
        for server in servers:
            server.close()
        if servers:
            made.close()
        await machine.close()
        await beyond.close()


def reach(address: str, port: int = PORT, source: str | None = None) -> str:
    """In the namespace of the calling thread: what answers there, or the name of the errno."""
    try:
        with socket.socket() as end:
            end.settimeout(FIRM_S)
            if source:
                end.bind((source, 0))
            end.connect((address, port))
            return end.recv(100).decode()
    except TimeoutError:
        return "nothing"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def query(name: str, kind: int = dns.A, *, stream: bool = False, server: str = "198.18.0.1") -> dns.Answer:
    """In the namespace of the calling thread: ask a resolver. Raises ``TimeoutError``."""
    raw = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    asked = dns.HEADER.pack(7, dns.WANTED, 1, 0, 0, 0) + raw + kind.to_bytes(2, "big") + b"\0\x01"
    question = dns.read_question(asked)
    with socket.socket(type=socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as end:
        end.settimeout(10.0)
        end.connect((server, 53))
        if stream:
            end.sendall(len(asked).to_bytes(2, "big") + asked)
            size = int.from_bytes(end.recv(2, socket.MSG_WAITALL), "big")
            return dns.read_answer(end.recv(size, socket.MSG_WAITALL), 7, question)
        end.send(asked)
        return dns.read_answer(end.recv(4096), 7, question)
