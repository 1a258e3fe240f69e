"""User namespaces: ids 0, 1... inside are a range of the host's that nobody else has."""

from __future__ import annotations

import ctypes
import os
import signal

CLONE_VM, CLONE_NEWUSER = 0x100, 0x1000_0000
STACK_BYTES = 65_536

_libc = ctypes.CDLL(None, use_errno=True)
_libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


def user_namespace(first: int, count: int) -> int:
    """A descriptor of a new user namespace whose ids 0, 1... are the host's ``first`` and on.

    It is made by a child that shares our memory, calls one function of the C library and ends: a fork of a
    large host would take milliseconds. Its namespace is there until we look for its end. Raises ``OSError``.
    """
    stack = ctypes.create_string_buffer(STACK_BYTES)
    top = (ctypes.addressof(stack) + STACK_BYTES) & ~0xF
    work = ctypes.cast(_libc.getpid, ctypes.c_void_p)
    pid = _libc.clone(work, top, CLONE_VM | CLONE_NEWUSER | signal.SIGCHLD, None)
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"clone: {os.strerror(code)}")
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(f"0 {first} {count}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, 0)
