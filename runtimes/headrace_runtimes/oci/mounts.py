"""Mounts: overlays on the host, and directories shown in a running container. System calls by ctypes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed

MS_NOSUID, MS_NODEV = 2, 4
MNT_DETACH = 2
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
"""The same numbers on all architectures (they were added after the tables were joined)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def overlay(lower: list[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount ``lower`` (top first) with a writable ``upper`` at ``target``. Raises ``OSError``."""
    data = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    _check(
        _libc.mount(b"overlay", os.fsencode(target), b"overlay", MS_NODEV, data.encode()), f"mount {target}"
    )


def unmount(target: Path) -> None:
    """Take a mount away, also while it is in use. Raises ``OSError``."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def show(pid: int, source: Path, target: str) -> None:
    """Show ``source`` read-only at ``target`` in the mount namespace of ``pid``. Raises `PrepareFailed`.

    Must run in a thread of its own that ends afterwards: it leaves the file system context of the process.
    """
    try:
        tree = _check(
            _libc.syscall(
                SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source),
                OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE,
            ),
            f"open_tree {source}",
        )  # fmt: skip
        try:
            attr = _MountAttr(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
            _check(
                _libc.syscall(
                    SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE,
                    ctypes.byref(attr), ctypes.sizeof(attr),
                ),
                "mount_setattr",
            )  # fmt: skip
            space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.unshare(CLONE_FS), "unshare")
                _check(_libc.setns(space, CLONE_NEWNS), "setns")
            finally:
                os.close(space)
            _check(
                _libc.syscall(
                    SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
                ),
                f"move_mount {target}",
            )
        finally:
            os.close(tree)
    except OSError as error:
        raise PrepareFailed(f"{source} cannot be shown in the container: {error.strerror}.") from error
