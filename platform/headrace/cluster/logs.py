"""The log files of the replicas, ``<data-dir>/logs``, written by themselves: Serve's own log is elsewhere."""

from __future__ import annotations

import logging
import logging.handlers
import traceback
from types import TracebackType

from headrace.config import Settings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class PlainFormatter(logging.Formatter):
    """Writes tracebacks without ``print``: Serve replaces it in its replicas, and prints tuples."""

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The traceback as Python shows it."""
        return "".join(traceback.format_exception(ei[1])).rstrip("\n")


def log_to_file(settings: Settings, name: str) -> None:
    """The platform's own messages go to ``<data-dir>/logs``; on a machine without it Serve's log has them."""
    logger = logging.getLogger("headrace")
    logger.setLevel(settings.log_level.upper())
    directory = settings.data / "logs"
    if not directory.is_dir() or logger.handlers:
        return
    handler = logging.handlers.RotatingFileHandler(
        directory / f"{name}.log", maxBytes=settings.log_bytes, backupCount=1, delay=True
    )
    handler.setFormatter(PlainFormatter(FORMAT))
    logger.addHandler(handler)
    logger.propagate = False
