"""A forked child: confines itself, waits for its assignment, and becomes an instance."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from typing import List, NoReturn, Optional, Sequence

import hr_loader
import hr_serve
import hr_sys
from hr_ipc import Channel


def enter(
    fds: List[int], uid: Optional[int], gid: Optional[int], parent: int, loaded: Optional[hr_loader.Loaded]
) -> NoReturn:
    """Be the child. ``fds``: control socket, stdout, stderr. Never returns."""
    code = 70
    try:
        confine(fds, uid, gid, parent)
        reseed()
        gc.enable()
        code = hr_serve.run(Channel(fds[0]), loaded)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        print(hr_loader.user_traceback(error), file=sys.stderr)
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End now, without the interpreter's slow way out."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(code)


def confine(
    fds: List[int], uid: Optional[int], gid: Optional[int], parent: int, keep: Sequence[int] = ()
) -> None:
    """Own session, own output, nothing inherited, own uid, no way back, death with the zygote."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(fds[1], 1)
    os.dup2(fds[2], 2)
    for fd in (null, fds[1], fds[2]):
        if fd > 2:
            os.close(fd)
    hr_sys.blank_descriptors([fds[0], *keep])
    line_buffered()
    hr_sys.become(uid, gid, parent)


def line_buffered() -> None:
    """Make stdout and stderr whole lines of UTF-8, whatever the process was started with."""
    # New objects: one that was made for a seekable file fails on the pipe that took the file's place.
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def reseed() -> None:
    """Random generators that were seeded before the fork must not repeat in every child."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()
