"""``python -m headrace.gateway``: one gateway process, supervised by `headrace up`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys

import uvloop

from headrace.config import Settings, load_settings
from headrace.errors import DataDirError, HeadraceError, UsageError
from headrace.gateway.server import Gateway

PR_SET_PDEATHSIG = 1
SWITCH_S = 0.001
"""How long the event loop may keep the interpreter from the job store's writer, which asks for it once per
statement. With Python's 5 ms a loop that is busy all the time let 150 jobs/s through; with this, 500."""


def die_with_parent() -> None:
    """Get SIGTERM when the parent ends; exit at once when it has ended already."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent or (parent == 1 and os.environ.get("HEADRACE_PARENT_FD")):
        sys.exit(1)


def read_token(settings: Settings) -> str:
    """The cluster token. Raises `DataDirError`."""
    path = settings.data / "cluster.token"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise DataDirError(
            f"cannot read {path}: {error.strerror}.", hint="Start the platform with `headrace up`."
        ) from error


def watch_parent(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Set ``ended`` when the pipe named by HEADRACE_PARENT_FD closes."""
    text = os.environ.get("HEADRACE_PARENT_FD", "")
    if not text.isdigit():
        return
    fd = int(text)

    def readable() -> None:
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(fd)
            ended.set()

    with contextlib.suppress(OSError):
        os.set_blocking(fd, False)
        loop.add_reader(fd, readable)


def given_listener() -> socket.socket | None:
    """The listening socket named by HEADRACE_LISTEN_FD, which stays open when this process dies."""
    text = os.environ.get("HEADRACE_LISTEN_FD", "")
    return socket.socket(fileno=int(text)) if text.isdigit() else None


async def serve(settings: Settings, token: str) -> None:
    """Run until SIGTERM, SIGINT or the parent's end, then drain."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    watch_parent(loop, ended)
    gateway = Gateway(
        settings,
        token=token,
        control_address=f"unix:{settings.control_socket}",
        listener=given_listener(),
    )
    await gateway.start()
    logging.getLogger("headrace.gateway").info("gateway %s listens on %s", gateway.id, gateway.url)
    await ended.wait()
    await gateway.stop()


def main() -> int:
    """Entry point; gives the exit code."""
    die_with_parent()
    sys.setswitchinterval(SWITCH_S)
    try:
        settings = load_settings()
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(serve(settings, read_token(settings)))
    except HeadraceError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
