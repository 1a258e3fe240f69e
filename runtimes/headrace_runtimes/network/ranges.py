"""Addresses that are never reached, and those that are reached only when they are allowed by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, ip_network

NEVER = (
    "0.0.0.0/8", "127.0.0.0/8",  # whoever answers there is the machine itself
    "169.254.0.0/16",  # metadata of nearly all clouds, and of their containers
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure
    "192.0.0.192/32",  # Oracle, before 169.254
    "224.0.0.0/4", "240.0.0.0/4",  # many at once, and nobody
)  # fmt: skip
PRIVATE = (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15",
)  # fmt: skip
NEVER_NAMES = frozenset(
    {
        "metadata", "metadata.google.internal", "metadata.goog", "metadata.azure.internal", "instance-data",
        "instance-data.ec2.internal", "metadata.tencentyun.com", "metadata.platformequinix.com",
    }
)  # fmt: skip
"""Names by which clouds tell their machines who they are. (IPv6 addresses of metadata need no list: sandboxes
have no IPv6.)"""

_NEVER = tuple(IPv4Network(part) for part in NEVER)
_PRIVATE = tuple(IPv4Network(part) for part in PRIVATE)


def is_never(address: IPv4Address) -> bool:
    """Whether no sandbox reaches it, whatever is allowed."""
    return any(address in network for network in _NEVER)


def is_private(address: IPv4Address) -> bool:
    """Whether a sandbox reaches it only when it is allowed by its name or number."""
    return any(address in network for network in _PRIVATE)


def overlaps(network: IPv4Network, taken: Iterable[str]) -> bool:
    """Whether ``network`` shares an address with one of ``taken``; IPv6 ones and what is none are ignored."""
    for text in taken:
        try:
            other = ip_network(text, strict=False)
        except ValueError:
            continue
        if isinstance(other, IPv4Network) and network.overlaps(other):
            return True
    return False
