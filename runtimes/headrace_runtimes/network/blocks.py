"""Which addresses a router's link to the machine has: eight that nobody on this machine uses."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.locks import MACHINE_DIR, take
from headrace_runtimes.network.ranges import overlaps
from headrace_runtimes.network.rules import Uplink

POOLS = ("198.19.0.0/16", "100.127.0.0/16", "172.31.0.0/16", "10.213.0.0/16", "192.168.213.0/24")
"""The first is for measuring networks: nearly nobody routes it."""
PREFIX = 29
TRIED = 4096


def candidates(tag: str, taken: Sequence[str]) -> Iterator[IPv4Network]:
    """Blocks that overlap with none of ``taken`` (networks, as text), each host's in an order of its own."""
    seed = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:4], "big")
    for pool in map(IPv4Network, POOLS):
        count = 1 << (PREFIX - pool.prefixlen)
        for number in range(count):
            size = 1 << (32 - PREFIX)
            start = pool.network_address + ((seed + number) % count) * size
            block = IPv4Network((start, PREFIX))
            if not overlaps(block, taken):
                yield block


def lock_one(blocks: Iterable[IPv4Network], directory: Path | None) -> tuple[Uplink, int]:
    """The first block that no other host on this machine holds, and the descriptor that holds it.

    The kernel lets it go when we die. Blocks for microseconds. Raises `PrepareFailed`.
    """
    place = directory or MACHINE_DIR
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o711)
        for block in itertools.islice(blocks, TRIED):
            fd = take(place / f"net-{block.network_address}.lock")
            if fd is not None:
                first = block.network_address
                return Uplink(first + 1, first + 2, first + 3), fd
    except OSError as error:
        raise PrepareFailed(
            f"Cannot lock addresses in {place}: {error.strerror}. Make it writable or set uid_lock_dir."
        ) from error
    raise PrepareFailed("No addresses are free for sandboxes on this machine: stop other hosts.")


class Addresses:
    """Addresses of sandboxes. Only their router sees them; each is used again as late as possible, since
    the kernel may remember connections of who had it before."""

    FIRST, COUNT = IPv4Address("198.18.1.0"), 65_000

    def __init__(self) -> None:
        self._next = itertools.cycle(range(self.COUNT))
        self._used: set[int] = set()

    def take(self) -> IPv4Address:
        """Raises `PrepareFailed` when all are in use."""
        for number in itertools.islice(self._next, self.COUNT):
            if number not in self._used:
                self._used.add(number)
                return self.FIRST + number
        raise PrepareFailed("All addresses of sandboxes are in use: stop some.")

    def give_back(self, address: IPv4Address) -> None:
        """Nobody has it any more."""
        self._used.discard(int(address) - int(self.FIRST))
