"""The resolver that sandboxes ask: it knows who asks, answers what he may know, and opens the way first.

A proxy, not an onlooker: an address is allowed before it is told, so nobody connects too early; what is not
allowed is not asked of anybody, so names carry nothing out; and the machine's own resolver (which may be at
a metadata address) is never spoken to by a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from headrace_runtimes.network import dns, upstream
from headrace_runtimes.network.policy import How, Policy, normal

log = logging.getLogger("headrace.runtimes")

AT_ONCE, AT_ONCE_EACH = 1024, 64
"""Questions in work, of all sandboxes and of one; more get no answer, and are asked again."""
STREAMS = 256
STREAM_S = 10.0
TOLD_S = 300
"""No address is told for longer."""
HELD_S = 60
"""An address stays allowed at least so long: who has just been told may still connect."""

Addresses = tuple[tuple[IPv4Address, int], ...]


class Asker(Protocol):
    """Who asks: the policy that holds for him."""

    @property
    def allowed(self) -> Policy:
        """What he may reach."""
        ...


Find = Callable[[str], Asker | None]
Admit = Callable[[Asker, How, Addresses], Awaitable[None]]


class Resolver:
    """``find``: who has this address; ``admit``: let him reach these; ``hosts``: names known here."""

    def __init__(
        self, ask: upstream.Upstream, find: Find, admit: Admit, hosts: Path = upstream.HOSTS
    ) -> None:
        self._ask, self._find, self._admit, self._hosts = ask, find, admit, hosts
        self._tasks: set[asyncio.Task[None]] = set()
        self._each: Counter[str] = Counter()
        self._streams = 0
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    async def open(self, datagrams: socket.socket, stream: socket.socket) -> None:
        """Serve at these; they are closed by `close`."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=datagrams)
        self._server = await asyncio.start_server(self._stream, sock=stream)

    async def close(self) -> None:
        """Leave nothing."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def answer(self, data: bytes, source: str) -> bytes | None:
        """The answer to a message from this address; None: none."""
        try:
            question = dns.read_question(data)
        except dns.Malformed:
            return None
        asker = self._find(source)
        if asker is None:
            return dns.reply(question, dns.REFUSED)
        how = asker.allowed.how(question.name)
        own = _own_answer(question, how)
        if own is not None or how is None:
            return own
        try:
            if question.kind == dns.A:
                return await self._addresses(question, asker, how)
            raw, _ = await self._ask.ask(question)
            return dns.under(raw, question.id)
        except (upstream.NoAnswer, OSError):
            return dns.reply(question, dns.SERVFAIL)

    async def _addresses(self, question: dns.Question, asker: Asker, how: How) -> bytes:
        found: Addresses
        known = await asyncio.to_thread(self._from_hosts, question.name)
        if known:
            code, found = dns.NOERROR, tuple((address, upstream.HOSTS_TTL_S) for address in known)
        else:
            _, said = await self._ask.ask(question)
            code, found = said.code, said.addresses
        told = tuple(
            (address, min(ttl, TOLD_S)) for address, ttl in found if asker.allowed.reaches(how, address)
        )
        if told:
            await self._admit(asker, how, tuple((a, max(HELD_S, ttl) + 5) for a, ttl in told))
        return dns.reply(question, code, told)

    def _from_hosts(self, name: str) -> list[IPv4Address]:
        try:
            return upstream.from_hosts(self._hosts.read_text(errors="replace"), normal(name) or "")
        except OSError:
            return []

    def datagram(self, data: bytes, peer: tuple[str, int], send: Callable[[bytes], None]) -> None:
        """One has come."""
        source = peer[0]
        if len(self._tasks) >= AT_ONCE or self._each[source] >= AT_ONCE_EACH:
            return

        async def work() -> None:
            answer = await self.answer(data, source)
            if answer is not None:
                send(dns.cut(answer))

        self._each[source] += 1
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._done(task, source))

    def _done(self, task: asyncio.Task[None], source: str) -> None:
        self._parted(task, source)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a question of a sandbox failed", exc_info=error)

    def _parted(self, task: asyncio.Task[None], source: str) -> None:
        self._tasks.discard(task)
        self._each[source] -= 1
        if not self._each[source]:
            del self._each[source]

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        if self._streams >= STREAMS or self._each[source] >= AT_ONCE_EACH:
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._streams += 1
        self._each[source] += 1
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(STREAM_S):
                    while True:
                        size = int.from_bytes(await reader.readexactly(2), "big")
                        answer = await self.answer(await reader.readexactly(size), source)
                        if answer is None:
                            break
                        writer.write(len(answer).to_bytes(2, "big") + answer)
                        await writer.drain()
        finally:
            self._streams -= 1
            self._parted(task, source)
            writer.close()


def _own_answer(question: dns.Question, how: How | None) -> bytes | None:
    """What is answered without asking anybody."""
    if question.name == "localhost" or question.name.endswith(".localhost"):
        local = ((IPv4Address("127.0.0.1"), TOLD_S),) if question.kind == dns.A else ()
        return dns.reply(question, dns.NOERROR, local)
    if how is None:
        return dns.reply(question, dns.NXDOMAIN)
    if question.kind in (dns.ANY, dns.AXFR):
        return dns.reply(question, dns.NOTIMP)
    if question.kind in (dns.AAAA, dns.SVCB, dns.HTTPS):
        # Sandboxes have no IPv6, and hints about addresses would pass by the rules.
        return dns.reply(question, dns.NOERROR)
    return None


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._resolver.datagram(data, addr, lambda answer: self._transport.sendto(answer, addr))
