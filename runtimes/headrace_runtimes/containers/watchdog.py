"""A process that outlives a host that is killed by any signal, just long enough to sweep after it.

It is in a session of its own and holds the end of a pipe to its host. When the pipe breaks it does
`containers.sweep.sweep`; when the runtime is closed it ends and touches nothing. A service manager that kills
the host's whole cgroup ends it as well: then the next ``open`` on the same directory sweeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict

from headrace_runtimes.containers import sweep
from headrace_runtimes.containers.sweep import BYE, Plan

END_S = 5.0


class Watchdog:
    """The host's side. Not needed any more it is told so by `close`."""

    def __init__(self, python: str, plan: Plan, keep: Sequence[int] = ()) -> None:
        self._python, self._plan, self._keep = python, plan, tuple(keep)
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Of its process; 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    async def ensure(self) -> None:
        """Start it, or start it again when somebody has ended it. Raises ``OSError``."""
        async with self._starting:
            if self._process is None or self._process.poll() is not None:
                await asyncio.to_thread(self._start)

    async def close(self) -> None:
        """It ends and touches nothing."""
        await asyncio.to_thread(self._close)

    def _start(self) -> None:
        self._close()
        # The descriptors that it keeps are locks: nobody else begins here before it has swept.
        self._process = subprocess.Popen(
            [self._python, "-I", "-S", sweep.__file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/", env={}, pass_fds=self._keep,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(self._plan)).encode() + b"\n")
        self._process.stdin.flush()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(BYE)
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
