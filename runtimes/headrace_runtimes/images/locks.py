"""Waits for locks between processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.locks import is_at, try_lock

WAIT_S = 1800.0
"""The longest that one waits for another's download or build."""
_POLL_S = 0.05


@contextlib.asynccontextmanager
async def alone(path: Path, what: str, wait_s: float = WAIT_S) -> AsyncIterator[None]:
    """Nobody else is in here with the same ``path``.

    Raises `PrepareFailed` when that takes ``wait_s``, or the disk takes no lock.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = await _locked(path, what, time.monotonic() + wait_s)
    except OSError as error:
        raise PrepareFailed(
            f"{path.parent} takes no lock: {error.strerror or error}. Make room or give rights there."
        ) from error
    try:
        yield
    finally:
        # The name goes first: who waits for the old file sees that, and takes the new one.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(file)


async def _locked(path: Path, what: str, deadline: float) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await _wait_for(file, what, deadline)
            if is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


async def _wait_for(file: int, what: str, deadline: float) -> None:
    while not try_lock(file):
        if time.monotonic() > deadline:
            raise PrepareFailed(f"Another process has worked on {what} for too long: end it.")
        await asyncio.sleep(_POLL_S)
