"""Reads a tar that somebody else has written: forward only, within bounds, its hash taken on the way.

``tarfile`` alone believes what a header says: a name of eight gigabytes is read into memory, and each
member is remembered. Here every read for headers has a budget, and members are forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from headrace_runtimes.errors import ImageFailed

CHUNK = 1 << 20
HEADER_BUDGET = 1 << 20
"""Bytes of headers (long names, attributes, maps of holes) that one member may have."""
BROKEN = (
    tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, LookupError, TypeError,
    AttributeError, struct.error, zlib.error, MemoryError,
)  # fmt: skip
"""What ``tarfile`` and ``zlib`` raise for bytes that are no archive."""


@dataclass(frozen=True)
class Bounds:
    """What a layer may be at most."""

    unpacked: int = 64 << 30
    """Bytes of the archive when decompressed, and of all files together, holes included."""
    members: int = 2_000_000


class Source(Protocol):
    """Decompressed bytes, in order."""

    def read(self, size: int) -> bytes:
        """At most ``size``, empty at the end."""
        ...


class Gunzip:
    """Members of gzip, one after the other; never more in memory than was asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder, self._rest = file, zlib.decompressobj(31), b""
        self._begun = False

    def read(self, size: int) -> bytes:
        """See `Source`."""
        while True:
            if self._decoder.eof:
                self._rest = self._decoder.unused_data or self._file.read(CHUNK)
                if not self._rest.strip(b"\0"):
                    return b""
                self._decoder, self._begun = zlib.decompressobj(31), False
            data = self._rest or self._decoder.unconsumed_tail or self._file.read(CHUNK)
            self._rest = b""
            if not data:
                if self._begun:
                    raise EOFError("the compressed data end too early")
                return b""
            self._begun = True
            out = self._decoder.decompress(data, size)
            if out:
                return out


@contextlib.contextmanager
def opened(blob: Path) -> Iterator[Source]:
    """The bytes of a layer, whatever it is compressed with. Raises `ImageFailed`, ``OSError``."""
    with open(blob, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            yield Gunzip(file)
        elif magic == b"\x28\xb5\x2f\xfd":
            with _zstd(file) as source:
                yield source
        else:
            yield file


@contextlib.contextmanager
def _zstd(file: BinaryIO) -> Iterator[Source]:
    binary = shutil.which("zstd")
    if binary is None:
        raise ImageFailed("The image's layers are compressed with zstd: apt-get install zstd on this host.")
    process = subprocess.Popen(
        [binary, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
    )
    assert process.stdout is not None
    try:
        yield process.stdout
        if process.wait(timeout=10) != 0:
            raise EOFError("zstd: the compressed data are damaged")
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


class Stream:
    """What ``tarfile`` reads from: goes forward only, counts, hashes, and refuses what is too much."""

    def __init__(self, source: Source, bounds: Bounds) -> None:
        self._source, self._bounds = source, bounds
        self._at, self._budget = 0, HEADER_BUDGET
        self._hash = hashlib.sha256()

    def tell(self) -> int:
        """Bytes read so far."""
        return self._at

    def seek(self, to: int) -> int:
        """Skip forward. Raises ``ValueError`` for a way back."""
        if to < self._at:
            raise ValueError("the archive points backwards")
        while self._at < to:
            if not self._take(min(CHUNK, to - self._at)):
                raise EOFError("the archive ends too early")
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes of headers. Raises ``ValueError`` when a member has too many of them."""
        if size < 0 or size > self._budget:
            raise ValueError("a member's header is too large")
        self._budget -= size
        return self._exactly(size)

    def data(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes, in pieces. Raises ``EOFError``."""
        while size:
            piece = self._take(min(CHUNK, size))
            if not piece:
                raise EOFError("the archive ends too early")
            size -= len(piece)
            yield piece

    def next_member(self) -> None:
        """A new member begins: its headers have a new budget."""
        self._budget = HEADER_BUDGET

    def finish(self) -> str:
        """Read what follows the archive's end; the SHA-256 (hex) of everything."""
        while self._take(CHUNK):
            pass
        return self._hash.hexdigest()

    def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._take(size)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _take(self, size: int) -> bytes:
        piece = self._source.read(size)
        self._at += len(piece)
        if self._at > self._bounds.unpacked:
            raise ValueError(f"it has more than {self._bounds.unpacked >> 20} MiB unpacked")
        self._hash.update(piece)
        return piece


def members(stream: Stream, bounds: Bounds) -> Iterator[tarfile.TarInfo]:
    """Members in order, none of them kept. Raises what `BROKEN` names."""
    archive: Any = tarfile.TarFile(
        fileobj=stream,  # type: ignore[arg-type]
        mode="r", encoding="utf-8", errors="surrogateescape", errorlevel=2,
    )  # fmt: skip
    count = 0
    while True:
        stream.next_member()
        member = archive.next()
        if member is None:
            return
        count += 1
        if count > bounds.members:
            raise ValueError(f"it has more than {bounds.members} members")
        archive.members.clear()
        yield member
