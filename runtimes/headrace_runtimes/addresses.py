"""Which addresses a request on a user's behalf may go to: never to one inside."""

from __future__ import annotations

import ipaddress

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INNER = tuple(
    map(
        ipaddress.ip_network,
        (
            # Python's own tables lag behind IANA's registries of special addresses, by its patch release.
            "192.0.0.0/24",  # protocol assignments; a cloud keeps its metadata service there
            "192.88.99.0/24",  # relays of 6to4
            "64:ff9b:1::/48",  # NAT64 within a site
            "100::/64",  # discarded
            "2001::/23",  # protocol assignments
            "3fff::/20",  # documentation
            "5f00::/16",  # segments of routers
            # Public by number, and reached only from within: the host under a virtual machine of Azure.
            "168.63.129.16/32",
        ),
    )
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether anybody may be sent there: none of private, loopback, link-local, shared, multicast, reserved,
    nor an IPv6 form of such a one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour]
        if address.teredo is not None:
            inner.extend(address.teredo)
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if int(address) >> 32 == 0:  # "IPv4-compatible", which nobody uses in earnest
            return False
        if any(a is not None and not is_public(a) for a in inner):
            return False
        if address.ipv4_mapped is not None or address in _NAT64:
            return True
        if address.is_site_local:
            return False
    if any(address in network for network in _INNER):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    )
