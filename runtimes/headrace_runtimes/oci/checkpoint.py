"""Checkpoints of loaded containers on disk: taken, tried, and only then used; a bad one is set aside.

A checkpoint is published when a container restored from it has answered its health check. One that cannot
be taken, does not pass its trial, or fails later goes into quarantine: it is not used, not made again for
a while, and the normal path is taken. Memory of a quarantined one is not kept, its logs are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import criu
from headrace_runtimes.oci.binary import Binary
from headrace_runtimes.oci.criu import WORK, Versions
from headrace_runtimes.trees import remove_tree

TRIAL_TIMEOUT_S = 60.0
RESTORE_TIMEOUT_S = 20.0
"""Somebody may wait for it, and it takes about a second: what is not there by then is bad."""
RETRY_S = 3600.0
"""A quarantined one is not made again before."""
KEEP_BAD = 8
KEEP_BYTES = 16 << 30
META = "checkpoint.json"
_T = TypeVar("_T")


class CheckpointFailed(PrepareFailed):
    """It could not be taken or did not pass its trial; the normal path is open.

    ``ended``: the container has ended all the same.
    """

    def __init__(self, message: str, *, ended: bool = False) -> None:
        super().__init__(message)
        self.ended = ended


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is of. Two with the same `key` are interchangeable."""

    versions: Versions
    bundle: str
    """Digest of the user's code."""
    image: str
    """Digest of the image's definition."""
    engine: str
    """Digest of our engine's files."""
    more: str
    """All else that it depends on, in whatever form."""
    env: Mapping[str, str]

    @property
    def key(self) -> str:
        """Of all of it. Values of variables are in it, but cannot be read from it."""
        told = json.dumps(asdict(replace(self, env=dict(self.env))), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """One that was published."""

    key: str
    directory: Path
    versions: Versions
    bytes: int


@dataclass
class Counts:
    """What has become of them since the host began."""

    taken: int = 0
    take_failed: int = 0
    trial_failed: int = 0
    restored: int = 0
    restore_failed: int = 0

    @property
    def rate(self) -> float | None:
        """Share of all attempts (taking, trials and restores) that came to a good end; None without any."""
        bad = self.take_failed + self.trial_failed + self.restore_failed
        good = self.taken + self.restored
        return good / (good + bad) if good + bad else None


class Checkpoints:
    """Those of one machine. ``directory`` is for root alone: they hold the memory of what they were taken of.

    ``now``: seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        runtime: Binary,
        *,
        keep_bytes: int = KEEP_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runtime, self._keep_bytes, self._now = runtime, keep_bytes, now
        self._good, self._bad, self._new = (directory / name for name in ("good", "bad", "new"))
        self._directory = directory
        self.counts = Counts()

    async def open(self, versions: Versions | None) -> None:
        """Have the directory; let go what was left half made and what these versions cannot restore."""
        await asyncio.to_thread(self._open, versions)

    async def find(self, identity: Identity) -> Checkpoint | None:
        """A published one."""
        return await asyncio.to_thread(_read, self._good / identity.key)

    async def why_not(self, identity: Identity) -> str:
        """Why none is to be made of it now; empty when one may be."""
        told = await asyncio.to_thread(_told, self._bad / identity.key)
        if self._now() - float(told.get("at", 0.0)) >= RETRY_S:
            return ""
        return str(told.get("why", ""))

    async def make(
        self,
        identity: Identity,
        container: str,
        trial: Callable[[Path], Awaitable[_T]],
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        beside: Callable[[Path], Awaitable[None]] | None = None,
    ) -> _T:
        """Take one of a running container, which ends, and publish it after its trial: what that gave.

        ``before`` gets the container ready; ``beside`` adds to the directory what is not in the container's
        memory. ``trial`` gets the directory (for `criu.restore`), brings a container up from it, asks its
        health, and raises when anything of that fails: nothing is left then. Raises `CheckpointFailed`.
        """
        if why := await self.why_not(identity):
            raise CheckpointFailed(f"No checkpoint is made now: the last one failed ({why}).")
        staged = self._new / f"{os.getpid()}.{secrets.token_hex(8)}"
        staged.mkdir(mode=0o700)
        try:
            await self._take(identity, container, staged, before, beside)
            made = await self._try(identity, staged, trial)
            # Not lost by who is cancelled now: it is brief.
            await asyncio.shield(asyncio.to_thread(self._publish, identity, staged))
            return made
        finally:
            # Not there any more when it was published or set aside.
            await asyncio.shield(asyncio.to_thread(remove_tree, staged))

    async def restore(
        self, identity: Identity, start: Callable[[Path], Awaitable[_T]], timeout_s: float = RESTORE_TIMEOUT_S
    ) -> _T | None:
        """What ``start`` makes of the published one; None without one, and when it fails: it is bad then."""
        found = await self.find(identity)
        if found is None:
            return None
        try:
            async with asyncio.timeout(timeout_s):
                made = await start(found.directory)
        except Exception as error:
            self.counts.restore_failed += 1
            await asyncio.to_thread(self._set_aside, identity, found.directory, f"restore: {_line(error)}")
            return None
        self.counts.restored += 1
        with contextlib.suppress(OSError):
            os.utime(found.directory)
        return made

    async def _take(
        self,
        identity: Identity,
        container: str,
        staged: Path,
        before: Callable[[], Awaitable[None]] | None,
        beside: Callable[[Path], Awaitable[None]] | None,
    ) -> None:
        dumped = False
        try:
            if before is not None:
                await before()
            await criu.dump(self._runtime, container, staged)
            dumped = True
            if beside is not None:
                await beside(staged)
        except (PrepareFailed, OSError) as error:
            self.counts.take_failed += 1
            await asyncio.to_thread(self._set_aside, identity, staged, _line(error))
            why = f"The checkpoint cannot be taken: {_line(error)}."
            raise CheckpointFailed(why, ended=dumped) from error
        self.counts.taken += 1

    async def _try(self, identity: Identity, staged: Path, trial: Callable[[Path], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(TRIAL_TIMEOUT_S):
                return await trial(staged)
        except Exception as error:
            # Whatever it is: what is restored from it cannot be relied on.
            self.counts.trial_failed += 1
            await asyncio.to_thread(self._set_aside, identity, staged, f"trial: {_line(error)}")
            why = f"The checkpoint did not pass its trial: {_line(error)}."
            raise CheckpointFailed(why, ended=True) from error

    def _open(self, versions: Versions | None) -> None:
        for made in (self._directory, self._good, self._bad, self._new):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.chmod(0o700)
        for path in list(self._new.iterdir()):
            # Another host of this machine may just be making one.
            if not _lives(path.name.partition(".")[0]):
                remove_tree(path)
        for path in list(self._good.iterdir()):
            found = _read(path)
            if found is None or found.versions != versions:
                remove_tree(path)

    def _publish(self, identity: Identity, staged: Path) -> None:
        files = [path for path in staged.rglob("*") if path.is_file()]
        # Of a sparse disk only what is written.
        size = sum(path.stat().st_blocks for path in files) * 512
        meta = {"versions": asdict(identity.versions), "bytes": size, "at": self._now()}
        with open(staged / META, "w") as file:
            json.dump(meta, file)
        for path in (*files, staged / META):
            with open(path, "rb") as file:
                # A machine that goes down must not leave half of one that looks whole.
                os.fsync(file.fileno())
        target = self._good / identity.key
        remove_tree(target)
        staged.rename(target)
        remove_tree(self._bad / identity.key)
        self._trim(keep=target)

    def _set_aside(self, identity: Identity, path: Path, why: str) -> None:
        """Its memory goes, its logs and the reason stay."""
        for name in os.listdir(path):
            if name != WORK:
                remove_tree(path / name)
                if not (path / name).is_dir():
                    (path / name).unlink(missing_ok=True)
        with open(path / "why.json", "w") as file:
            json.dump({"why": why, "at": self._now()}, file)
        target = self._bad / identity.key
        remove_tree(target)
        path.rename(target)
        known = sorted(self._bad.iterdir(), key=lambda bad: float(_told(bad).get("at", 0.0)))
        for old in known[:-KEEP_BAD]:
            remove_tree(old)

    def _trim(self, keep: Path) -> None:
        """The least recently used go until the rest fits."""
        found = [(path.stat().st_mtime, path, _read(path)) for path in self._good.iterdir()]
        left = sum(known.bytes for _, _, known in found if known)
        for _, path, known in sorted(found, key=lambda entry: entry[0]):
            if left <= self._keep_bytes:
                return
            if path != keep:
                remove_tree(path)
                left -= known.bytes if known else 0


def _lives(pid: str) -> bool:
    return pid.isdigit() and int(pid) != os.getpid() and Path("/proc", pid).exists()


def _read(path: Path) -> Checkpoint | None:
    try:
        meta = json.loads((path / META).read_text())
        return Checkpoint(path.name, path, Versions(**meta["versions"]), int(meta["bytes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _told(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        told = json.loads((path / "why.json").read_text())
        return told if isinstance(told, dict) else {}
    return {}


def _line(error: BaseException) -> str:
    told = str(error) or type(error).__name__
    return " ".join(told.split()).rstrip(".")[:500]
