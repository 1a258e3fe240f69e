"""Large inputs and outputs: the contract of blob stores, and the one in a local directory.

Blobs are content-addressed: a blob's name is its SHA-256 in hex, so the same content is stored once and
may be named by several jobs. What nobody names any more is told by `JobStore.sweep` and deleted here.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from headrace import errors
from headrace.errors import DataDirError, NotFound, RequestError

T = TypeVar("T")
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1 << 20
FRESH_S = 600.0
"""A blob that was put within this time is not deleted: somebody may be about to name it. Shorter than the
pause after which `JobStore.sweep` offers an unnamed blob once more."""


class BlobMissing(NotFound):
    """No blob of that name."""

    type, title = "blob-missing", "The stored body is gone"


class BlobDamaged(RequestError):
    """The stored bytes do not have the hash that is their name."""

    status, type, title = 500, "blob-damaged", "The stored body is damaged"


BlobsUnavailable = errors.BlobsUnavailable


class BlobStore(Protocol):
    """Keeps blobs by hash. All methods raise `BlobsUnavailable` when the store does not answer."""

    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """Store it, whole or not at all, durably; gives its SHA-256 (hex). Putting again is harmless, and
        keeps the blob from being deleted for `FRESH_S`."""
        ...

    async def get(self, sha256: str) -> bytes:
        """The whole blob, verified. Raises `BlobMissing`, `BlobDamaged`."""
        ...

    def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """The blob in pieces of at most `CHUNK_BYTES`. Raises `BlobMissing` before the first piece, and
        `BlobDamaged` after the last one: only a stream that ended without an error was the blob."""
        ...

    async def delete(self, blobs: Iterable[str]) -> int:
        """Delete those that are there and were not put within `FRESH_S`; how many."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class LocalBlobs:
    """Blobs as files ``<directory>/<first two digits>/<sha256>``; may be shared by several processes.

    Make it with `open_local_blobs`. ``fresh_s``: see `BlobStore.delete`.
    """

    def __init__(self, directory: Path, *, fresh_s: float = FRESH_S) -> None:
        self._dir = directory
        self._fresh_s = fresh_s

    async def put(self, data: bytes | AsyncIterable[bytes]) -> str:
        """See `BlobStore.put`: written beside, synced, renamed."""
        if isinstance(data, bytes):
            return await self._thread(lambda: self._put_bytes(data))
        temporary, file = await self._thread(self._begin)
        digest = hashlib.sha256()
        try:
            async for piece in data:
                digest.update(piece)
                await self._thread(lambda piece=piece: file.write(piece))  # type: ignore[misc]
            return await self._thread(lambda: self._end(temporary, file, digest.hexdigest()))
        finally:
            file.close()
            temporary.unlink(missing_ok=True)

    async def get(self, sha256: str) -> bytes:
        """See `BlobStore.get`."""

        def run() -> bytes:
            with self._open(sha256) as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise _damaged(sha256)
            return data

        return await self._thread(run)

    async def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """See `BlobStore.stream`."""
        file = await self._thread(lambda: self._open(sha256))
        digest = hashlib.sha256()
        try:
            while piece := await self._thread(lambda: file.read(CHUNK_BYTES)):
                digest.update(piece)
                yield piece
        finally:
            file.close()
        if digest.hexdigest() != sha256:
            raise _damaged(sha256)

    async def delete(self, blobs: Iterable[str]) -> int:
        """See `BlobStore.delete`."""
        names = [name for name in blobs if SHA256.fullmatch(name)]

        def run() -> int:
            deleted = 0
            for name in names:
                # One lock per blob and not for the whole list: a put waits for one unlink at most.
                with self._locked():
                    deleted += self._delete_one(name)
            return deleted

        return await self._thread(run) if names else 0

    async def close(self) -> None:
        """Nothing is held open."""

    def _path(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise BlobMissing(f"{sha256[:80]!r} names no blob.", hint="A name is 64 lower-case hex digits.")
        return self._dir / sha256[:2] / sha256

    def _open(self, sha256: str) -> BinaryIO:
        path = self._path(sha256)
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise BlobMissing(
                f"no blob {sha256}.", hint="It was removed with its job, or from outside: submit again."
            ) from None

    def _put_bytes(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        if self._touch(name):
            return name
        temporary, file = self._begin()
        try:
            file.write(data)
            return self._end(temporary, file, name)
        finally:
            file.close()
            temporary.unlink(missing_ok=True)

    def _begin(self) -> tuple[Path, BinaryIO]:
        temporary = self._dir / f".{os.getpid()}.{time.monotonic_ns()}.{os.urandom(4).hex()}"
        file = temporary.open("xb")
        os.fchmod(file.fileno(), 0o600)
        return temporary, file

    def _end(self, temporary: Path, file: BinaryIO, name: str) -> str:
        file.flush()
        os.fsync(file.fileno())
        file.close()
        path = self._path(name)
        new = not path.parent.exists()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            temporary.replace(path)
        _sync_directory(path.parent)
        if new:
            _sync_directory(self._dir)
        return name

    def _touch(self, name: str) -> bool:
        """Whether it is there; then it counts as put now."""
        with self._locked():
            try:
                os.utime(self._path(name))
            except FileNotFoundError:
                return False
        return True

    def _delete_one(self, name: str) -> bool:
        path = self._path(name)
        try:
            if time.time() - path.stat().st_mtime < self._fresh_s:
                return False
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Between "it is there" and "it counts as put now" nobody deletes, in any process."""
        descriptor = os.open(self._dir, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    async def _thread(self, fn: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(fn)
        except OSError as error:
            raise BlobsUnavailable(
                f"{self._dir}: {error.strerror or error}.", hint="Check the free space and its owner."
            ) from error


def _damaged(sha256: str) -> BlobDamaged:
    return BlobDamaged(
        f"blob {sha256} was changed on disk.", hint="Check the disk, and submit the job again."
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_local_blobs(directory: Path) -> LocalBlobs:
    """Open or make the directory, and sweep what a killed process left half-written (blocking).

    Raises `DataDirError`.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = time.time() - FRESH_S
        for leftover in directory.glob(".*.*.*"):
            # Another gateway may be writing now; only what nobody has touched for long is left over.
            if leftover.is_file() and leftover.stat().st_mtime < before:
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise DataDirError(
            f"{directory}: {error.strerror or error}.", hint="Check its owner, or use another --data-dir."
        ) from error
    return LocalBlobs(directory)
