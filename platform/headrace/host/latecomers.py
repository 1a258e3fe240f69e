"""Runtimes that could not work when the host started, such as those of a Docker daemon that was down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from headrace.host.runtimes import AUTO, Make, Runtimes, why_not

log = logging.getLogger("headrace.host")

FIRST_S, LAST_S = 10.0, 120.0
"""Between two looks: twice as long each time, up to the second."""


def pauses(first_s: float = FIRST_S, last_s: float = LAST_S) -> Iterator[float]:
    """Seconds before each look, for ever."""
    while True:
        yield first_s
        first_s = min(2 * first_s, last_s)


async def admit_latecomers(
    wish: str,
    missing: dict[str, str],
    runtimes: Runtimes,
    make: Make,
    *,
    on_come: Callable[[str], None],
    waits: Iterator[float] | None = None,
) -> None:
    """Offer each of ``missing`` once it can work; returns when none is left.

    Only with ``auto``: what the setting leaves out stays out. ``missing`` (name -> why) is kept up to date.
    """
    if wish != AUTO:
        return
    for pause in waits or pauses():
        if not missing:
            return
        await asyncio.sleep(pause)
        for name in list(missing):
            try:
                # It may ask a daemon that does not answer.
                runtime = await asyncio.to_thread(make, name)
                why = await asyncio.to_thread(why_not, name, runtime)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if not why:
                    del missing[name]
                    runtimes.add(name, runtime)
                    log.info("runtime %s can work now, and is offered", name)
                    on_come(name)
                    continue
            missing[name] = why
