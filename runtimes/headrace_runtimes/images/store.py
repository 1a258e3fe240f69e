"""Where a host keeps images: an OCI image layout, its layers unpacked once each, and who uses what.

    oci-layout index.json blobs/sha256/*   the layout: blobs verified while written, references with digests
    l/<26 hex>                             an unpacked layer: a lower directory of overlays
    done/<26 hex>                          says that the layer is whole, and of what it was made
    part/*                                 what is being written; whatever lies there at `open` is garbage
    pins/*  locks/*                        held by processes that live

Several processes may share one. What is named is whole: everything is written aside, flushed and renamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.reference import (
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    diff_ids,
    is_digest,
    manifest_of,
)
from headrace_runtimes.images.tarstream import Bounds
from headrace_runtimes.images.tool import free
from headrace_runtimes.images.unpack import CHECK_EVERY, SPARE_BYTES, unpack_layer
from headrace_runtimes.locks import try_lock
from headrace_runtimes.trees import remove_tree

NAME = "org.opencontainers.image.ref.name"
SHORT = 26
"""Hex digits of a layer's directory: all of them have to fit into the 4096 bytes of a mount's options."""
MAX_DOCUMENT = 8 << 20
"""Bytes of a manifest or a configuration."""
KEEP_PART_S = 86_400.0
UNPACKERS = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Stored:
    """An image that is here, whole: its manifest, and its configuration."""

    digest: str
    manifest: Manifest
    config: Any


class Blob:
    """A blob that is being written: verified, then named. See `Store.write`."""

    def __init__(self, path: Path, file: io.FileIO, descriptor: Descriptor) -> None:
        self._path, self._file, self._descriptor = path, file, descriptor
        self._hash = hashlib.sha256()
        self._unchecked = CHECK_EVERY
        self.size = 0

    def resume(self) -> None:
        """Go on where an earlier attempt of this machine ended. Blocks."""
        self._file.seek(0)
        while piece := self._file.read(1 << 20):
            self._hash.update(piece)
            self.size += len(piece)
        if self.size > self._descriptor.size:
            self.restart()

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._hash, self.size = hashlib.sha256(), 0

    def add(self, piece: bytes) -> None:
        """Append. Blocks.

        Raises `ImageFailed` when it becomes longer than was said, `PrepareFailed` before the disk is full, or
        when it does not take it: all of it is gone then.
        """
        if self.size + len(piece) > self._descriptor.size:
            raise ImageFailed(f"{self._descriptor.digest} is longer than its manifest says: push it again.")
        self._unchecked += len(piece)
        if self._unchecked >= CHECK_EVERY:
            self._unchecked = 0
            if free(self._path.parent) < SPARE_BYTES:
                self.restart()
                raise PrepareFailed(f"{self._path.parent} has no room for the image: make some there.")
        rest = memoryview(piece)
        try:
            with kept_in(self._path.parent):
                while rest:
                    rest = rest[self._file.write(rest) :]
        except PrepareFailed:
            with contextlib.suppress(OSError):
                self.restart()
            raise
        # Not before it is written: what they say is so of the file.
        self._hash.update(piece)
        self.size += len(piece)

    def whole(self) -> bool:
        """Whether it is what was asked for."""
        found = f"sha256:{self._hash.hexdigest()}"
        return self.size == self._descriptor.size and found == self._descriptor.digest

    def keep(self, target: Path) -> None:
        """Blocks until it is on disk, then gives it its name. Raises `PrepareFailed`."""
        with kept_in(target.parent):
            os.fsync(self._file.fileno())
            self._path.rename(target)


class Store:
    """Images below ``directory``. Nothing is done before `open`."""

    def __init__(self, directory: Path, bounds: Bounds | None = None) -> None:
        self.directory, self._bounds = directory, bounds or Bounds()
        self._blobs = directory / "blobs/sha256"
        self._layers, self._done, self._part = directory / "l", directory / "done", directory / "part"
        self._unpackers = asyncio.Semaphore(UNPACKERS)

    async def open(self) -> None:
        """Make the directories and remove what was left half-made. Raises `PrepareFailed`."""
        with kept_in(self.directory):
            await asyncio.to_thread(self._open)

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        if not is_digest(digest):
            raise ImageFailed(f"{digest!r:.100} is no SHA-256 digest.")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is here, whole."""
        try:
            return self.blob(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    @contextlib.asynccontextmanager
    async def write(self, descriptor: Descriptor) -> AsyncIterator[Blob | None]:
        """A blob to fill; None when it is here, maybe since another process has just brought it.

        It gets its name when the block ends and it is whole. What a broken download has left stays for
        `Blob.resume`. Raises `ImageFailed` when what was written is something else, `PrepareFailed` when the
        disk does not take it.
        """
        target = self.blob(descriptor.digest)
        async with alone(self.directory / "locks" / target.name, f"blob {descriptor.digest}"):
            if self.has(descriptor):
                yield None
                return
            path = self._part / target.name
            with kept_in(self._part):
                # Not buffered: what the disk does not take is known at once, and of no later piece.
                file = open(path, "a+b", buffering=0)  # noqa: ASYNC230, SIM115 - opening is quick
            with file:
                blob = Blob(path, file, descriptor)
                yield blob
                if not blob.whole():
                    path.unlink()
                    raise ImageFailed(
                        f"{descriptor.digest} is not what its digest says: push or pull it again."
                    )
                await asyncio.to_thread(blob.keep, target)

    async def put(self, data: bytes, media_type: str) -> Descriptor:
        """Keep a small document."""
        found = Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        async with self.write(found) as blob:
            if blob is not None:
                blob.restart()
                blob.add(data)
        return found

    async def put_file(self, path: Path, media_type: str) -> Descriptor:
        """Keep a file's content; the file stays."""
        digest, size = await asyncio.to_thread(_hash_file, path)
        found = Descriptor(media_type, f"sha256:{digest}", size)
        async with self.write(found) as blob:
            if blob is not None:
                await asyncio.to_thread(_fill, blob, path)
        return found

    def document(self, digest: str) -> Any:
        """A manifest or configuration. Raises `ImageFailed`."""
        try:
            path = self.blob(digest)
            if path.stat().st_size > MAX_DOCUMENT:
                raise ImageFailed(f"{digest} is too large for a manifest.")
            data = path.read_bytes()
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                path.unlink(missing_ok=True)
                raise ImageFailed(f"{digest} is damaged on this disk: prepare the image again.")
            return json.loads(data)
        except (OSError, ValueError, RecursionError) as error:
            raise ImageFailed(f"{digest} cannot be read ({error}): prepare the image again.") from error

    def find(self, reference: str) -> Stored | None:
        """The image of that name, if all its blobs are here; it counts as used now."""
        digest = self._index().get(reference)
        if digest is None:
            return None
        try:
            stored = self.load(digest)
        except ImageFailed:
            return None
        if not all(self.has(d) for d in (stored.manifest.config, *stored.manifest.layers)):
            return None
        os.utime(self.blob(digest))
        return stored

    def load(self, digest: str) -> Stored:
        """The image of a manifest. Raises `ImageFailed`."""
        manifest = manifest_of(self.document(digest))
        config = self.document(manifest.config.digest)
        if len(diff_ids(config)) != len(manifest.layers):
            raise ImageFailed(f"{digest} says two different numbers of layers: push it again.")
        return Stored(digest, manifest, config)

    async def name(self, reference: str, digest: str) -> None:
        """From now on ``reference`` is this manifest. Raises `PrepareFailed`."""
        async with alone(self.directory / "locks/index", "the index of images"):
            await asyncio.to_thread(self._save, self._index() | {reference: digest})

    async def forget(self, references: list[str]) -> None:
        """Take names away; `gc.collect` removes what no name leads to. Raises `PrepareFailed`."""
        async with alone(self.directory / "locks/index", "the index of images"):
            left = {k: v for k, v in self._index().items() if k not in references}
            await asyncio.to_thread(self._save, left)

    def references(self) -> dict[str, str]:
        """Name -> digest of a manifest."""
        return self._index()

    async def layer(self, descriptor: Descriptor, diff_id: str) -> Path:
        """The unpacked layer; unpacked now if it is not there. Raises `ImageFailed`, `PrepareFailed`."""
        short = diff_id.removeprefix("sha256:")[:SHORT]
        target = self._layers / short
        if self._whole(short, diff_id):
            return target
        async with self._unpackers, alone(self.directory / "locks" / short, f"layer {short}"):
            if not self._whole(short, diff_id):
                await asyncio.to_thread(self._unpack, descriptor, diff_id, target)
        return target

    def layer_bytes(self, short: str) -> int:
        """What an unpacked layer has on disk; 0 when it is not whole."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self._done / short).read_bytes())["bytes"])
        return 0

    @contextlib.contextmanager
    def pin(self, digest: str) -> Iterator[None]:
        """While this lasts, and this process lives, the manifest and its layers stay.

        Raises `PrepareFailed`.
        """
        if not is_digest(digest):
            raise ImageFailed(f"{digest!r:.100} is no SHA-256 digest.")
        path = self.directory / "pins" / f"{digest.removeprefix('sha256:')}.{os.urandom(8).hex()}"
        with kept_in(self.directory):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Waits for `pinned`, which may hold it for a moment to see whether we live.
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(file)

    def pinned(self) -> set[str]:
        """Digests of manifests that living processes hold; what dead ones left is removed."""
        found = set()
        for path in (self.directory / "pins").iterdir():
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                # A pin is empty of a lock for a moment after it was made.
                if try_lock(file) and time.time() - path.stat().st_mtime > 1.0:
                    path.unlink(missing_ok=True)
                else:
                    found.add("sha256:" + path.name.partition(".")[0])
            except FileNotFoundError:
                continue
            finally:
                os.close(file)
        return found

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for what is being made, on the same file system as everything else. Blocks at its end.

        It is locked: `dead_scratches` finds those whose makers have died.
        """
        name = f"w-{os.urandom(8).hex()}"
        hidden, path = self._part / f".{name}", self._part / name
        hidden.mkdir(mode=0o700)
        lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try_lock(lock)
            hidden.rename(path)
            yield path
        finally:
            remove_tree(path)
            os.close(lock)

    def _whole(self, short: str, diff_id: str) -> bool:
        try:
            found = json.loads((self._done / short).read_bytes())
        except (OSError, ValueError):
            return False
        if found.get("diff_id") != diff_id:
            return False
        with contextlib.suppress(OSError):
            os.utime(self._done / short)
        return (self._layers / short).is_dir()

    def _unpack(self, descriptor: Descriptor, diff_id: str, target: Path) -> None:
        with kept_in(self.directory), self.scratch() as part:
            inner = part / "l"
            inner.mkdir(mode=0o755)
            blob = self.blob(descriptor.digest)
            try:
                found = unpack_layer(blob, inner, self._bounds)
            except ImageFailed as error:
                if f"sha256:{_hash_file(blob)[0]}" == descriptor.digest:
                    raise
                blob.unlink(missing_ok=True)
                raise ImageFailed(f"{blob} is damaged on this disk: prepare the image again.") from error
            if f"sha256:{found.diff_id}" != diff_id:
                raise ImageFailed(f"Layer {descriptor.digest} holds something else than the image says.")
            sync(part)
            if target.exists():
                os.rename(target, part / "old")
            os.rename(inner, target)
            marker = {"diff_id": diff_id, "bytes": found.bytes, "left_out": found.left_out}
            write_whole(self._done / target.name, json.dumps(marker).encode(), part / "done")

    def _index(self) -> dict[str, str]:
        try:
            entries = json.loads((self.directory / "index.json").read_bytes())["manifests"]
            return {e["annotations"][NAME]: e["digest"] for e in entries if is_digest(e["digest"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            # Every name can be found again: pulled, or built from cached steps.
            return {}

    def _save(self, names: dict[str, str]) -> None:
        entries = [
            Descriptor(self._media_type(digest), digest, self.blob(digest).stat().st_size).encode()
            | {"annotations": {NAME: name}}
            for name, digest in sorted(names.items())
            if self.blob(digest).exists()
        ]  # fmt: skip
        data = json.dumps({"schemaVersion": 2, "manifests": entries}, indent=1).encode()
        with kept_in(self.directory):
            write_whole(self.directory / "index.json", data, self._part / f"i-{os.urandom(8).hex()}")

    def _media_type(self, digest: str) -> str:
        try:
            return str(self.document(digest).get("mediaType") or OCI_MANIFEST)
        except (ImageFailed, AttributeError):
            return OCI_MANIFEST

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in (self._blobs, self._done, self.directory / "pins", self.directory / "locks"):
            path.mkdir(parents=True, exist_ok=True)
        for path in (self._layers, self._part):
            # Closed to all but root: layers hold set-uid files.
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700)
        write_whole(self.directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', self._part / ".layout")
        for path in self._part.glob("gone-*"):
            remove_tree(path)
        for path in dead_scratches(self._part):
            # A build's is `step.sweep`'s: there may be a container in it.
            if not (path / "state").exists():
                remove_tree(path)
        for path in (p for p in self._part.iterdir() if not p.name.startswith("w-")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > KEEP_PART_S:
                    remove_tree(path)


@contextlib.contextmanager
def kept_in(directory: Path) -> Iterator[None]:
    """Something is written there. Raises `PrepareFailed` for an ``OSError``."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise PrepareFailed(
            f"Images cannot be kept in {directory}: {why}. Make room or give rights there."
        ) from error


def sync(directory: Path) -> None:
    """Everything below is on disk. Blocks. Raises ``OSError``."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(file) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(file)


def dead_scratches(part: Path) -> Iterator[Path]:
    """Directories of `Store.scratch` whose makers have died, each locked while it is looked at. Blocks."""
    for path in part.glob("w-*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if try_lock(lock):
                yield path
        finally:
            os.close(lock)


def write_whole(path: Path, data: bytes, part: Path) -> None:
    """Write so that ``path`` is the old or the new, never half. Blocks."""
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _hash_file(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return found.hexdigest(), file.tell()


def _fill(blob: Blob, path: Path) -> None:
    blob.restart()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            blob.add(piece)
