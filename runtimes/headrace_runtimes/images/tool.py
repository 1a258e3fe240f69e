"""Runs a tool to its end: its lines are told as they come, its last words kept, and nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace_runtimes.base import Progress

LAST_LINES = 12
MAX_LINE = 400
LEAST_FREE = 1 << 30
"""Bytes that a tool leaves to everybody else on a disk."""
LOOK_EVERY_S = 0.2
_PASSWORD = re.compile(r"://[^/@\s]+@")
LEASH = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--pid", "--kill-child", "--mount", "--mount-proc",
)  # fmt: skip
"""Before a command, as root: whatever it starts ends with it and with us, and so do its mounts."""


async def run_tool(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    what: str,
    timeout_s: float,
    progress: Progress | None = None,
    room: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> tuple[int, str]:
    """Exit code and last words. Its group is killed when it takes longer, or we are cancelled.

    ``room``: it is killed as well when the disk of that place is as good as full; ``pass_fds`` it inherits.
    Raises ``TimeoutError``, ``OSError`` when it cannot be started or has filled the disk.
    """
    process = await asyncio.create_subprocess_exec(
        *argv, env=dict(env), cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, start_new_session=True, pass_fds=pass_fds,
    )  # fmt: skip
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    full = asyncio.create_task(_fills(room, process)) if room is not None else None
    try:
        async with asyncio.timeout(timeout_s):
            await _listen(process.stdout, last, what, progress)
            code = await process.wait()
    finally:
        _kill(process)
        await process.wait()
        if full is not None:
            full.cancel()
            await asyncio.wait([full])
    if full is not None and not full.cancelled():
        full.result()
    return code, " | ".join(last) or "it said nothing"


async def _fills(room: Path, process: asyncio.subprocess.Process) -> None:
    """Kill it when nearly no room is left on the disk: others need some. Raises ``OSError`` then."""
    while free(room) > LEAST_FREE:  # noqa: ASYNC110 - a disk tells nobody
        await asyncio.sleep(LOOK_EVERY_S)
    _kill(process)
    raise OSError(errno.ENOSPC, f"less than {LEAST_FREE >> 20} MiB are left on the disk of images")


def free(place: Path) -> int:
    """Bytes that anybody may still write on the disk of ``place``. Raises ``OSError``."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _listen(
    stream: asyncio.StreamReader, last: deque[str], what: str, progress: Progress | None
) -> None:
    rest = ""
    while data := await stream.read(1 << 14):
        rest = (rest + data.decode("utf-8", "replace")).replace("\r", "\n")
        *lines, rest = rest.split("\n")
        rest = rest[-MAX_LINE:]
        for line in lines:
            _tell(line, last, what, progress)
    _tell(rest, last, what, progress)


def _tell(line: str, last: deque[str], what: str, progress: Progress | None) -> None:
    text = "".join(c for c in line.strip() if c.isprintable())[:MAX_LINE]
    text = _PASSWORD.sub("://***@", text)
    if text:
        last.append(text)
        if progress:
            progress(f"{what}: {text}", 0, 0)
