"""Unpacks one layer into a directory of its own, in the form that overlayfs wants below.

Nothing that the archive says reaches a place outside: every name is walked from the layer's own directory,
part by part, by descriptors that follow no link. What is left out: device nodes, and extended attributes
that speak to overlayfs or give rights. What is refused: ``..``, ways through links, hard links to what is
not there, endless things. Set-uid bits stay: the directory above is closed to everybody but root.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.tarstream import BROKEN, Bounds, Stream, members, opened

WHITEOUT, OPAQUE, RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
OPAQUE_XATTR = "trusted.overlay.opaque"
KEPT_XATTRS = ("user.", "security.capability")
"""Others would speak to overlayfs (``trusted.overlay.redirect``), or to a policy of the host's."""
MAX_ID, NOBODY = 65_535, 65_534
"""Ids that a container has; others are nobody's."""
MAX_DEPTH, MAX_PATH = 512, 4096
SPARE_BYTES = 256 << 20
"""A file system with less than this left is full."""
SPARE_INODES = 8192
"""So many files more it must be able to have; file systems that count none say 0 of 0."""
CHECK_EVERY = 64 << 20
INODE_BYTES = 16 << 10
"""What a file, directory or name counts as beside its data: more than its inode, block and name take, so
that 4096 of them are looked at like 64 MiB."""
TIMES_BYTES = 64 << 20
"""Names of directories that are remembered for their times; those after these keep the time of unpacking."""
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Unpacked:
    """What came of a layer."""

    diff_id: str
    """SHA-256 (hex) of the decompressed archive."""
    bytes: int
    """Of all files, without holes."""
    left_out: int
    """Device nodes that are not there."""


class _Refused(ValueError):
    """The archive wants what no layer may."""


def unpack_layer(blob: Path, target: Path, bounds: Bounds | None = None) -> Unpacked:
    """Unpack into the existing, empty directory ``target``. Blocks.

    Raises `ImageFailed` when the layer is at fault, `PrepareFailed` when this host is; what is in ``target``
    then must not be used.
    """
    bounds = bounds or Bounds()
    try:
        with opened(blob) as source:
            stream = Stream(source, bounds)
            layer = _Layer(target, stream, bounds)
            try:
                for member in members(stream, bounds):
                    layer.add(member)
                layer.finish()
                return Unpacked(stream.finish(), layer.bytes, layer.left_out)
            finally:
                layer.close()
    except BROKEN as error:
        raise ImageFailed(
            f"A layer of the image is refused: {str(error) or type(error).__name__}. Build it anew."
        ) from error
    except OSError as error:
        raise PrepareFailed(
            f"A layer of the image cannot be unpacked: {error.strerror or error}. "
            f"Make room or give rights in {target.parent}."
        ) from error


class _Layer:
    def __init__(self, target: Path, stream: Stream, bounds: Bounds) -> None:
        self._stream, self._bounds = stream, bounds
        self._top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._dev = os.fstat(self._top).st_dev
        self._times: list[tuple[str, float]] = []
        self._times_bytes = self._inodes = 0
        self._apparent, self._unchecked = 0, CHECK_EVERY
        self.bytes = self.left_out = 0

    def close(self) -> None:
        os.close(self._top)

    def add(self, member: tarfile.TarInfo) -> None:
        parts = split(member.name)
        if not parts:
            if member.isdir():
                self._attributes(self._top, ".", member)
                os.chmod(self._top, member.mode & 0o7777)
            return
        name = parts[-1]
        with self._parent(parts, make=True) as parent:
            if name.startswith(WHITEOUT):
                self._whiteout(parent, name)
            elif member.isdir():
                self._directory(parent, parts, member)
            elif member.issym():
                self._make_room(parent, name)
                os.symlink(member.linkname, name, dir_fd=parent)
                self._attributes(parent, name, member)
            elif member.islnk():
                self._hard_link(parent, name, member)
            elif member.isfifo():
                self._make_room(parent, name)
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._attributes(parent, name, member)
            elif member.isreg():
                self._file(parent, name, member)
            elif member.isdev():
                self.left_out += 1
            else:
                raise _Refused(f"{member.name!r:.200} is of no known kind")

    def finish(self) -> None:
        """Times of directories, last: each file made in them changed them."""
        for name, at in reversed(self._times):
            with contextlib.suppress(OSError), self._parent((*split(name), ""), make=False) as directory:
                os.utime(f"/proc/self/fd/{directory}", (at, at))

    @contextlib.contextmanager
    def _parent(self, parts: tuple[str, ...], *, make: bool) -> Iterator[int]:
        """A descriptor of the directory that ``parts`` ends in. No link is followed."""
        at = os.dup(self._top)
        try:
            for part in parts[:-1]:
                try:
                    below = os.open(part, _WALK, dir_fd=at)
                except FileNotFoundError:
                    if not make:
                        raise
                    self._count()
                    os.mkdir(part, 0o755, dir_fd=at)
                    below = os.open(part, _WALK, dir_fd=at)
                except NotADirectoryError as error:
                    if make and self._is_whiteout(at, part):
                        self._make_directory(at, part)
                        below = os.open(part, _WALK, dir_fd=at)
                    else:
                        raise _Refused(
                            f"{'/'.join(parts)!r:.200} goes through what is no directory"
                        ) from error
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)

    def _directory(self, parent: int, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        name = parts[-1]
        there = _kind(parent, name)
        if there is None or not stat.S_ISDIR(there):
            self._make_directory(parent, name)
        self._attributes(parent, name, member)
        path = "/".join(parts)
        self._times_bytes += len(path)
        if self._times_bytes <= TIMES_BYTES:
            self._times.append((path, _time(member)))

    def _make_directory(self, parent: int, name: str) -> None:
        """A new directory; one in the place of a whiteout hides what is below it."""
        hides = self._is_whiteout(parent, name)
        self._make_room(parent, name)
        os.mkdir(name, 0o755, dir_fd=parent)
        if hides:
            self._make_opaque(parent, name)

    def _hard_link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        link = split(member.linkname)
        if not link:
            raise _Refused(f"{member.name!r:.200} links to the top")
        missing = _Refused(f"{member.name!r:.200} links to what is not in the layer")
        try:
            with self._parent(link, make=False) as place:
                kind = _kind(place, link[-1])
                if kind is None or stat.S_ISDIR(kind) or stat.S_ISCHR(kind):
                    raise missing
                mine, its = os.fstat(parent), os.fstat(place)
                if (mine.st_ino, mine.st_dev, name) == (its.st_ino, its.st_dev, link[-1]):
                    return
                self._make_room(parent, name)
                os.link(link[-1], name, src_dir_fd=place, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError as error:
            raise missing from error

    def _file(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        self._grow(member.size)
        self._make_room(parent, name)
        file = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            # A map of holes in the 1.0 form lies before the data: ``offset_data`` is behind it.
            self._stream.seek(member.offset_data)
            holes: Any = member.sparse
            if holes is not None:
                self._sparse(file, member, holes)
            else:
                for piece in self._stream.data(member.size):
                    self._write(file, piece)
        finally:
            os.close(file)
        self._attributes(parent, name, member)

    def _sparse(self, file: int, member: tarfile.TarInfo, holes: Sequence[tuple[int, int]]) -> None:
        end = 0
        for offset, size in holes:
            if size == 0:
                continue
            if offset < end or size < 0 or offset + size > member.size:
                raise _Refused(f"{member.name!r:.200} has holes that make no sense")
            os.lseek(file, offset, os.SEEK_SET)
            for piece in self._stream.data(size):
                self._write(file, piece)
            end = offset + size
        os.ftruncate(file, member.size)

    def _write(self, file: int, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(file, view) :]
        self.bytes += len(piece)
        self._charge(len(piece))

    def _count(self) -> None:
        """One more inode or name, also of a directory that only others' names tell of."""
        self._inodes += 1
        if self._inodes > self._bounds.members:
            raise _Refused(f"it makes more than {self._bounds.members} files and directories")
        self._charge(INODE_BYTES)

    def _charge(self, size: int) -> None:
        """``size`` more bytes are taken: look now and then whether the file system has room for others."""
        self._unchecked += size
        if self._unchecked < CHECK_EVERY:
            return
        self._unchecked = 0
        space = os.fstatvfs(self._top)
        short = space.f_bavail * space.f_frsize < SPARE_BYTES
        if short or (space.f_files and space.f_favail < SPARE_INODES):
            raise OSError(
                errno.ENOSPC,
                f"No space left for images ({'bytes' if short else 'files'}; this layer has taken "
                f"{self.bytes >> 20} MiB and {self._inodes} files and directories)",
            )

    def _grow(self, size: int) -> None:
        self._apparent += size
        if size < 0 or self._apparent > self._bounds.unpacked:
            raise _Refused(f"its files have more than {self._bounds.unpacked >> 20} MiB")

    def _whiteout(self, parent: int, name: str) -> None:
        if name == OPAQUE:
            os.setxattr(f"/proc/self/fd/{parent}", OPAQUE_XATTR, b"y")
            return
        if name.startswith(RESERVED):
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise _Refused(f"{name!r} hides nothing that has a name")
        there = _kind(parent, hidden)
        if there is None:
            self._count()
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
        elif stat.S_ISDIR(there):
            self._make_opaque(parent, hidden)

    def _make_opaque(self, parent: int, name: str) -> None:
        directory = os.open(name, _WALK, dir_fd=parent)
        try:
            os.setxattr(f"/proc/self/fd/{directory}", OPAQUE_XATTR, b"y")
        finally:
            os.close(directory)

    def _is_whiteout(self, parent: int, name: str) -> bool:
        kind = _kind(parent, name)
        return kind is not None and stat.S_ISCHR(kind)

    def _clear(self, parent: int, name: str) -> None:
        """Make room for a member: the later of two wins, but no directory is taken away."""
        kind = _kind(parent, name)
        if kind is None:
            return
        if stat.S_ISDIR(kind):
            raise _Refused(f"{name!r:.200} is a directory and then something else")
        os.unlink(name, dir_fd=parent)

    def _make_room(self, parent: int, name: str) -> None:
        """For one that is about to be made: in the place, and in the counts."""
        self._count()
        self._clear(parent, name)

    def _attributes(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        """Owner, then mode (a change of owner takes set-uid away), attributes, times."""
        uid, gid = (i if 0 <= i <= MAX_ID else NOBODY for i in (member.uid, member.gid))
        if name == ".":
            os.fchown(parent, uid, gid)
            return
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if member.issym():
            return
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            place = f"/proc/self/fd/{handle}"
            os.chmod(place, member.mode & 0o7777)
            for key, value in member.pax_headers.items():
                attribute = key.removeprefix("SCHILY.xattr.")
                if attribute != key and attribute.startswith(KEPT_XATTRS):
                    self._charge(INODE_BYTES + len(value))
                    with contextlib.suppress(OSError):
                        os.setxattr(place, attribute, value.encode("utf-8", "surrogateescape"))
            if not member.isdir():
                os.utime(place, (_time(member), _time(member)))
        finally:
            os.close(handle)


def split(name: str) -> tuple[str, ...]:
    """The parts of a member's name below the layer's top. Raises ``ValueError``.

    A leading slash means the top, as all tools read it.
    """
    if "\0" in name or len(os.fsencode(name)) > MAX_PATH:
        raise _Refused("a member's name is too long or has a zero in it")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _Refused(f"{name!r:.200} leads outside")
    if len(parts) > MAX_DEPTH or any(len(os.fsencode(part)) > 255 for part in parts):
        raise _Refused(f"{name!r:.200} is too deep or too long")
    return parts


def _kind(parent: int, name: str) -> int | None:
    try:
        return os.lstat(name, dir_fd=parent).st_mode
    except FileNotFoundError:
        return None


def _time(member: tarfile.TarInfo) -> float:
    at = float(member.mtime)
    return 0.0 if math.isnan(at) else min(max(at, 0.0), 4e9)
