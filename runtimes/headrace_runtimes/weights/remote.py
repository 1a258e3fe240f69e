"""What a source looks like to who fetches: some files, each read in ranges."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Sink = Callable[[bytes, int], None]
"""(data, offset): puts it into the file. Raises ``OSError``."""


class Changed(Exception):
    """The source has become another one while it was read: begin again."""


class Interrupted(Exception):
    """A read broke off; trying again makes sense. ``after``: not before so many seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True)
class RemoteFile:
    """One file. ``validator`` changes with its content (an ETag, a date), as far as the source says."""

    path: str
    size: int
    validator: str = ""
    ranges: bool = True
    md5: str = ""
    """When the source tells it."""


class Remote(Protocol):
    """A source. All raise `values.WeightsFailed` for what trying again does not help."""

    async def files(self) -> list[RemoteFile]:
        """All its files. Raises `Interrupted`."""
        ...

    async def read(self, file: RemoteFile, start: int, end: int, sink: Sink) -> None:
        """Bytes ``start`` to ``end`` into ``sink``, in order. Raises `Interrupted`, `Changed`."""
        ...

    async def close(self) -> None:
        """Leave nothing open."""
        ...


class LocalFile:
    """One file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def files(self) -> list[RemoteFile]:
        """See `Remote.files`."""
        found = self._path.stat()
        return [RemoteFile(self._path.name, found.st_size, f"{found.st_mtime_ns}")]

    async def read(self, file: RemoteFile, start: int, end: int, sink: Sink) -> None:
        """See `Remote.read`."""
        await asyncio.to_thread(self._copy, start, end, sink)

    async def close(self) -> None:
        """See `Remote.close`."""

    def _copy(self, start: int, end: int, sink: Sink) -> None:
        source = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while start < end:
                piece = os.pread(source, min(1 << 20, end - start), start)
                if not piece:
                    raise Changed(f"{self._path} has become shorter")
                sink(piece, start)
                start += len(piece)
        finally:
            os.close(source)
