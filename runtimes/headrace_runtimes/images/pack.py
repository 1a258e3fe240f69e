"""Writes layers: of the upper directory of an overlay, of copied files, of a whole root file system."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from headrace_runtimes.images.unpack import KEPT_XATTRS, OPAQUE, OPAQUE_XATTR, WHITEOUT
from headrace_runtimes.images.view import look

LEVEL = 1
"""Of gzip: a layer is written once and read on the same disk."""


@dataclass(frozen=True)
class Entry:
    """A file that is copied into an image."""

    source: Path
    target: str
    """Absolute path in the image."""
    runs: bool


class _Hashed:
    """Hashes what is written on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash, self._at = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self._at += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._at


class LayerWriter:
    """A layer that is being written to ``path``; ``diff_id`` (hex) is known after the block."""

    def __init__(self, path: Path) -> None:
        self._path, self.diff_id = path, ""

    def __enter__(self) -> tarfile.TarFile:
        self._file = open(self._path, "wb")
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=self._file, mtime=0)
        self._hashed = _Hashed(self._gzip)  # type: ignore[arg-type]
        sink: Any = self._hashed
        self._tar = tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT)
        return self._tar

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._tar.close()
                self._gzip.close()
                self.diff_id = self._hashed.hash.hexdigest()
        finally:
            self._file.close()


def write_tree(top: Path, target: Path, without: Collection[str] = ()) -> str:
    """The layer of a directory, in the form that overlayfs gives an upper one; its diff_id (hex). Blocks.

    Paths in ``without`` (relative, no slash at the ends) and what is below them are left out.
    """
    writer = LayerWriter(target)
    with writer as tar:
        _add_directory(tar, top, "", frozenset(without), {})
    return writer.diff_id


def write_files(entries: Sequence[Entry], layers: Sequence[Path], target: Path) -> str:
    """The layer of copied files; its diff_id (hex). Blocks.

    Directories above a file get the attributes that they have in ``layers`` (top first), and links among
    them are resolved as the image will: an overlay shows those of the upper layer.
    """
    writer = LayerWriter(target)
    written: set[tuple[str, ...]] = set()
    with writer as tar:
        for entry in sorted(entries, key=lambda e: e.target):
            parts = _real(layers, entry.target)
            for depth in range(1, len(parts)):
                if parts[:depth] not in written:
                    written.add(parts[:depth])
                    tar.addfile(_directory_info(layers, parts[:depth]))
            info = tarfile.TarInfo("/".join(parts))
            info.mode = 0o755 if entry.runs else 0o644
            info.size = entry.source.stat().st_size
            with open(entry.source, "rb") as file:
                tar.addfile(info, file)
    return writer.diff_id


def _real(layers: Sequence[Path], target: str) -> tuple[str, ...]:
    """Where a path of the image really lies: links among its directories followed as far as they lead."""
    parts = tuple(p for p in target.split("/") if p not in ("", "."))
    for depth in range(len(parts) - 1, 0, -1):
        seen = look(layers, "/".join(parts[:depth]))
        if seen is not None:
            return (*seen.path, *parts[depth:])
    return parts


def _directory_info(layers: Sequence[Path], parts: tuple[str, ...]) -> tarfile.TarInfo:
    info = tarfile.TarInfo("/".join(parts))
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    seen = look(layers, "/".join(parts), follow=False)
    if seen is not None and stat.S_ISDIR(seen.stat.st_mode):
        info.mode = stat.S_IMODE(seen.stat.st_mode)
        info.uid, info.gid = seen.stat.st_uid, seen.stat.st_gid
        info.mtime = int(seen.stat.st_mtime)
    return info


def _add_directory(
    tar: tarfile.TarFile, top: Path, inside: str, without: frozenset[str], links: dict[tuple[int, int], str]
) -> None:
    directory = top / inside
    if inside and _is_opaque(directory):
        tar.addfile(tarfile.TarInfo(f"{inside}/{OPAQUE}"))
    for name in sorted(os.listdir(directory)):
        path = f"{inside}/{name}" if inside else name
        if path in without:
            continue
        about = os.lstat(top / path)
        if stat.S_ISCHR(about.st_mode) and about.st_rdev == 0:
            tar.addfile(tarfile.TarInfo(f"{inside}/{WHITEOUT}{name}" if inside else WHITEOUT + name))
            continue
        _add(tar, top, path, about, links)
        if stat.S_ISDIR(about.st_mode):
            _add_directory(tar, top, path, without, links)


def _add(
    tar: tarfile.TarFile, top: Path, path: str, about: os.stat_result, links: dict[tuple[int, int], str]
) -> None:
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.gid = stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid
    info.mtime = int(about.st_mtime)
    if stat.S_ISDIR(about.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(about.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(top / path)
    elif stat.S_ISFIFO(about.st_mode):
        info.type = tarfile.FIFOTYPE
    elif not stat.S_ISREG(about.st_mode):
        return
    elif (about.st_dev, about.st_ino) in links:
        info.type, info.linkname = tarfile.LNKTYPE, links[about.st_dev, about.st_ino]
    if not stat.S_ISLNK(about.st_mode):
        info.pax_headers = _attributes(top / path)
    if info.type != tarfile.REGTYPE:
        tar.addfile(info)
        return
    if about.st_nlink > 1:
        links[about.st_dev, about.st_ino] = path
    info.size = about.st_size
    with open(top / path, "rb") as file:
        tar.addfile(info, file)


def _attributes(path: Path) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith(KEPT_XATTRS):
                value = os.getxattr(path, name).decode("utf-8", "surrogateescape")
                found[f"SCHILY.xattr.{name}"] = value
    return found


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR) == b"y"
    except OSError:
        return False
