"""What sandboxes' namespaces reach, tried in a machine and a world of namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fixtures_world import INNER, MACHINE, MAIL, METADATA, NAMES, PORT, SHOP, World, query, reach
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.network import dns, ground, rules
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.network.space import Space
from headrace_runtimes.spec import Network, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks need root")
REFUSED = {"ECONNREFUSED"}
Enter = Callable[..., Awaitable[Space]]


def settings(directory: Path, **options: Any) -> RuntimeSettings:
    return RuntimeSettings(
        run_dir=directory, engine_dir=directory, python=sys.executable, zygote_bytes=0, log_dir=directory,
        uid_lock_dir=directory, **options,
    )  # fmt: skip


@pytest_asyncio.fixture
async def egress(world: World, tmp_path: Path) -> AsyncIterator[Egress]:
    made = Egress(world.machine.path, [NAMES])
    await made.open(settings(tmp_path), uuid.uuid4().hex[:10])
    assert made.why_not() == ""
    yield made
    await made.close()
    assert await world.machine.run(("nft", "list", "tables")) == ""
    assert "hrn-" not in await world.machine.run(("ip", "link"))


@pytest_asyncio.fixture
async def enter(egress: Egress) -> AsyncIterator[Enter]:
    """Makes sandboxes; tests do in their namespaces what a sandbox would."""
    made: list[Space] = []

    async def make(*allow: str, by: Egress = egress, id: str = "") -> Space:
        path = await by.make(id or f"x{len(made)}", 0, Network("egress", allow))
        assert path is not None
        space = Space(path)
        await space.open()
        made.append(space)
        return space

    yield make
    for space in made:
        await space.close()


async def test_everything_public_and_nothing_else(world: World, enter: Enter) -> None:
    inside = await enter()
    assert await inside.call(reach, SHOP) == SHOP
    assert await inside.call(reach, MAIL) == MAIL
    assert set(world.peers) == {MACHINE}, "the world sees the machine's address"
    for address in (INNER, MACHINE, "127.0.0.1", "198.18.0.1", *METADATA):
        assert await inside.call(reach, address) in REFUSED, address
    assert await world.machine.call(reach, METADATA[0]) == METADATA[0], "something does listen there"


async def test_the_way_is_known_without_a_default_route(world: World, enter: Enter) -> None:
    inside = await enter()
    assert "default" not in await world.machine.run(("ip", "route"))
    assert await inside.call(reach, "8.8.8.8") == "ENETUNREACH"


async def test_a_list_of_addresses(enter: Enter) -> None:
    inside = await enter("198.51.100.0/24")
    assert await inside.call(reach, SHOP) == SHOP
    assert await inside.call(reach, MAIL) in REFUSED
    assert await inside.call(reach, INNER) in REFUSED


async def test_names_open_the_way_to_what_they_stand_for(world: World, enter: Enter) -> None:
    world.zone |= {"shop.example": [(SHOP, 30)], "mail.example": [(MAIL, 30)], "a.mail.example": [(MAIL, 30)]}
    inside, other = await enter("shop.example"), await enter("*.mail.example")
    assert await inside.call(reach, SHOP) in REFUSED, "not before it was asked for"
    found = await inside.call(query, "Shop.example")
    assert [str(address) for address, _ in found.addresses] == [SHOP]
    assert await inside.call(reach, SHOP) == SHOP
    assert await other.call(reach, SHOP) in REFUSED, "only for who may"
    assert (await inside.call(query, "mail.example")).code == dns.NXDOMAIN
    assert (await other.call(query, "mail.example")).code == dns.NXDOMAIN
    assert (await other.call(query, "a.mail.example", stream=True)).addresses
    assert await other.call(reach, MAIL) == MAIL
    assert {name for name, _ in world.asked} == {"shop.example", "a.mail.example"}


async def test_forbidden_names_are_not_asked_of_anybody(world: World, enter: Enter) -> None:
    inside = await enter("shop.example")
    for kind in (dns.A, dns.AAAA, 16, dns.HTTPS, dns.ANY):
        assert (await inside.call(query, "secret.thief.example", kind)).code == dns.NXDOMAIN
    assert world.asked == []
    world.zone["metadata.google.internal"] = [(SHOP, 30)]
    everything = await enter()
    assert (await everything.call(query, "metadata.google.internal")).code == dns.NXDOMAIN


async def test_names_that_lead_inside(world: World, enter: Enter) -> None:
    world.zone |= {
        "rebound.example": [(INNER, 1), (METADATA[0], 1), ("127.0.0.1", 1), (SHOP, 1)],
        "x.wild.example": [(INNER, 30)], "db.internal": [(INNER, 30), (METADATA[0], 30)],
    }  # fmt: skip
    everything, wild, named = await enter(), await enter("*.wild.example"), await enter("db.internal")
    found = await everything.call(query, "rebound.example")
    assert [str(address) for address, _ in found.addresses] == [SHOP]
    assert (await wild.call(query, "x.wild.example")).addresses == ()
    found = await named.call(query, "db.internal")
    assert [str(address) for address, _ in found.addresses] == [INNER]
    assert await named.call(reach, INNER) == INNER, "who is named himself is reached"
    assert await named.call(reach, METADATA[0]) in REFUSED


async def test_the_machine_itself_when_it_is_named(world: World, enter: Enter) -> None:
    public, named = await enter("*"), await enter("*", MACHINE)
    for entry in ("192.0.2.0/24", "0.0.0.0/0"):
        wide = await enter(entry)
        assert await wide.call(reach, MACHINE) in REFUSED, "a network does not name it"
        assert await wide.call(reach, INNER) in REFUSED
        assert (await wide.call(reach, SHOP) == SHOP) == (entry == "0.0.0.0/0")
    assert await public.call(reach, MACHINE) in REFUSED
    assert await named.call(reach, MACHINE) == MACHINE
    assert await named.call(reach, SHOP) == SHOP
    assert await public.call(reach, MACHINE) in REFUSED


async def test_metadata_is_never_allowed(enter: Enter) -> None:
    inside = await enter("0.0.0.0/0", "10.0.0.0/8", "169.254.0.0/16", *METADATA)
    for address in METADATA:
        assert await inside.call(reach, address) in REFUSED
    assert await inside.call(reach, INNER) == INNER


async def test_neighbours_do_not_reach_each_other(egress: Egress, enter: Enter) -> None:
    one, two = await enter("198.18.0.0/15"), await enter("198.18.0.0/15")
    (address,) = [
        w for w in (await two.run(("ip", "-4", "-o", "addr", "show", "eth0"))).split() if "/32" in w
    ]
    other = address.partition("/")[0]
    listener = await two.call(_listen, PORT)
    assert await two.call(_connects, other), "it does listen"
    assert await one.call(reach, other) in REFUSED
    listener.close()


async def test_neighbours_of_another_host_do_not_either(world: World, egress: Egress, enter: Enter) -> None:
    directory = Path(tempfile.mkdtemp(prefix="hrn-"))
    other = Egress(world.machine.path, [NAMES])
    try:
        await other.open(settings(directory), "other")
        assert other.why_not() == ""
        one, two = await enter("198.0.0.0/8"), await enter("198.0.0.0/8", by=other)
        assert await one.call(reach, SHOP) == SHOP
        assert await two.call(reach, SHOP) == SHOP
        links = await world.machine.run(("ip", "-4", "-o", "addr"))
        machines = [line.split()[3].split("/")[0] for line in links.splitlines() if "hrn-" in line]
        assert len(set(machines)) == 2
        for end in machines:
            prefix, _, last = end.rpartition(".")
            for number in (int(last) + 1, int(last) + 2):
                assert await two.call(reach, f"{prefix}.{number}") in REFUSED
    finally:
        await other.close()
        shutil.rmtree(directory)
    assert await one.call(reach, SHOP) == SHOP, "the other's end is not ours"


async def test_the_machine_does_not_reach_in(world: World, egress: Egress, enter: Enter) -> None:
    inside = await enter()
    listener = await inside.call(_listen, PORT)
    await world.machine.run(("ip", "route", "add", "198.18.0.0/16", "dev", rules.PREFIX + egress._tag))
    address = await address_of(inside)
    assert await world.machine.call(reach, address) in {"nothing", "EHOSTUNREACH", "ECONNREFUSED"}
    listener.close()


async def test_false_source_addresses_are_dropped(world: World, enter: Enter) -> None:
    inside, neighbour = await enter(), await enter()
    others = await address_of(neighbour)
    for false in ("198.51.100.77", "192.0.2.99", others):
        # No sandbox has the right to do this; here root does it.
        await inside.run(("ip", "addr", "add", f"{false}/32", "dev", "eth0"))
        assert await inside.call(reach, SHOP, PORT, false) == "nothing"
    assert world.peers == []


async def test_there_is_no_ipv6(enter: Enter) -> None:
    inside = await enter("0.0.0.0/0")
    assert await inside.run(("ip", "-6", "addr")) == ""
    assert (await inside.call(query, "x.example", dns.AAAA)).code == dns.NXDOMAIN
    everything = await enter()
    assert (await everything.call(query, "x.example", dns.AAAA)).code == dns.NOERROR


async def test_addresses_of_names_end_and_are_renewed(world: World, egress: Egress, enter: Enter) -> None:
    world.zone["shop.example"] = [(SHOP, 1)]
    inside = await enter("shop.example")
    await inside.call(query, "shop.example")
    assert egress._router is not None
    listed = await egress._router.run(("nft", "list", "table", "inet", rules.TABLE))
    assert f"{SHOP} timeout 2m10s" in listed
    # What ends is renewed by the next question, whatever is left of it.
    group = next(iter(egress._groups.values()))
    group.told.clear()
    await inside.call(query, "shop.example")
    assert await inside.call(reach, SHOP) == SHOP


async def test_long_answers_and_no_answers(world: World, enter: Enter) -> None:
    world.zone["long.example"] = [(f"198.51.100.{n}", 60) for n in range(100, 200)]
    world.long = True
    inside = await enter()
    found = await inside.call(query, "long.example", stream=True)
    assert len(found.addresses) == 100
    assert (await inside.call(query, "long.example")).truncated
    world.mute = True
    assert (await inside.call(query, "other.example")).code == dns.SERVFAIL


async def test_what_a_policy_left_nobody_inherits(world: World, egress: Egress, enter: Enter) -> None:
    world.zone["shop.example"] = [(SHOP, 300)]
    inside = await enter("shop.example", id="first")
    await inside.call(query, "shop.example")
    await egress.remove("first")
    assert await inside.call(reach, SHOP) == "ENETUNREACH", "its link is gone"
    for _ in range(4):
        await asyncio.sleep(0)
    again = await enter("shop.example")
    again_too = await enter(SHOP)
    assert await again_too.call(reach, SHOP) == SHOP
    assert (await again.call(query, "shop.example")).addresses
    assert await again.call(reach, SHOP) == SHOP


async def test_two_hundred_come_and_go(world: World, egress: Egress) -> None:
    router = egress._router
    assert router is not None

    async def state() -> tuple[int, int, str]:
        while egress._filling is not None and not egress._filling.done():
            await asyncio.sleep(0.01)
        listed = await router.run(("nft", "list", "map", "inet", rules.TABLE, "policies"))
        links = len((await router.run(("ip", "-o", "link"))).splitlines())
        return len(os.listdir("/proc/self/fd")), links, str(listed.count("goto"))

    for number in range(4):
        await egress.make(f"w{number}", 0, Network("egress", ("a.example",)))
    for number in range(4):
        await egress.remove(f"w{number}")
    before = await state()
    for number in range(200):
        await egress.make(f"x{number}", 0, Network("egress", ("a.example", f"198.51.100.{number % 2}")))
        await egress.remove(f"x{number}")
    assert await state() == before
    chains = await router.run(("nft", "list", "chains"))
    assert chains.count("chain p") <= 2, "of the spares only"


async def test_cancelled_in_the_middle(egress: Egress) -> None:
    for number in range(12):
        task = asyncio.create_task(egress.make(f"x{number}", 0, Network("egress", (f"n{number}.example",))))
        await asyncio.sleep(0.002 * number)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await egress.remove(f"x{number}")
    while egress._filling is not None and not egress._filling.done():
        await asyncio.sleep(0.01)
    assert egress._router is not None
    listed = await egress._router.run(("nft", "list", "map", "inet", rules.TABLE, "policies"))
    assert listed.count("goto") == len(egress._spares)


async def test_the_watchdogs_commands_take_it_away(world: World, tmp_path: Path) -> None:
    egress = Egress(world.machine.path, [NAMES])
    await egress.open(settings(tmp_path), "dead")
    # A predecessor's remains stop nobody either.
    second = Egress(world.machine.path, [NAMES])
    await second.open(settings(tmp_path), "dead")
    assert second.why_not() == ""
    for command in second.sweep_commands(settings(tmp_path), "dead"):
        # As the watchdog does: without an environment.
        await asyncio.to_thread(subprocess.run, command, env={}, check=True, capture_output=True)
    assert await world.machine.run(("nft", "list", "tables")) == ""
    assert "hrn-" not in await world.machine.run(("ip", "link"))
    assert await forwards(world) == {}
    await egress.close()
    await second.close()


async def forwards(world: World) -> dict[str, str]:
    """What of the machine passes packets on."""
    names = ("all", "default", "wan", *(f"hrn-{name}" for name in ("one", "two", "dead")))

    def look() -> dict[str, str]:
        places = {name: Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding") for name in names}
        found = {name: place.read_text().strip() for name, place in places.items() if place.exists()}
        return {name: value for name, value in found.items() if value != "0"}

    return await world.machine.call(look)


async def test_the_machine_forwards_only_where_and_while_it_must(world: World, tmp_path: Path) -> None:
    async def opened(tag: str) -> Egress:
        made = Egress(world.machine.path, [NAMES])
        await made.open(settings(tmp_path), tag)
        assert made.why_not() == ""
        return made

    one, two = await opened("one"), await opened("two")
    assert await forwards(world) == {"wan": "1", "hrn-one": "1", "hrn-two": "1"}
    await one.close()
    assert await forwards(world) == {"wan": "1", "hrn-two": "1"}, "another host needs it still"
    # A link that comes later.
    batch = "link add late type veth peer name later\nlink set later up\n"
    batch += "addr add 10.77.0.1/24 dev late\nlink set late up\n"
    await world.machine.run(ground.BATCH, batch)
    late = Path("/proc/sys/net/ipv4/conf/late/forwarding")
    for number in range(4):
        await two.make(f"x{number}", 0, Network("egress", (SHOP,)))
    assert await world.machine.call(late.read_text) == "1\n"
    await two.close()
    assert await forwards(world) == {}
    assert await world.machine.call(late.read_text) == "0\n"
    # What somebody else wants is left alone.
    one = await opened("one")
    await world.machine.call(ground.forward)
    await one.close()
    assert (await forwards(world))["all"] == "1"
    assert (await forwards(world))["wan"] == "1"


async def test_other_modes(world: World, egress: Egress, tmp_path: Path) -> None:
    assert await egress.make("n", 0, Network("none")) is None
    with pytest.raises(PrepareFailed, match="allow_host_network"):
        await egress.make("h", 0, Network("host"))
    with pytest.raises(PrepareFailed, match="no IPv6"):
        await egress.make("six", 0, Network("egress", ("2001:db8::1",)))
    with pytest.raises(PrepareFailed, match="cannot be allowed"):
        await egress.make("bad", 0, Network("egress", ("http://x/",)))
    open_minded = Egress(world.machine.path)
    await open_minded.open(settings(tmp_path, allow_host_network=True), "open")
    assert await open_minded.make("h", 0, Network("host")) is None
    await open_minded.close()


async def test_a_machine_without_the_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ground.lacking() == "nftables and iproute2 must be installed"
    egress = Egress()
    await egress.open(settings(tmp_path), "none")
    assert await egress.make("n", 0, Network("none")) is None
    with pytest.raises(PrepareFailed, match="nftables"):
        await egress.make("e", 0, Network())
    await egress.close()


async def address_of(space: Space) -> str:
    """Its own."""
    words = (await space.run(("ip", "-4", "-o", "addr", "show", "eth0"))).split()
    return next(word for word in words if "/32" in word).partition("/")[0]


def _listen(port: int) -> socket.socket:
    return socket.create_server(("0.0.0.0", port))


def _connects(address: str) -> bool:
    with socket.create_connection((address, PORT), 3):
        return True
