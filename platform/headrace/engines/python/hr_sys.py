"""System calls that the standard library lacks, and how a process confines itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from typing import Iterable, List, Optional

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MAX_PROCESSES = 4096
"""Processes and threads of one uid: a fork bomb ends itself, not the machine."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _prctl(option: int, value: int, what: str) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), what)


def unshare_mounts() -> None:
    """A mount namespace of our own that propagates nothing. Raises `OSError`: it takes CAP_SYS_ADMIN."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def mount(source: Optional[str], target: str, kind: Optional[str], flags: int, data: str = "") -> None:
    """``mount(2)``. Raises `OSError`."""
    _check(
        _libc.mount(
            None if source is None else os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            flags,
            data.encode() or None,
        ),
        f"mount on {target}",
    )


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies; end at once when it is no longer ``parent``."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(0)


def no_new_privileges() -> None:
    """No setuid program gives this process or its descendants anything back."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def undumpable() -> None:
    """Nobody of the same uid may trace this process or read its memory."""
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def set_name(name: str) -> None:
    """The process's short name in ``ps`` (15 bytes)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0)


def drop_user(uid: Optional[int], gid: Optional[int]) -> None:
    """Become ``uid`` and ``gid`` for good (``None``: keep).

    Raises `PermissionError` when this process is neither root nor that user already.
    """
    if uid is None:
        return
    if os.geteuid() != 0:
        if os.geteuid() != uid:
            raise PermissionError(f"cannot become uid {uid}: this process is uid {os.geteuid()}, not root")
        return
    group = uid if gid is None else gid
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(uid, uid, uid)
    # A process that changed its uid may not read its own /proc/self/fd and /proc/self/maps; libraries do.
    _prctl(_PR_SET_DUMPABLE, 1, "PR_SET_DUMPABLE")


def become(uid: Optional[int], gid: Optional[int], parent: int) -> None:
    """Be who runs user code: that user, within limits, private files, no way back, death with the parent.

    Raises `PermissionError` as `drop_user` does.
    """
    # Less than any dump has; 0 would not hold where the kernel gives dumps to a program.
    limit(resource.RLIMIT_CORE, 1)
    if uid is not None:
        # Counted per user: without one of our own it would count our own user's other processes, too.
        limit(resource.RLIMIT_NPROC, MAX_PROCESSES)
    os.umask(0o077)
    drop_user(uid, gid)
    no_new_privileges()
    # After the uid: changing it clears the wish.
    die_with_parent(parent)


def limit(which: int, value: int) -> None:
    """Set both limits of a resource to ``value``, or to the present hard limit where that is lower."""
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value, value))


def open_descriptors() -> List[int]:
    """All descriptors of this process."""
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return [fd for fd in range(256) if _is_open(fd)]
    return [fd for fd in map(int, names) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def blank_descriptors(keep: Iterable[int]) -> None:
    """Put /dev/null in the place of every inherited descriptor.

    They are not closed: a preloaded module may still own the number, and would later close what had
    taken its place.
    """
    kept = set(keep) | {0, 1, 2}
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in open_descriptors():
        if fd not in kept and fd != null:
            os.dup2(null, fd, inheritable=False)
    os.close(null)
