"""What one `Network` allows, as pure decisions about names and addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Literal

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.network import ranges
from headrace_runtimes.spec import Network

How = Literal["named", "wild", "open"]
"""By what a name may be asked for: it is in the list itself, below a ``*.`` of it, or all are allowed."""
EVERYTHING = "*"
WIDE = 8
"""Bits; a network with fewer, such as ``0.0.0.0/0``, stands for its public addresses only."""
MOST = 200
"""Entries of one allow-list."""
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")


@dataclass(frozen=True)
class Policy:
    """``open``: all public addresses and all names; the rest is allowed beside."""

    open: bool
    names: frozenset[str] = frozenset()
    below: tuple[str, ...] = ()
    """``.example.com`` for ``*.example.com``."""
    addresses: frozenset[IPv4Address] = frozenset()
    """Named by their numbers; also the machine's own."""
    networks: tuple[IPv4Network, ...] = ()
    """With their private addresses, but not the machine's own."""
    wide: tuple[IPv4Network, ...] = ()
    """Networks that are so wide that nobody means private ones by them."""

    def how(self, name: str) -> How | None:
        """Whether a name (lower case, no dot at its end) may be asked for, and by what."""
        if name in ranges.NEVER_NAMES:
            return None
        if name in self.names:
            return "named"
        if name.endswith(self.below):
            return "wild"
        return "open" if self.open else None

    def reaches(self, how: How, address: IPv4Address) -> bool:
        """Whether an address that a name led to may be told.

        Only who is named himself leads to private ones: others' names are in the hands of others.
        """
        if ranges.is_never(address):
            return False
        named = how == "named" or address in self.addresses
        return named or not ranges.is_private(address) or any(address in part for part in self.networks)


def policy_of(network: Network) -> Policy:
    """Raises `PrepareFailed` for an entry that is no name, address or network, or that cannot be held."""
    names: set[str] = set()
    below: list[str] = []
    networks: set[IPv4Network] = set()
    if len(network.allow) > MOST:
        raise PrepareFailed(f"An allow-list has at most {MOST} entries: use networks or *.names.")
    for entry in network.allow:
        if entry == EVERYTHING:
            continue
        found = _network(entry)
        if found is not None:
            networks.add(found)
            continue
        name = normal(entry.removeprefix("*."))
        if name is None:
            raise PrepareFailed(
                f"{entry!r} cannot be allowed: use a host name, *.name, an address or a network."
            )
        if entry.startswith("*."):
            below.append("." + name)
        else:
            names.add(name)
    everything = not network.allow or EVERYTHING in network.allow
    return Policy(
        open=everything,
        names=frozenset(names),
        below=tuple(sorted(set(below))),
        addresses=frozenset(n.network_address for n in networks if n.prefixlen == n.max_prefixlen),
        networks=tuple(sorted(n for n in networks if WIDE <= n.prefixlen < n.max_prefixlen)),
        wide=tuple(sorted(n for n in networks if n.prefixlen < WIDE)),
    )


def normal(name: str) -> str | None:
    """A host name as it is compared; None when it is none."""
    try:
        text = name.rstrip(".").encode("idna" if not name.isascii() else "ascii").decode().lower()
    except UnicodeError:
        return None
    labels = text.split(".")
    fine = len(text) <= 253 and all(_LABEL.match(label) for label in labels)
    return text if fine and not labels[-1].isdecimal() else None


def _network(entry: str) -> IPv4Network | None:
    try:
        found = ip_network(entry, strict=False)
    except ValueError:
        return None
    if isinstance(found, IPv6Network):
        raise PrepareFailed(f"{entry} cannot be allowed: sandboxes have no IPv6. Name the host instead.")
    return found
