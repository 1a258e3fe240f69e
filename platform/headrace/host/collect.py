"""Lets go of images that nobody has used for long, or that are too much; what living hosts use stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path

from headrace_runtimes.errors import RuntimeFailure
from headrace_runtimes.images import context, gc
from headrace_runtimes.images.pyenv import Environments, PyEnvSettings
from headrace_runtimes.images.store import Store
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.host")

FIRST_S = 300.0
EVERY_S = 3600.0
MAX_AGE_S = 14 * 86400.0
"""What nobody has started from for so long goes."""


async def collect_for_ever(root: Path, limit_bytes: int) -> None:
    """`collect` now and then, until cancelled."""
    await asyncio.sleep(FIRST_S)
    while True:
        try:
            gone = await collect(root, limit_bytes)
            if gone:
                log.info("%d images and environments that nobody uses are removed", gone)
        except (RuntimeFailure, OSError) as error:
            log.warning("images in %s cannot be collected: %s", root, error)
        await asyncio.sleep(EVERY_S)


async def collect(root: Path, limit_bytes: int, max_age_s: float = MAX_AGE_S) -> int:
    """One round over ``root``; how many went. Layers and environments may each have ``limit_bytes``.

    Raises `RuntimeFailure`, ``OSError``.
    """
    gone = 0
    if (root / "envs").is_dir():
        environments = Environments(root / "envs", PyEnvSettings(sys.executable))
        gone += len(await environments.collect(limit_bytes, max_age_s))
    if (root / "blobs").is_dir():
        store = Store(root)
        await store.open()
        gone += len(await gc.collect(store, limit_bytes, max_age_s))
    await asyncio.to_thread(_contexts, root, time.time() - max_age_s)
    return gone


def _contexts(root: Path, before: float) -> None:
    """Files of definitions come again from control when they are needed."""
    for mark in (root / "contexts").glob("*.json"):
        with contextlib.suppress(OSError):
            if mark.stat().st_mtime < before:
                # The mark goes first: without it the directory is garbage.
                mark.unlink()
                remove_tree(context.directory(root, mark.stem))
