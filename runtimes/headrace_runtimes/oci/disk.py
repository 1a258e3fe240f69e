"""The writable layer of one container: a small file system of its own, so that its disk has an end.

A sparse file with ext4 in it, mounted by a loop device: it takes from the host's disk what is written, counts
all places together, files and directories too, and what is cached of it can be given up by the kernel at any
time. (A project quota needs a file system that was made with it; a tmpfs is memory, and is what is used where
there is no loop device.) It has no journal: nobody reads it after a crash.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import syscalls
from headrace_runtimes.oci.syscalls import MS_NOATIME, MS_NODEV, MS_NOSUID

DISK_BYTES = 4 << 30
"""What a container may write when nobody says otherwise."""
LEAST_BYTES = 1 << 20
MOST_BYTES = 60 << 30
SIZE_BYTES = 64 << 30
"""Of the file system. What nobody may use of it is taken by a file outside of what the container sees, as
blocks reserved and not written: so a limit is set in milliseconds (growing takes CAP_SYS_RESOURCE)."""
INODES = 1 << 18
TAKEN = "taken"
BLOCK = 4096
CONTROL = Path("/dev/loop-control")
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16
LOOP_TRIES = 64
MS_REMOUNT = 32
MKFS_TIMEOUT_S = 30.0
OPTIONS = "noinit_itable,discard,errors=remount-ro"
"""Tables that no file needs yet are not written, and what is deleted goes back to the host."""
_CONFIG = struct.Struct("II 5Q4I 64s64s32s 2Q 8Q")
_COPY_BYTES = 64 << 20


def why_no_loop() -> str:
    """Empty when file systems in files can be made here, else one line of why not."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed: apt-get install e2fsprogs"
    return "" if CONTROL.exists() else "there is no /dev/loop-control: modprobe loop"


def make_template(path: Path) -> Path:
    """An empty file system in a sparse file, with `DISK_BYTES` free. Blocks. Raises `PrepareFailed`."""
    if why := why_no_loop():
        raise PrepareFailed(f"No file system can be made in a file: {why}.")
    try:
        with path.open("wb") as file:
            file.truncate(SIZE_BYTES)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,meta_bg",
             "-E", "lazy_itable_init=1,nodiscard", "-N", str(INODES), str(path)],
            check=True, capture_output=True, timeout=MKFS_TIMEOUT_S,
        )  # fmt: skip
        place = path.with_name(path.name + ".at")
        place.mkdir()
        disk = Disk(place, path)
        try:
            disk.mount(None)
            try:
                disk.limit(DISK_BYTES)
            finally:
                syscalls.unmount(place)
        finally:
            place.rmdir()
    except (OSError, subprocess.SubprocessError) as error:
        raise PrepareFailed(f"No file system can be made in {path}: {error}.") from error
    return path


@dataclass(frozen=True)
class Disk:
    """``image``: its file, None for a file system in memory; ``path``: where it is mounted."""

    path: Path
    image: Path | None

    def mount(self, template: Path | None) -> None:
        """Make it as a copy (None: it is there) and mount it. Blocks for milliseconds. Raises ``OSError``."""
        if self.image is None:
            syscalls.mount("disk", self.path, "tmpfs", MS_NOSUID | MS_NODEV, f"size={DISK_BYTES},mode=711")
            return
        if template is not None:
            copy_sparse(template, self.image)
        number, loop = _attach(self.image)
        try:
            node = f"/dev/loop{number}"
            syscalls.mount(node, self.path, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, OPTIONS)
        finally:
            # The mount keeps the device; without it the device lets the file go.
            os.close(loop)

    def limit(self, count: int) -> None:
        """From now on it takes ``count`` bytes more. Blocks for milliseconds. Raises ``OSError``."""
        count = max(count, LEAST_BYTES)
        if self.image is None:
            syscalls.mount("disk", self.path, "tmpfs", MS_NOSUID | MS_NODEV | MS_REMOUNT, f"size={count}")
            return
        if count > MOST_BYTES:
            raise OSError(f"at most {MOST_BYTES >> 30} GiB can be had")
        with (self.path / TAKEN).open("ab") as file:
            size = max(0, os.fstat(file.fileno()).st_size + self._free() - count)
            file.truncate(size)
            if size:
                os.posix_fallocate(file.fileno(), 0, size)

    def device(self) -> str:
        """``major:minor``; empty for memory."""
        if self.image is None:
            return ""
        number = self.path.stat().st_dev
        return f"{os.major(number)}:{os.minor(number)}"

    def _free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


def copy_sparse(source: Path, target: Path) -> None:
    """Copy what is written in a file; its holes stay holes. Raises ``OSError``."""
    with source.open("rb") as old, target.open("xb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        at = 0
        while at < size:
            try:
                start = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # only a hole is left
            at = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            while start < at:
                done = os.copy_file_range(
                    old.fileno(), new.fileno(), min(at - start, _COPY_BYTES), start, start
                )
                if done == 0:
                    return
                start += done


def _attach(image: Path) -> tuple[int, int]:
    """A loop device for the file: its number and a descriptor. It goes when the last user does."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        last: OSError | None = None
        for _ in range(LOOP_TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            loop = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            for flags in (LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, LO_FLAGS_AUTOCLEAR):
                name = os.fsencode(image)[-63:]
                config = _CONFIG.pack(
                    file, BLOCK, 0, 0, 0, 0, 0, number, 0, 0, flags, name, b"", b"", 0, 0, *([0] * 8)
                )
                try:
                    fcntl.ioctl(loop, LOOP_CONFIGURE, config)
                except OSError as error:
                    # Somebody else was quicker, or the file's file system has no direct access.
                    last = error
                else:
                    return number, loop
            os.close(loop)
        raise last or OSError("no loop device")
    finally:
        os.close(file)
        os.close(control)
