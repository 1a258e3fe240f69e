"""How a container's first process has ended, for one that never came to the door."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import struct
import time

from headrace_runtimes.instance.explain import explain

ENDED_EARLY = "ended in its container before it was up"
SAID_LINES = 3
SAID_CHARACTERS = 500
REAPED_WITHIN_S = 10.0
"""By the machine's first process; some look only now and then."""
_ASK_EVERY_S = 0.01
_INFO = struct.Struct("=QQ11Ii")
"""``struct pidfd_info``: what is asked for comes first, the status of ``wait`` last."""
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_EXIT = 1 << 3


async def wait_status(pidfd: int, within_s: float = REAPED_WITHIN_S) -> int | None:
    """As ``wait`` would tell it, of a process that is not our child; None when nobody can tell.

    It can be told when the process has been reaped, by Linux 6.15 and later.
    """
    deadline = time.monotonic() + within_s
    while True:
        data = bytearray(_INFO.size)
        struct.pack_into("=Q", data, 0, _EXIT)
        try:
            fcntl.ioctl(pidfd, _GET_INFO, data)
            told = _INFO.unpack_from(data)
        except OSError as error:
            if error.errno != errno.ESRCH:
                return None
        else:
            if told[0] & _EXIT:
                return int(told[-1])
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_ASK_EVERY_S)


def ended(pidfd: int) -> bool:
    """Whether its process has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def last_lines(text: str) -> str:
    """The end of what it said, in one line; empty when it said nothing."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "; ".join(lines[-SAID_LINES:])[-SAID_CHARACTERS:].rstrip(".")


def in_words(status: int | None, code: int | None, said: str) -> str:
    """``exit code 127: not found``. ``status`` is that of ``wait``; ``code``: what else is known."""
    signal = None
    if status is not None:
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if signal is None else None
    return explain(code, signal, note=said).detail
