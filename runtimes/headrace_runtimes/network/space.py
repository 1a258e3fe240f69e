"""`Space`: a network namespace, and a thread that is in it and does there what it is told."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from headrace_runtimes.finish import to_the_end

CLONE_NEWNET = 0x4000_0000
COMMAND_S = 20.0
P = ParamSpec("P")
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class Space:
    """Namespaces are of threads: what its thread starts or opens is in there, the rest of us is not.

    It is there while somebody holds a descriptor of it or runs in it; so it ends with us.
    """

    def __init__(self, path: str | None = None, *, new: bool = False) -> None:
        """``path``: an existing one; ``new``: a new one; neither: the one that we are in."""
        self._path, self._new = path, new
        self.fd = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netns")

    async def open(self) -> None:
        """Enter it. Raises ``OSError``."""
        try:
            await self.call(self._enter)
        except BaseException:
            await self.close()
            raise

    @property
    def path(self) -> str:
        """By which other processes find it, while it is open here."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    async def run(self, argv: Sequence[str], told: str = "") -> str:
        """Run a command in it; what it says. Raises ``OSError`` with its last words when it fails."""
        return await self.call(run, argv, told)

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something in its thread, to its end also when the caller is cancelled."""
        loop = asyncio.get_running_loop()
        return await to_the_end(loop.run_in_executor(self._thread, lambda: work(*args, **kwargs)))

    async def leave(self) -> None:
        """The thread ends, the namespace stays."""
        await asyncio.to_thread(self._thread.shutdown)

    async def close(self) -> None:
        """Let it go."""
        await self.leave()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _enter(self) -> None:
        if self._new:
            _check(_libc.unshare(CLONE_NEWNET))
        place = self._path or "/proc/thread-self/ns/net"
        self.fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        if self._path is not None:
            _check(_libc.setns(self.fd, CLONE_NEWNET))


def run(argv: Sequence[str], told: str = "") -> str:
    """See `Space.run`; blocks."""
    try:
        done = subprocess.run(
            argv, input=told, capture_output=True, text=True, timeout=COMMAND_S, check=False,
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise OSError(f"{argv[0]} did not end within {COMMAND_S:.0f} s") from late
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise OSError(f"{argv[0]} {argv[1] if len(argv) > 1 else ''}: {words[:300] or done.returncode}")
    return done.stdout


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
