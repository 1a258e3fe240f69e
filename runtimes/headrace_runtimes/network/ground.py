"""Commands that lay links between the machine, a router and its sandboxes; what a machine lacks for it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from headrace_runtimes.network import forwarding
from headrace_runtimes.network.rules import PREFIX, RESOLVER, UPLINK, Uplink, machine_table
from headrace_runtimes.network.space import Space, run

INSIDE = "eth0"
LEAST_MTU, MTU = 1280, 1500
BATCH = ("ip", "-batch", "-")
NFT = ("nft", "-f", "-")


def lacking() -> str:
    """Why this machine can have no networks of ours; empty when it can."""
    missing = [tool for tool in ("nft", "ip") if shutil.which(tool) is None]
    if missing:
        names = {"nft": "nftables", "ip": "iproute2"}
        return f"{' and '.join(names[tool] for tool in missing)} must be installed"
    return "" if os.geteuid() == 0 else "the host does not run as root"


def sweep(tag: str, path: str | None, lent: Path) -> tuple[tuple[str, ...], ...]:
    """Commands that take away what is on the machine: all else ends with the router's namespace.

    ``lent``: the directory of `forwarding`.
    """
    # By their paths: who runs them when we are dead has no environment.
    nft, ip, nsenter = (shutil.which(tool) or tool for tool in ("nft", "ip", "nsenter"))
    there = (nsenter, f"--net={path}") if path else ()
    return (
        (*there, nft, "delete", "table", "inet", machine_table(tag)),
        (*there, ip, "link", "delete", PREFIX + tag),
        (*there, sys.executable, "-I", "-S", forwarding.__file__, str(lent), tag),
    )


def survey() -> tuple[list[str], int]:
    """Networks that this machine has routes to, and the size of packets that all its links carry. Blocks."""
    taken: list[str] = []
    for found in json.loads(run(("ip", "-j", "-4", "route", "show", "table", "all")) or "[]"):
        if found.get("dst", "default") not in ("default", "0.0.0.0/0"):
            taken.append(found["dst"])
    links = json.loads(run(("ip", "-j", "link")) or "[]")
    sizes = [link["mtu"] for link in links if "UP" in link["flags"] and "LOOPBACK" not in link["flags"]]
    return taken, max(LEAST_MTU, min([*sizes, MTU]))


def forward() -> None:
    """Pass packets on, whichever link they come in by: for a router. Blocks. Raises ``OSError``."""
    forwarding.EVERYWHERE.write_text("1")


def lend(tag: str, lent: Path) -> list[str]:
    """Pass on what comes from our router, and the answers; links that did not before. See `forwarding`."""
    return forwarding.switch_on(lent, tag, {PREFIX + tag, *forwarding.routed()})


def no_ipv6(names: Iterable[str] = ("all", "default")) -> None:
    """In the namespace of the calling thread. Nothing where the kernel has none."""
    for name in names:
        path = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if path.exists():
            path.write_text("1")


def dropped() -> bool:
    """Whether another firewall of the machine drops what is forwarded, as docker's does. Blocks."""
    try:
        return "policy drop" in run(("nft", "list", "chain", "ip", "filter", "FORWARD"))
    except OSError:
        return False


def straight() -> None:
    """Nobody says which way his packets go. In the namespace of the calling thread."""
    Path("/proc/sys/net/ipv4/conf/all/accept_source_route").write_text("0")


async def lay_uplink(machine: Space, router: Space, tag: str, uplink: Uplink, mtu: int) -> None:
    """Join the router to the machine. Raises ``OSError``."""
    link = PREFIX + tag
    await router.call(no_ipv6)
    await router.call(straight)
    await machine.run(
        BATCH, f"link add {link} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} netns {router.path}\n"
    )
    await machine.call(no_ipv6, (link,))
    await machine.run(BATCH, f"addr add {uplink.machine}/29 dev {link}\nlink set {link} up\n")
    await router.run(
        BATCH,
        f"link set lo up\naddr add {RESOLVER}/32 dev lo\n"
        f"addr add {uplink.plain}/29 dev {UPLINK}\naddr add {uplink.named}/29 dev {UPLINK}\n"
        f"link set {UPLINK} up\nroute add default via {uplink.machine}\n",
    )
    await router.call(forward)


async def lay_link(router: Space, sandbox: Space, link: str, address: IPv4Address, mtu: int) -> None:
    """Join a sandbox to its router. Raises ``OSError``."""
    await sandbox.call(no_ipv6)
    await router.run(
        BATCH,
        f"link add {link} mtu {mtu} type veth peer name {INSIDE} mtu {mtu} netns {sandbox.path}\n"
        f"link set {link} up\nroute add {address}/32 dev {link}\n",
    )
    await sandbox.run(BATCH, _inside(address))


async def move_link(old: str, new: str, address: IPv4Address) -> None:
    """From one namespace (its path) into another. Raises ``OSError``: then neither reaches anything."""
    source, target = Space(old), Space(new)
    try:
        await source.open()
        await target.open()
        await target.call(no_ipv6)
        # By a descriptor: the number of a process that ends may be another's.
        await source.run(BATCH, f"link set {INSIDE} netns {target.path}\n")
        await target.run(BATCH, _inside(address))
    finally:
        await source.close()
        await target.close()


def _inside(address: IPv4Address) -> str:
    return (
        f"link set lo up\naddr add {address}/32 dev {INSIDE}\nlink set {INSIDE} up\n"
        f"route add {RESOLVER} dev {INSIDE}\nroute add default via {RESOLVER}\n"
    )
