"""Content-addressed blobs on disk: ``<data-dir>/blobs/<sha256>``, written once, whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from headrace.errors import NotFound, ValidationFailed

_SHA256 = re.compile(r"[0-9a-f]{64}")
GRACE_S = 3600.0
"""Unreferenced blobs are kept this long after they were last asked for: a deploy uploads first."""


class Blobs:
    """The blobs of one data directory."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a blob lies. Raises `ValidationFailed` for what is not a SHA-256 in hex."""
        if not _SHA256.fullmatch(sha256):
            raise ValidationFailed(f"{sha256[:80]!r} is not a SHA-256: use 64 lower-case hex digits.")
        return self._dir / sha256

    def has(self, sha256: str) -> bool:
        """Whether it is there; asking keeps an unreferenced one for `GRACE_S` more."""
        if not _SHA256.fullmatch(sha256):
            return False
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def put(self, sha256: str, data: bytes) -> bool:
        """Store it; False when it was there already. Raises `ValidationFailed` when the hash differs."""
        path = self.path(sha256)
        return await asyncio.to_thread(self._put, path, data)

    async def read(self, sha256: str, offset: int, size: int) -> tuple[int, bytes]:
        """(total size, up to ``size`` bytes from ``offset``). Raises `NotFound`."""
        path = self.path(sha256)

        def run() -> tuple[int, bytes]:
            try:
                with path.open("rb") as file:
                    total = os.fstat(file.fileno()).st_size
                    file.seek(max(0, offset))
                    return total, file.read(size)
            except FileNotFoundError:
                raise NotFound(f"no blob {sha256}.", hint="Deploy again: it is uploaded then.") from None

        return await asyncio.to_thread(run)

    async def collect(self, needed: Callable[[str], bool], *, grace_s: float = GRACE_S) -> int:
        """Remove blobs that nothing needs and nobody asked for within ``grace_s``; gives their number."""

        def run() -> int:
            removed = 0
            before = time.time() - grace_s
            for entry in list(os.scandir(self._dir)):
                leftover = not _SHA256.fullmatch(entry.name)
                try:
                    if entry.stat().st_mtime <= before and (leftover or not needed(entry.name)):
                        Path(entry.path).unlink()
                        removed += 1
                except FileNotFoundError:
                    continue
            return removed

        return await asyncio.to_thread(run)

    def _put(self, path: Path, data: bytes) -> bool:
        digest = hashlib.sha256(data).hexdigest()
        if digest != path.name:
            raise ValidationFailed(
                f"the body has SHA-256 {digest}, not {path.name}.",
                hint="It was damaged on its way: send it again.",
            )
        if self.has(path.name):
            return False
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return True
