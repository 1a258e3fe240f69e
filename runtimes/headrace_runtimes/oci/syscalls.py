"""System calls about mounts and namespaces, by ctypes: Python has none of them. All raise ``OSError``."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from headrace_runtimes.userns import user_namespace as user_namespace  # noqa: PLC0414 - one of these calls

MS_NOSUID, MS_NODEV, MS_NOATIME = 2, 4, 1024
MNT_DETACH = 2
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_IDMAP = 1, 2, 4, 0x10_0000
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


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode())
    _check(result, f"mount {target}")


def unmount(target: Path) -> None:
    """Take a mount away, also while it is in use."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def open_tree(source: Path) -> int:
    """A descriptor of a copy of the mounts at ``source`` and below, mounted nowhere."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return _check(_libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags), f"open_tree {source}")


def set_attributes(tree: int, attributes: int, userns: int = 0, *, deep: bool = True) -> None:
    """mount_setattr(2) on what `open_tree` gave."""
    attr = _MountAttr(attributes, 0, 0, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if deep else 0)
    result = _libc.syscall(SYS_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))
    _check(result, "mount_setattr")


def attach(tree: int, target: str | Path) -> None:
    """Mount what `open_tree` gave at ``target``."""
    result = _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    _check(result, f"move_mount {target}")


def enter_mounts_of(pid: int) -> None:
    """Move the calling thread into the mount namespace of ``pid``; it must end afterwards."""
    space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_FS), "unshare")
        _check(_libc.setns(space, CLONE_NEWNS), "setns")
    finally:
        os.close(space)


def act_as(id: int) -> None:
    """Let the calling thread use files as ``id`` (user and group) does; what else it may do is as before."""
    # They have no way to fail but silently: what was set is asked for again.
    for name in ("setfsgid", "setfsuid"):
        getattr(_libc, name)(id)
        if getattr(_libc, name)(-1) != id:
            raise OSError(errno.EPERM, f"{name}: {os.strerror(errno.EPERM)}")
