"""The host's disk cache of weights: whole or not there, pinned while used, bounded by what was used last.

    <root>/<key>/files/...   fetched and checked; record.json beside them
    <root>/drafts/<key>/     being fetched, or left by somebody who was cut off
    <root>/locks/<key>       shared: in use; exclusive: being fetched or removed. Whoever dies lets go.

Any number of hosts of one machine may share a root.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace_runtimes.finish import to_the_end
from headrace_runtimes.locks import is_at, try_lock
from headrace_runtimes.trees import remove_tree
from headrace_runtimes.weights.fetch import FILES, fetch
from headrace_runtimes.weights.http import HttpRemote
from headrace_runtimes.weights.parts import write_whole
from headrace_runtimes.weights.remote import LocalFile, Remote
from headrace_runtimes.weights.values import (
    Item,
    WeightsFailed,
    WeightsSettings,
    below,
    check_allowed,
    megabytes,
    victims,
)

RECORD = "record.json"
POLL_S = 0.05
WAIT_S = 24 * 3600.0
"""The longest that one waits for another's fetch of the same."""
Told = Callable[[str], None]
"""Progress in words."""


class Pin:
    """Weights that are here, and stay as long as this is not let go."""

    def __init__(self, item: Item, path: Path, lock: int) -> None:
        self.item, self.path = item, path
        self._lock = lock

    def files(self) -> list[Path]:
        """All its files. Blocks."""
        return sorted(path for path in self.path.rglob("*") if path.is_file())

    def release(self) -> None:
        """Not used any more. Does nothing the second time."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class WeightsCache:
    """See the module. `open` once before use."""

    def __init__(self, settings: WeightsSettings) -> None:
        self._settings = settings
        self._root = settings.root
        self._progress: dict[str, str] = {}

    async def ensure(self, item: Item, told: Told = lambda text: None) -> Pin:
        """Have them here, whole and checked, and pin them. Raises `WeightsFailed`."""
        await asyncio.to_thread(check_allowed, item, self._settings.allow)
        if item.kind == "local":
            there = await asyncio.to_thread(_local, item)
            if there is not None:
                return Pin(item, there, -1)
        try:
            await asyncio.to_thread(self._open)
            return await self._pinned(item, told)
        except OSError as error:
            raise WeightsFailed(f"weights {item.shown}: {error}: see the setting weights_dir.") from error

    def used_bytes(self) -> int:
        """On disk, drafts included. Blocks."""
        return sum(size for _, size, _ in self._entries())

    async def _pinned(self, item: Item, told: Told) -> Pin:
        deadline = time.monotonic() + WAIT_S
        path = self._root / item.key
        while True:
            lock = self._lock_file(item.key)
            try:
                if try_lock(lock, fcntl.LOCK_SH):
                    if self._is_at(lock, item.key) and await asyncio.to_thread(_whole, path):
                        os.utime(path / RECORD)
                        return Pin(item, path / FILES, lock)
                    fcntl.flock(lock, fcntl.LOCK_UN)
                if try_lock(lock) and self._is_at(lock, item.key):
                    if not await asyncio.to_thread(_whole, path):
                        await self._fetch(item, path, told)
                    # Shared from now on; had another removed it between, the next round fetches again.
                    fcntl.flock(lock, fcntl.LOCK_SH)
                    if await asyncio.to_thread(_whole, path):
                        return Pin(item, path / FILES, lock)
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
            if time.monotonic() > deadline:
                raise WeightsFailed(
                    f"weights {item.shown}: another process fetches them for too long; end it."
                )
            told(self._progress.get(item.key, "being fetched by another host of this machine"))
            await asyncio.sleep(POLL_S)

    async def _fetch(self, item: Item, path: Path, told: Told) -> None:
        draft = self._root / "drafts" / item.key

        def progress(done: int, total: int) -> None:
            self._progress[item.key] = f"weights {item.shown}: {megabytes(done)} of {megabytes(total)}"
            told(self._progress[item.key])

        try:
            remote = self._remote(item)
            try:
                room = lambda need: self._make_room(item, need)  # noqa: E731
                hashes = await fetch(item, remote, draft, self._settings, told=progress, room=room)
            finally:
                await remote.close()
            # Also when nobody waits: another fetch may begin in the same place as soon as the lock goes.
            await to_the_end(asyncio.to_thread(self._publish, item, draft, path, hashes))
        finally:
            self._progress.pop(item.key, None)

    def _remote(self, item: Item) -> Remote:
        if item.kind == "http":
            return HttpRemote(item.source, self._settings)
        if item.kind == "local":
            return LocalFile(Path(os.path.realpath(item.source)))
        try:
            s3 = importlib.import_module("headrace_runtimes.weights.s3")
        except ModuleNotFoundError:
            raise WeightsFailed(
                f"weights {item.shown}: the host has no boto3; install it: pip install 'headrace[s3]'."
            ) from None
        remote: Remote = s3.S3Remote(item.source, self._settings)
        return remote

    def _publish(self, item: Item, draft: Path, path: Path, hashes: Mapping[str, str]) -> None:
        files = {}
        for name, sha256 in hashes.items():
            file = draft / FILES / name
            file.chmod(0o444)
            found = file.stat()
            files[name] = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256}
        for directory, _, _ in os.walk(draft, topdown=False):
            # Instances run as other users and read it.
            os.chmod(directory, 0o755)  # noqa: S103
        write_whole(draft / RECORD, json.dumps({"source": item.shown, "files": files}).encode())
        self._remove(path)
        draft.rename(path)
        descriptor = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_room(self, item: Item, need: int) -> None:
        bound = self._settings.disk_bytes
        if need > bound:
            raise WeightsFailed(
                f"weights {item.shown}: {megabytes(need)} are more than hosts may keep ({megabytes(bound)}); "
                "raise the setting weights_bytes."
            )
        entries = [entry for entry in self._entries() if entry[0] != item.key]
        used = sum(size for _, size, _ in entries)
        while victims(entries, used, need, bound):
            key = victims(entries, used, need, bound)[0]
            size = next(size for found, size, _ in entries if found == key)
            entries = [entry for entry in entries if entry[0] != key]
            if self._evict(key):
                used -= size
        if used + need > bound:
            raise WeightsFailed(
                f"weights {item.shown}: no room for {megabytes(need)}: instances use the rest of "
                f"{megabytes(bound)}; raise the setting weights_bytes."
            )

    def _evict(self, key: str) -> bool:
        """Remove what nobody uses; whether it is gone."""
        lock = self._lock_file(key)
        try:
            if not try_lock(lock) or not self._is_at(lock, key):
                return False
            for path in (self._root / key, self._root / "drafts" / key):
                self._remove(path)
            with contextlib.suppress(FileNotFoundError):
                (self._root / "locks" / key).unlink()
            return True
        finally:
            os.close(lock)

    def _remove(self, path: Path) -> None:
        gone = self._root / "drafts" / f".gone-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            # First out of sight: no half of it is ever seen.
            path.rename(gone)
            remove_tree(gone)

    def _entries(self) -> list[tuple[str, int, float]]:
        """(key, bytes, last use) of all that is here, whole or not."""
        found: dict[str, tuple[int, float]] = {}
        for directory in (self._root, self._root / "drafts"):
            try:
                names = os.listdir(directory)
            except FileNotFoundError:
                continue
            for name in names:
                if name in ("drafts", "locks") or name.startswith("."):
                    continue
                size, last = _measure(directory / name)
                before = found.get(name, (0, 0.0))
                found[name] = (before[0] + size, max(before[1], last))
        return [(key, size, last) for key, (size, last) in found.items()]

    def _open(self) -> None:
        for directory in (*reversed(self._root.parents), self._root):
            if not directory.exists():
                directory.mkdir(exist_ok=True)
                # Whatever our umask is: instances read there by name, and need not know what else there is.
                directory.chmod(0o711)
        for directory in (self._root / "drafts", self._root / "locks"):
            directory.mkdir(mode=0o700, exist_ok=True)
        for path in (self._root / "drafts").glob(".gone-*"):
            remove_tree(path)

    def _lock_file(self, key: str) -> int:
        return os.open(self._root / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _is_at(self, lock: int, key: str) -> bool:
        return is_at(lock, self._root / "locks" / key)


def _local(item: Item) -> Path | None:
    """A directory is shown as it is. Raises `WeightsFailed` when nothing is there."""
    path = Path(os.path.realpath(item.source))
    if path.is_dir():
        if item.sha256:
            raise WeightsFailed(f"weights {item.shown}: sha256 is of one file, and this is a directory.")
        _check_links(item, path)
        return path
    if not path.is_file():
        raise WeightsFailed(f"weights {item.shown}: there is nothing there on this host; correct the path.")
    return None


def _check_links(item: Item, path: Path) -> None:
    """Raises `WeightsFailed` for a link out of the directory: in a container it would lead to nothing."""
    for at, directories, names in os.walk(path):
        for name in (*directories, *names):
            link = os.path.join(at, name)
            if os.path.islink(link) and not below(os.path.realpath(link), os.fspath(path)):
                shown = os.path.relpath(link, path)
                raise WeightsFailed(
                    f"weights {item.shown}: the link {shown} leads out of it, where instances see nothing: "
                    "name a directory that holds both, or copy it with its files (cp -rL)."
                )


def _whole(path: Path) -> bool:
    """Whether all files are as they were recorded."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        for name, said in record["files"].items():
            found = (path / FILES / name).lstat()
            if (found.st_size, found.st_mtime_ns) != (said["size"], said["mtime_ns"]):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _measure(path: Path) -> tuple[int, float]:
    size, last = 0, 0.0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(directory, name))
                size += found.st_blocks * 512
                last = max(last, found.st_mtime)
    return size, last
