"""Keeps files of weights in the page cache: mapped and locked, within a bound, what was used last first.

Locking is the only way that holds: under memory pressure the kernel drops clean pages however often they
were read. Where it is not allowed (no CAP_IPC_LOCK, a low RLIMIT_MEMLOCK) files are only read ahead, and
`Keeper.held` says so. Locks end with the process that holds them.

A lock holds pages, not folios: when the kernel splits a large folio of a file (to move it, say) it takes it
out of locked mappings, and nothing but the next touch locks it again. So what is held is locked again now
and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import mmap
import os
from collections import OrderedDict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("headrace.runtimes")

STEP = 16 << 20
"""Bytes read, then locked, at once: a lock of pages that are there holds up the process for milliseconds."""
PROT_READ = 1
MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


@dataclass
class _Kept:
    size: int = 0
    maps: list[tuple[int, int]] = field(default_factory=list)
    locked: bool = True


class Keeper:
    """``bound``: bytes in all. One for each host."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._turn = asyncio.Lock()
        self.why_not = ""
        """Why files cannot be locked; empty: they can, as far as is known."""

    @property
    def bytes(self) -> int:
        """Held in memory."""
        return sum(kept.size for kept in self._kept.values())

    def held(self, key: str) -> bool:
        """Whether no disk is read for it."""
        kept = self._kept.get(key)
        return kept is not None and kept.locked

    async def keep(self, key: str, files: Iterable[Path], in_use: Container[str] = ()) -> bool:
        """These were used now: hold them, let go what was used longest ago but for ``in_use``.

        Whether they are held. Raises ``OSError`` for files that are not there.
        """
        async with self._turn:
            if key in self._kept:
                self._kept.move_to_end(key)
                if self._kept[key].locked:
                    await asyncio.to_thread(_lock_again, self._kept[key])
                    return True
                await self._drop(key)
            paths = await asyncio.to_thread(lambda: [(path, path.stat().st_size) for path in files])
            need = sum(size for _, size in paths)
            idle = [other for other in self._kept if other not in in_use]
            if need + self.bytes - sum(self._kept[other].size for other in idle) > self._bound:
                return False
            while self.bytes + need > self._bound:
                await self._drop(idle.pop(0))
            kept = self._kept[key] = _Kept(need)
            try:
                await asyncio.to_thread(self._hold, kept, [path for path, size in paths if size])
            except OSError as error:
                log.warning("weights %s are not held in memory: %s", key, error)
                await self._drop(key)
                return False
            return kept.locked

    async def refresh(self) -> None:
        """Lock again what has slipped out."""
        for key in list(self._kept):
            async with self._turn:
                kept = self._kept.get(key)
                if kept is not None and kept.locked:
                    await asyncio.to_thread(_lock_again, kept)

    def close(self) -> None:
        """Let all go."""
        for key in list(self._kept):
            _let_go(self._kept.pop(key))

    async def _drop(self, key: str) -> None:
        # Seconds for what is large: every page is unlocked.
        await asyncio.to_thread(_let_go, self._kept.pop(key))

    def _hold(self, kept: _Kept, paths: list[Path]) -> None:
        for path in paths:
            with open_mapped(path) as (file, address, size):
                kept.maps.append((address, size))
                for begin in range(0, size, STEP):
                    length = min(STEP, size - begin)
                    os.posix_fadvise(file, begin, length, os.POSIX_FADV_WILLNEED)
                    _read(file, begin, length)
                    if kept.locked and _libc.mlock(address + begin, length) != 0:
                        kept.locked = False
                        self.why_not = f"mlock: {os.strerror(ctypes.get_errno())}"
                        log.info("weights are not locked in memory (%s), only read ahead", self.why_not)


def _lock_again(kept: _Kept) -> None:
    """Maps in what is in the page cache, and reads what is not."""
    for address, size in kept.maps:
        for begin in range(0, size, STEP):
            _libc.mlock(address + begin, min(STEP, size - begin))


def _let_go(kept: _Kept) -> None:
    for address, size in kept.maps:
        _libc.munmap(address, size)


class open_mapped:
    """(descriptor, address, bytes) of a file that is mapped; the mapping stays. Raises ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> tuple[int, int, int]:
        size = os.fstat(self._file).st_size
        address = _libc.mmap(None, size, PROT_READ, MAP_SHARED, self._file, 0)
        if address in (None, _FAILED):
            os.close(self._file)
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return self._file, int(address or 0), size

    def __exit__(self, *error: object) -> None:
        os.close(self._file)


def resident(path: Path) -> float:
    """The part of a file that is in memory, 0 to 1. Blocks. Raises ``OSError``."""
    with open_mapped(path) as (_, address, size):
        pages = -(-size // mmap.PAGESIZE)
        vector = ctypes.create_string_buffer(pages)
        try:
            if _libc.mincore(address, size, vector) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            _libc.munmap(address, size)
    return sum(byte & 1 for byte in vector.raw) / pages


def _read(file: int, begin: int, length: int) -> None:
    scratch = bytearray(min(length, 1 << 20))
    end = begin + length
    while begin < end:
        found = os.preadv(file, [memoryview(scratch)[: min(len(scratch), end - begin)]], begin)
        if not found:
            return
        begin += found
