"""Docker makes a container's network namespace itself: what was made for it elsewhere moves there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from headrace_runtimes.network.ground import BATCH, no_ipv6
from headrace_runtimes.network.space import Space


async def move_links(path: str, pid: int) -> None:
    """Move all links of the namespace at ``path``, with addresses and routes, into that of ``pid``.

    Raises ``OSError``: some may have been moved then.
    """
    old, new = Space(path), Space(f"/proc/{pid}/ns/net")
    try:
        await old.open()
        await new.open()
        addresses = json.loads(await old.run(("ip", "-j", "-4", "address", "show")) or "[]")
        routes = json.loads(await old.run(("ip", "-j", "-4", "route", "show")) or "[]")
        names = links_of(addresses)
        await new.call(no_ipv6)
        # By a descriptor: the number of a process that ends may be another's.
        there = f"/proc/{os.getpid()}/fd/{new.fd}"
        await old.run(BATCH, "".join(f"link set {name} netns {there}\n" for name in names))
        await new.run(BATCH, again(addresses, routes))
    finally:
        await old.close()
        await new.close()


def links_of(addresses: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all links but the loopback, from ``ip -j address``."""
    return [str(link["ifname"]) for link in addresses if "LOOPBACK" not in link.get("flags", ())]


def again(addresses: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]]) -> str:
    """A batch for ``ip`` that gives moved links the addresses and routes that they had."""
    names = links_of(addresses)
    lines = ["link set lo up"]
    for link in addresses:
        for about in link.get("addr_info", ()) if link["ifname"] in names else ():
            lines.append(f"address add {about['local']}/{about['prefixlen']} dev {link['ifname']}")
    lines += [f"link set {name} up" for name in names]
    # A gateway must be on a route that is there already; the kernel makes those of addresses itself.
    for route in sorted(routes, key=lambda route: "gateway" in route):
        if route.get("dev") in names and route.get("protocol") != "kernel":
            via = f" via {route['gateway']}" if "gateway" in route else ""
            lines.append(f"route add {route['dst']}{via} dev {route['dev']}")
    return "\n".join(lines) + "\n"
