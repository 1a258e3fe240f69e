"""Code on this host: bundles fetched once, verified, unpacked read-only, let go least recently used first."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from headrace_runtimes.trees import remove_tree

from headrace import wire
from headrace.errors import BundleError, LinkClosed, LinkError
from headrace.host.link import ControlLink

log = logging.getLogger("headrace.host")

MAX_FILES = 20_000
MAX_UNPACKED = 2 << 30
"""Bytes of all files of one bundle."""
MAX_ZIP = 1 << 30
CACHE_BYTES = 4 << 30
FETCH_TIMEOUT_S = 60.0
CHUNK_TIMEOUT_S = 15.0
_DAMAGED = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, ValueError, EOFError, OSError,
)  # fmt: skip
_SHA = re.compile(r"[0-9a-f]{64}")


class Bundles:
    """The cache in ``root``; ``in_use`` names the bundles that must stay."""

    def __init__(
        self,
        root: Path,
        link: ControlLink,
        in_use: Callable[[], Collection[str]],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._root, self._link, self._in_use, self._cache_bytes = root, link, in_use, cache_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._fetching: dict[str, asyncio.Task[Path]] = {}

    async def open(self) -> None:
        """Begin with an empty cache: what a predecessor left is not trusted."""
        await asyncio.to_thread(self._reset)

    async def close(self) -> None:
        """Stop fetching and remove everything."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sizes.clear()
        await asyncio.to_thread(remove_tree, self._root)

    def path(self, sha256: str) -> Path:
        """Where the bundle lies once it is here."""
        return self._root / sha256

    def has(self, sha256: str) -> bool:
        """Whether it is here; counts as a use."""
        if sha256 not in self._sizes:
            return False
        self._sizes.move_to_end(sha256)
        return True

    async def ensure(self, sha256: str) -> Path:
        """Have the bundle here; one fetch for all who wait.

        Raises `BundleError` when it cannot be used, `LinkError` or ``TimeoutError`` when control cannot
        be asked.
        """
        if self.has(sha256):
            return self.path(sha256)
        if not _SHA.fullmatch(sha256):
            raise BundleError(f"{sha256!r} is not a bundle's SHA-256.")
        task = self._fetching.get(sha256)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._bring(sha256))
            self._fetching[sha256] = task
            task.add_done_callback(lambda done: self._fetched(sha256, done))
        # One who gives up must not take the bundle from the others.
        return await asyncio.shield(task)

    async def archive(self, sha256: str) -> bytes:
        """What control has under that hash, as it is: nothing is kept here. Raises as `ensure`."""
        if not _SHA.fullmatch(sha256):
            raise BundleError(f"{sha256!r} is not the SHA-256 of an image's files.")
        path = self._root / f".{sha256[:16]}-{secrets.token_hex(4)}.raw"
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                await self._download(sha256, path)
            return await asyncio.to_thread(path.read_bytes)
        finally:
            path.unlink(missing_ok=True)

    def _fetched(self, sha256: str, task: asyncio.Task[Path]) -> None:
        self._fetching.pop(sha256, None)
        if not task.cancelled():
            task.exception()

    async def _bring(self, sha256: str) -> Path:
        draft = self._root / f".{sha256[:16]}-{secrets.token_hex(4)}"
        archive = draft.with_suffix(".zip")
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                await self._download(sha256, archive)
            size = await asyncio.to_thread(unpack, archive, draft)
            draft.rename(self.path(sha256))
        finally:
            await asyncio.to_thread(_discard, archive, draft)
        self._sizes[sha256] = size
        await self._shrink()
        return self.path(sha256)

    async def _download(self, sha256: str, archive: Path) -> None:
        digest = hashlib.sha256()
        offset, total = 0, -1
        fd = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while total < 0 or offset < total:
                chunk = await self._chunk(sha256, offset)
                if (
                    chunk.offset != offset
                    or chunk.total > MAX_ZIP
                    or (not chunk.data and chunk.total > offset)
                ):
                    raise BundleError(
                        f"bundle {sha256[:12]}: control sent a wrong part or more than {MAX_ZIP} bytes."
                    )
                total = chunk.total
                offset += len(chunk.data)
                digest.update(chunk.data)
                await asyncio.to_thread(_write_all, fd, chunk.data)
        finally:
            os.close(fd)
        if offset != total or digest.hexdigest() != sha256:
            raise BundleError(
                f"bundle {sha256[:12]}: what control sent has another hash.", hint="Deploy again."
            )

    async def _chunk(self, sha256: str, offset: int) -> wire.BlobChunk:
        while True:
            try:
                answer = await self._link.call(
                    wire.FetchBlob(sha256=sha256, offset=offset), timeout_s=CHUNK_TIMEOUT_S
                )
            except LinkClosed:
                # Control restarts: go on where we were, within the fetch's own deadline.
                await asyncio.sleep(0.05)
                continue
            if isinstance(answer, wire.BlobChunk):
                return answer
            if isinstance(answer, wire.Error):
                raise BundleError(f"bundle {sha256[:12]}: {answer.detail}", hint="Deploy again.")
            raise LinkError(f"control answered FetchBlob with {type(answer).__name__}.")

    async def _shrink(self) -> None:
        keep = set(self._in_use())
        for sha256 in list(self._sizes)[:-1]:
            if sum(self._sizes.values()) <= self._cache_bytes:
                return
            if sha256 in keep:
                continue
            del self._sizes[sha256]
            gone = self._root / f".gone-{secrets.token_hex(4)}"
            self.path(sha256).rename(gone)
            await asyncio.to_thread(remove_tree, gone)

    def _reset(self) -> None:
        remove_tree(self._root)
        self._root.mkdir(mode=0o711, parents=True)
        self._root.chmod(0o711)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _discard(archive: Path, draft: Path) -> None:
    archive.unlink(missing_ok=True)
    remove_tree(draft)


def checked_name(info: zipfile.ZipInfo) -> PurePosixPath:
    """The safe relative path of an entry. Raises `BundleError` for anything else."""
    name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
    parts = name.rstrip("/").split("/")
    if (
        not name
        or name.startswith("/")
        or "\\" in name
        or "\0" in name
        or any(p in ("", ".", "..") for p in parts)
    ):
        raise BundleError(f"the bundle holds the unsafe path {name!r}.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BundleError(f"the bundle holds {name!r}, which is neither a file nor a directory.")
    if info.flag_bits & 1:
        raise BundleError(f"the bundle holds {name!r} encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Others take as much memory to unpack as their header says.
        raise BundleError(f"the bundle holds {name!r} packed in a way that bundles are not.")
    return PurePosixPath(*parts)


def unpack(archive: Path, target: Path, *, max_bytes: int = MAX_UNPACKED, max_files: int = MAX_FILES) -> int:
    """Unpack read-only into the new directory ``target``; returns its bytes. Raises `BundleError`.

    Declared sizes are not believed: what is really written counts against ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            entries = [(checked_name(info), info) for info in bundle.infolist()]
            if len(entries) > max_files:
                raise BundleError(f"the bundle holds {len(entries)} files, more than {max_files}.")
            if len({path for path, _ in entries}) != len(entries):
                raise BundleError("the bundle holds a path twice.")
            # Closed until all is there: what is being written must be nobody else's, whatever the umask.
            target.mkdir(mode=0o700)
            written = 0
            for path, info in entries:
                if info.is_dir():
                    (target / path).mkdir(parents=True, exist_ok=True)
                else:
                    written = _extract(bundle, info, target / path, written, max_bytes)
    except _DAMAGED as error:
        raise BundleError(f"the bundle cannot be unpacked: {error}") from error
    for root, _, _ in os.walk(target, topdown=False):
        # Instances run as other users and read it; nobody writes.
        os.chmod(root, 0o555)  # noqa: S103
    return written


def _extract(bundle: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, written: int, max_bytes: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o555 if (info.external_attr >> 16) & 0o111 else 0o444
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with bundle.open(info) as source, os.fdopen(fd, "wb") as sink:
        while piece := source.read(1 << 20):
            written += len(piece)
            if written > max_bytes:
                raise BundleError(f"the bundle unpacks to more than {max_bytes} bytes.")
            sink.write(piece)
    os.chmod(path, mode)
    return written
