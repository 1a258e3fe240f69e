"""What one `Network` allows, as pure decisions about names and addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Literal

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.network import ranges
from headrace_runtimes.spec import Network

How = Literal["named", "wild", "open"]
"""By what a name may be asked for: it is in the list itself, below a ``*.`` of it, or all are allowed."""
EVERYTHING = "*"
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
    networks: tuple[IPv4Network, ...] = ()

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
        if any(address in network for network in self.networks):
            return True
        return how == "named" or not ranges.is_private(address)


def policy_of(network: Network) -> Policy:
    """Raises `PrepareFailed` for an entry that is no name, address or network, or that cannot be held."""
    names: set[str] = set()
    below: list[str] = []
    networks: list[IPv4Network] = []
    if len(network.allow) > MOST:
        raise PrepareFailed(f"An allow-list has at most {MOST} entries: use networks or *.names.")
    for entry in network.allow:
        if entry == EVERYTHING:
            continue
        found = _network(entry)
        if found is not None:
            networks.append(found)
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
    merged = tuple(collapse_addresses(networks))
    return Policy(everything, frozenset(names), tuple(sorted(set(below))), merged)


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
