"""Asks the machine's own resolvers, with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from headrace_runtimes.network import dns
from headrace_runtimes.network.space import Space

TRY_S = 2.0
TRIES = 2
MOST_BYTES = 65_535
RESOLV, HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")
HOSTS_TTL_S = 60
Server = tuple[str, int]
_random = random.SystemRandom()


class NoAnswer(Exception):
    """No resolver has answered in time."""


class Upstream:
    """``servers``: (address, port); None: those of the machine, looked up anew for each question."""

    def __init__(self, machine: Space, servers: Sequence[Server] | None = None) -> None:
        self._machine, self._servers = machine, servers

    async def ask(self, question: dns.Question) -> tuple[bytes, dns.Answer]:
        """The first sound answer, as it came and as it was read. Raises `NoAnswer`."""
        servers = self._servers
        if servers is None:
            servers = await asyncio.to_thread(_servers_of_machine)
        for server in list(servers)[:3] * TRIES:
            with contextlib.suppress(OSError, TimeoutError, dns.Malformed, EOFError):
                async with asyncio.timeout(TRY_S):
                    data, answer = await self._by_datagram(server, question)
                    if answer.truncated:
                        data, answer = await self._by_stream(server, question)
                    if answer.code != dns.SERVFAIL:
                        return data, answer
        raise NoAnswer(question.name)

    async def _socket(self, server: Server, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET

        def make() -> socket.socket:
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if kind == socket.SOCK_DGRAM:
                try:
                    # Connected: only this server's answers arrive.
                    made.connect(server)
                except OSError:
                    made.close()
                    raise
            return made

        return await self._machine.call(make)

    async def _by_datagram(self, server: Server, question: dns.Question) -> tuple[bytes, dns.Answer]:
        loop = asyncio.get_running_loop()
        id = _random.randrange(1 << 16)
        with await self._socket(server, socket.SOCK_DGRAM) as end:
            await loop.sock_sendall(end, dns.ask(id, question))
            while True:
                data = await loop.sock_recv(end, MOST_BYTES)
                # What does not answer is not worth giving up for: somebody may be guessing.
                with contextlib.suppress(dns.Malformed):
                    return data, dns.read_answer(data, id, question)

    async def _by_stream(self, server: Server, question: dns.Question) -> tuple[bytes, dns.Answer]:
        loop = asyncio.get_running_loop()
        id = _random.randrange(1 << 16)
        with await self._socket(server, socket.SOCK_STREAM) as end:
            await loop.sock_connect(end, server)
            asked = dns.ask(id, question)
            await loop.sock_sendall(end, len(asked).to_bytes(2, "big") + asked)
            size = int.from_bytes(await _exactly(end, 2), "big")
            data = await _exactly(end, size)
        return data, dns.read_answer(data, id, question)


def from_hosts(text: str, name: str) -> list[IPv4Address]:
    """What a file like ``/etc/hosts`` says of a name."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].lower().split()
        if name in words[1:]:
            with contextlib.suppress(ValueError):
                address = ip_address(words[0])
                if isinstance(address, IPv4Address):
                    found.append(address)
    return found


def servers_of(text: str) -> list[Server]:
    """The resolvers that a file like ``/etc/resolv.conf`` names."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ip_address(words[1].partition("%")[0])
                found.append((words[1], 53))
    return found or [("127.0.0.1", 53)]


def _servers_of_machine() -> list[Server]:
    try:
        return servers_of(RESOLV.read_text(errors="replace"))
    except OSError:
        return servers_of("")


async def _exactly(end: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(end, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
