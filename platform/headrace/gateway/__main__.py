"""``python -m headrace.gateway``: one gateway process, supervised by `headrace up`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys

import uvloop

from headrace.config import Settings, load_settings
from headrace.datadir import read_cluster_token
from headrace.errors import HeadraceError, UsageError
from headrace.gateway.server import Gateway
from headrace.heartbeat import start_beating

SWITCH_S = 0.001
"""How long the event loop may keep the interpreter from the job store's writer, which asks for it once per
statement. With Python's 5 ms a loop that is busy all the time let 150 jobs/s through; with this, 500."""


def given_listener() -> socket.socket | None:
    """The listening socket named by HEADRACE_LISTEN_FD, which stays open when this process dies."""
    text = os.environ.get("HEADRACE_LISTEN_FD", "")
    return socket.socket(fileno=int(text)) if text.isdigit() else None


async def serve(settings: Settings, token: str) -> None:
    """Run until SIGTERM (also the sign of the supervisor's end) or SIGINT, then drain."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    gateway = Gateway(
        settings,
        token=token,
        control_address=f"unix:{settings.control_socket}",
        listener=given_listener(),
    )
    start_beating()
    await gateway.start()
    logging.getLogger("headrace.gateway").info("gateway %s listens on %s", gateway.id, gateway.url)
    await ended.wait()
    await gateway.stop()


def main() -> int:
    """Entry point; gives the exit code."""
    sys.setswitchinterval(SWITCH_S)
    try:
        settings = load_settings()
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(serve(settings, read_cluster_token(settings)))
    except HeadraceError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
