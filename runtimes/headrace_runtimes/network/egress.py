"""`Egress`: networks of sandboxes, each in a namespace of its own, behind one router of this host.

The router is a namespace too. All sandboxes' links end in it, it judges what they send (`rules.router`), and
one link leads from it to the machine, which sends on what comes from there under its own address. Nothing but
that link and one table is on the machine; all else is held by descriptors of this process and ends with it,
so sandboxes that outlive their host for a moment reach nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.finish import to_the_end
from headrace_runtimes.locks import MACHINE_DIR
from headrace_runtimes.network import blocks, ground, rules
from headrace_runtimes.network.policy import How, Policy, policy_of
from headrace_runtimes.network.resolver import Addresses, Asker, Resolver
from headrace_runtimes.network.space import Space
from headrace_runtimes.network.upstream import Server, Upstream
from headrace_runtimes.spec import Network, Owned, RuntimeSettings

log = logging.getLogger("headrace.runtimes")

SPARES = 2
"""Namespaces that are ready before they are asked for, joined to what was asked for last."""


@dataclass(eq=False)
class Group:
    """All sandboxes with the same allow-list."""

    number: int
    allowed: Policy
    members: int = 0
    told: dict[tuple[str, IPv4Address], float] = field(default_factory=dict)
    """Until when (monotonic) an address is allowed."""


@dataclass(eq=False)
class Slot:
    """One namespace with its link."""

    space: Space
    link: str
    address: IPv4Address
    group: Group | None = None


class Egress:
    """See `oci.network.Networks`. ``machine``: the path of another network namespace that takes the part of
    the machine's; ``servers``: resolvers to ask in place of the machine's."""

    def __init__(self, machine: str | None = None, servers: Sequence[Server] | None = None) -> None:
        self._path, self._servers = machine, servers
        self._why = "it is not open"
        self._lock = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._groups: dict[Network, Group] = {}
        self._slots: dict[str, Slot] = {}
        self._sources: dict[str, Slot] = {}
        self._spares: deque[Slot] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._resolver: Resolver | None = None
        self._router: Space | None = None
        self._machine: Space | None = None
        self._block = -1
        self._allow_host = False
        self._tag, self._lent = "", Path()
        self._likely = Network()

    def why_not(self) -> str:
        """See `Networks.why_not`."""
        return self._why if self._tag else ground.lacking()

    async def open(self, settings: RuntimeSettings, tag: str) -> None:
        """See `Networks.open`. What the machine lacks is told by `make`: other networks work without it."""
        self._allow_host, self._tag, self._lent = settings.allow_host_network, tag, _lent(settings)
        self._why = ground.lacking()
        if self._why:
            log.warning("No sandbox of this host reaches out: %s.", self._why)
            return
        try:
            await self._open(settings)
        except OSError as error:
            await asyncio.shield(self.close())
            self._why = f"{error}"
            log.warning("No sandbox of this host reaches out: %s.", error)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def _open(self, settings: RuntimeSettings) -> None:
        self._addresses = blocks.Addresses()
        machine, router = Space(self._path), Space(new=True)
        await machine.open()
        self._machine = machine
        await self._sweep()
        await router.open()
        self._router = router
        taken, self._mtu = await machine.call(ground.survey)
        found = blocks.candidates(self._tag, taken)
        uplink, self._block = await asyncio.to_thread(blocks.lock_one, found, settings.uid_lock_dir)
        # Rules first: there is no moment in which a link stands without them.
        await router.run(ground.NFT, rules.router(uplink))
        await machine.run(ground.NFT, rules.machine(self._tag, uplink))
        await ground.lay_uplink(machine, router, self._tag, uplink, self._mtu)
        await self._lend()
        if await machine.call(ground.dropped):
            log.warning(
                "Another firewall of this machine drops what is forwarded, so sandboxes may reach nothing: "
                "iptables -I FORWARD -i hrn-+ -j ACCEPT; iptables -I FORWARD -o hrn-+ -j ACCEPT."
            )
        self._resolver = Resolver(Upstream(machine, self._servers), self._asker, self._admit)
        datagrams, stream = await router.call(_listen)
        await self._resolver.open(datagrams, stream)
        self._refill()

    async def close(self) -> None:
        """See `Networks.close`."""
        self._why = "it is closed"
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
            self._filling = None
        if self._resolver is not None:
            await self._resolver.close()
            self._resolver = None
        for slot in [*self._slots.values(), *self._spares]:
            await slot.space.close()
        self._slots.clear()
        self._sources.clear()
        self._spares.clear()
        self._groups.clear()
        if self._machine is not None:
            await self._sweep()
            await self._machine.close()
            self._machine = None
        if self._router is not None:
            await self._router.close()
            self._router = None
        if self._block >= 0:
            os.close(self._block)
            self._block = -1

    async def make(self, id: str, first_id: int, network: Network) -> str | None:
        """See `Networks.make`."""
        if network.mode == "none":
            return None
        if network.mode == "host":
            if not self._allow_host:
                raise PrepareFailed(
                    "Sandboxes may not have the host's network here: set allow_host_network, or use egress."
                )
            return None
        allowed = policy_of(network)
        if self._why or self._router is None:
            raise PrepareFailed(f'network="egress" is not available here: {self._why}. Use network="none".')
        try:
            slot = self._spare(network) or await self._slot()
            self._slots[id] = slot
            if slot.group is None or slot.group is not self._groups.get(network):
                await to_the_end(self._join(slot, network, allowed))
            self._likely = network
            self._refill()
        except OSError as error:
            await asyncio.shield(self.remove(id))
            raise PrepareFailed(f"The network of {id} cannot be made: {error}.") from error
        except BaseException:
            await asyncio.shield(self.remove(id))
            raise
        return slot.space.path

    async def attach(self, id: str, pid: int) -> None:
        """See `Networks.attach`."""
        slot = self._slots[id]
        await ground.move_link(slot.space.path, f"/proc/{pid}/ns/net", slot.address)

    async def remove(self, id: str) -> None:
        """See `Networks.remove`."""
        slot = self._slots.pop(id, None)
        if slot is not None:
            await self._destroy(slot)

    def sweep_commands(self, settings: RuntimeSettings, tag: str) -> tuple[tuple[str, ...], ...]:
        """See `Networks.sweep_commands`."""
        return () if ground.lacking() else ground.sweep(tag, self._path, _lent(settings))

    async def list_owned(self) -> list[Owned]:
        """See `Networks.list_owned`."""
        if not self._tag or self._machine is None:
            return []
        found = []
        link = rules.PREFIX + self._tag
        with contextlib.suppress(OSError):
            await self._machine.run(("ip", "link", "show", link))
            found.append(Owned("interface", link))
        return [*found, *(Owned("interface", slot.link) for slot in [*self._slots.values(), *self._spares])]

    async def _sweep(self) -> None:
        assert self._machine is not None
        for command in ground.sweep(self._tag, None, self._lent):
            with contextlib.suppress(OSError):
                await self._machine.run(command)

    async def _slot(self) -> Slot:
        """A new one, of nobody. Raises ``OSError``."""
        assert self._router is not None
        address = self._addresses.take()
        slot = Slot(Space(new=True), f"s{next(self._numbers)}", address)
        try:
            await self._lend()
            await slot.space.open()
            await ground.lay_link(self._router, slot.space, slot.link, address, self._mtu)
            await slot.space.leave()
        except BaseException:
            await asyncio.shield(self._destroy(slot))
            raise
        return slot

    async def _join(self, slot: Slot, network: Network, allowed: Policy) -> None:
        """Raises ``OSError``: then it is as before."""
        assert self._router is not None
        async with self._lock:
            told = ""
            group = self._groups.get(network)
            if group is None:
                group = Group(next(self._numbers), allowed)
                told = rules.policy(group.number, allowed)
            left = rules.parted(slot.link, slot.address) if slot.group is not None else ""
            joined = rules.joined(slot.link, slot.address, group.number)
            await self._router.run(ground.NFT, left + told + joined)
            self._groups[network] = group
            group.members += 1
            old, slot.group = slot.group, group
            self._sources[str(slot.address)] = slot
            if old is not None:
                old.members -= 1
                await self._try(self._router, ground.NFT, self._unused(old))

    async def _destroy(self, slot: Slot) -> None:
        self._sources.pop(str(slot.address), None)
        group, router = slot.group, self._router
        if router is not None:
            async with self._lock:
                if group is not None:
                    slot.group = None
                    group.members -= 1
                    told = rules.parted(slot.link, slot.address) + self._unused(group)
                    await self._try(router, ground.NFT, told)
            # Before its namespace goes, with which it would go by itself, but later.
            await self._try(router, ground.BATCH, f"link delete {slot.link}\n")
            self._addresses.give_back(slot.address)
        await slot.space.close()

    def _unused(self, group: Group) -> str:
        """What takes a group away that has no members; nothing when it has."""
        if group.members:
            return ""
        self._groups = {key: known for key, known in self._groups.items() if known is not group}
        return rules.no_policy(group.number)

    def _spare(self, network: Network) -> Slot | None:
        """The best one: that is joined already."""
        group = self._groups.get(network)
        best = next((s for s in self._spares if s.group is group), None) if group is not None else None
        if best is None:
            return self._spares.popleft() if self._spares else None
        self._spares.remove(best)
        return best

    async def _try(self, space: Space, argv: Sequence[str], told: str) -> None:
        try:
            if told:
                await space.run(argv, told)
        except (OSError, RuntimeError) as error:
            # A link is gone when its other end is: that goes with its sandbox, if the kernel is quicker.
            if "Cannot find device" not in str(error):
                log.warning("Could not take away a sandbox's network: %s", error)

    async def _lend(self) -> None:
        """Let the machine pass on what is ours, also by links that have come since. Raises ``OSError``."""
        assert self._machine is not None
        switched = await self._machine.call(ground.lend, self._tag, self._lent)
        if names := [name for name in switched if not name.startswith(rules.PREFIX)]:
            log.info("Forwarding is on for %s while sandboxes reach out by it.", ", ".join(names))

    def _refill(self) -> None:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())

    async def _fill(self) -> None:
        try:
            while len(self._spares) < SPARES:
                slot = await self._slot()
                self._spares.append(slot)
                # The next one will probably be like the last.
                network = self._likely
                await to_the_end(self._join(slot, network, policy_of(network)))
        except (OSError, PrepareFailed) as error:
            log.warning("A network for a sandbox could not be made ahead: %s", error)

    def _asker(self, source: str) -> Asker | None:
        slot = self._sources.get(source)
        return slot.group if slot is not None else None

    async def _admit(self, asker: Asker, how: How, addresses: Addresses) -> None:
        """Before they are told. Raises ``OSError``."""
        assert isinstance(asker, Group)
        router = self._router
        if how == "open" or router is None:
            return
        async with self._lock:
            if not asker.members:
                return
            now = time.monotonic()
            asker.told = {key: until for key, until in asker.told.items() if until > now}
            # Half its time again: a name that is asked for often costs a command seldom.
            short = [(a, s) for a, s in addresses if asker.told.get((how, a), 0.0) < now + s]
            if not short:
                return
            longer = [(a, 2 * s) for a, s in short]
            await router.run(ground.NFT, rules.told(asker.number, how, longer))
            asker.told.update({(how, a): now + s for a, s in longer})


def _lent(settings: RuntimeSettings) -> Path:
    return (settings.uid_lock_dir or MACHINE_DIR) / "forwarding"


def _listen() -> tuple[socket.socket, socket.socket]:
    made: list[Any] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            end = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            made.append(end)
            end.bind((rules.RESOLVER, 53))
    except OSError:
        for end in made:
            end.close()
        raise
    return made[0], made[1]
