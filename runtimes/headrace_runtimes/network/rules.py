"""The rules as text for ``nft -f -``: of the machine, of the router namespace, of one allow-list. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from headrace_runtimes.network import ranges
from headrace_runtimes.network.policy import Policy

PREFIX = "hrn-"
"""Of the machine's ends of our links."""
TABLE = "headrace"
"""In router namespaces."""
UPLINK = "uplink"
CONNECTIONS = 4096
"""Of one sandbox at a time: more are refused, so that nobody fills the kernel's table."""
MOST_ADDRESSES = 16_384
"""That names of one allow-list may stand for at a time."""
SETS = ("fixed", "wide", "named", "wild")
"""Of one allow-list."""
RESOLVER = "198.18.0.1"
"""Where sandboxes find their resolver and their way out: the same in all of them."""


class Uplink(NamedTuple):
    """Addresses of one router's way out."""

    machine: IPv4Address
    plain: IPv4Address
    """Whose packets go to others only."""
    named: IPv4Address
    """Whose packets were allowed by name or number: they may go to the machine itself."""


def machine_table(tag: str) -> str:
    """The name of our table on the machine."""
    return f"headrace_{tag}"


def machine(tag: str, uplink: Uplink) -> str:
    """What a router's packets may do on the machine: leave it, under its address."""
    link = PREFIX + tag
    return f"""
table inet {machine_table(tag)} {{
  chain refuse {{ meta l4proto tcp reject with tcp reset; reject with icmpx admin-prohibited; }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{link}" jump own
  }}
  chain own {{
    ip saddr {uplink.named} accept
    goto refuse
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{link}" oifname "{PREFIX}*" goto refuse
    iifname "{link}" ip saddr != {{ {uplink.plain}, {uplink.named} }} drop
    iifname "{link}" meta nfproto ipv6 goto refuse
    oifname "{link}" ct state established,related accept
    oifname "{link}" drop
  }}
  chain out {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {{ {uplink.plain}, {uplink.named} }} oifname != "{link}" masquerade
  }}
}}
"""


def router(uplink: Uplink) -> str:
    """What a router lets through: nothing, until a sandbox is `joined` to a `policy`."""
    return f"""
table inet {TABLE} {{
  set never {{ type ipv4_addr; flags interval; elements = {{ {", ".join(ranges.NEVER)} }} }}
  set private {{ type ipv4_addr; flags interval; elements = {{ {", ".join(ranges.PRIVATE)} }} }}
  set known {{ type ifname . ipv4_addr; }}
  set open {{ type ipv4_addr; flags dynamic; size 65535; }}
  map policies {{ type ifname . ipv4_addr : verdict; }}
  chain refuse {{ meta l4proto tcp reject with tcp reset; reject with icmpx admin-prohibited; }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    iifname "{UPLINK}" ct state established,related accept
    iifname "{UPLINK}" drop
    iifname . ip saddr != @known drop
    ip option lsrr exists drop
    ip option ssrr exists drop
    oifname != "{UPLINK}" goto refuse
    ip daddr @never goto refuse
    ct state established,related accept
    ct state invalid drop
    ct state new add @open {{ ip saddr ct count over {CONNECTIONS} }} goto refuse
    iifname . ip saddr vmap @policies
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "{UPLINK}" ct state established,related accept
    iifname "{UPLINK}" drop
    iifname . ip saddr != @known drop
    ip option lsrr exists drop
    ip option ssrr exists drop
    ip daddr {RESOLVER} meta l4proto {{ tcp, udp }} th dport 53 accept
    goto refuse
  }}
  chain out {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{UPLINK}" meta mark 1 snat ip to {uplink.named}
    oifname "{UPLINK}" snat ip to {uplink.plain}
  }}
}}
"""


def policy(number: int, allowed: Policy) -> str:
    """The chain and the sets of one allow-list; names fill the sets later, see `told`."""
    p = f"p{number}"
    rest = "accept" if allowed.open else f"ip daddr @{p}_wild accept"
    return f"""
table inet {TABLE} {{
  set {p}_fixed {{ type ipv4_addr; flags interval; auto-merge; {_elements(allowed.networks)} }}
  set {p}_wide {{ type ipv4_addr; flags interval; auto-merge; {_elements(allowed.wide)} }}
  set {p}_named {{ type ipv4_addr; flags timeout; size {MOST_ADDRESSES}; {_elements(allowed.addresses)} }}
  set {p}_wild {{ type ipv4_addr; flags timeout; size {MOST_ADDRESSES}; }}
  chain {p} {{
    ip daddr @{p}_named meta mark set 1 accept
    ip daddr @{p}_fixed accept
    ip daddr @private goto refuse
    ip daddr @{p}_wide accept
    {rest}
    goto refuse
  }}
}}
"""


def _elements(found: Iterable[object]) -> str:
    text = ", ".join(sorted(map(str, found)))
    return f"elements = {{ {text} }}" if text else ""


def no_policy(number: int) -> str:
    """Take a policy away to which no sandbox is joined."""
    p = f"p{number}"
    sets = "".join(f"delete set inet {TABLE} {p}_{kind}\n" for kind in SETS)
    return f"delete chain inet {TABLE} {p}\n{sets}"


def joined(link: str, address: IPv4Address, number: int) -> str:
    """What comes from this link with this address is judged by this policy."""
    return (
        f'add element inet {TABLE} known {{ "{link}" . {address} }}\n'
        f'add element inet {TABLE} policies {{ "{link}" . {address} : goto p{number} }}\n'
    )


def parted(link: str, address: IPv4Address) -> str:
    """The opposite of `joined`."""
    return (
        f'delete element inet {TABLE} policies {{ "{link}" . {address} }}\n'
        f'delete element inet {TABLE} known {{ "{link}" . {address} }}\n'
    )


def told(number: int, kind: str, addresses: Iterable[tuple[IPv4Address, int]]) -> str:
    """Addresses of a name are allowed for so many seconds from now on, whatever was said of them before."""
    where = f"element inet {TABLE} p{number}_{kind}"
    lines = []
    for address, seconds in addresses:
        added = f"add {where} {{ {address} timeout {seconds}s }}\n"
        # Adding one that is there keeps its old end.
        lines.append(f"{added}delete {where} {{ {address} }}\n{added}")
    return "".join(lines)
