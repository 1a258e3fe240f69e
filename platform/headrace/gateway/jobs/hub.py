"""Wakes those who wait for a job in this gateway, the moment something happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Hub:
    """``bell`` before looking, then wait for it: nothing that happens between is missed."""

    def __init__(self) -> None:
        self._bells: dict[str, list[asyncio.Event]] = {}
        self.tell: Callable[[str], None] | None = None
        """Passes it on to other gateways, when the store does not."""

    def bell(self, job_id: str) -> asyncio.Event:
        """An event that rings with every `ring` of the job until `drop`."""
        bell = asyncio.Event()
        self._bells.setdefault(job_id, []).append(bell)
        return bell

    def drop(self, job_id: str, bell: asyncio.Event) -> None:
        """Listen no more."""
        bells = self._bells.get(job_id, [])
        if bell in bells:
            bells.remove(bell)
        if not bells:
            self._bells.pop(job_id, None)

    def ring(self, job_id: str) -> None:
        """Something happened to the job here."""
        self.heard(job_id)
        if self.tell is not None:
            self.tell(job_id)

    def heard(self, job_id: str) -> None:
        """Something happened to the job, here or elsewhere."""
        for bell in self._bells.get(job_id, ()):
            bell.set()

    def ring_all(self) -> None:
        """Everybody is to look."""
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    def __len__(self) -> int:
        return len(self._bells)


async def rung(bell: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the bell, and reset it; False when the time is up."""
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await bell.wait()
    except TimeoutError:
        return False
    bell.clear()
    return True
