"""Containers that a daemon has and nobody knows: it did not answer when told to make or remove them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Collection

from headrace_runtimes.docker.api import Engine, Refused
from headrace_runtimes.docker.request import ID_LABEL, RUN_LABEL

log = logging.getLogger("headrace.runtimes")

FIRST_S, LAST_S = 1.0, 15.0
QUIET_S = 60.0
"""After the last failure: a daemon may still be making what nobody waits for any more."""
CALL_S = 10.0


class Strays:
    """Of one runtime. ``living``: ids of those that are in use or just being made."""

    def __init__(self, engine: Engine, tag: str, living: Collection[str]) -> None:
        self._engine, self._tag, self._living = engine, tag, living
        self._task: asyncio.Task[None] | None = None
        self._until = 0.0

    def look(self) -> None:
        """Something failed: look for them now and then, until there are none and it has been quiet."""
        self._until = asyncio.get_running_loop().time() + QUIET_S
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def remove(self, name: str) -> None:
        """One that has ended: by its id, or by its name. What is not removed now is looked for."""
        try:
            await self._engine.call(
                "DELETE", f"/containers/{name}", query={"force": "1", "v": "1"}, timeout_s=CALL_S
            )
        except Refused as refused:
            if refused.status != 404:
                if self._task is None or self._task.done():
                    log.warning("Containers are removed later, when Docker does it: %s", refused)
                self.look()

    async def _look(self) -> None:
        delay = FIRST_S
        while True:
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_S)
            # While the daemon is away there is no end to it: what it has is seen when it is back.
            with contextlib.suppress(Refused):
                found = await self.found()
                for id in found:
                    await self._engine.call(
                        "DELETE", f"/containers/{id}", query={"force": "1", "v": "1"}, timeout_s=CALL_S
                    )
                if not found and asyncio.get_running_loop().time() > self._until:
                    return

    async def found(self) -> list[str]:
        """Docker's ids of them. Raises `Refused`."""
        query = {"all": "1", "filters": json.dumps({"label": [f"{RUN_LABEL}={self._tag}"]})}
        told = await self._engine.call("GET", "/containers/json", query=query, timeout_s=CALL_S)
        return [str(one["Id"]) for one in told or () if one["Labels"].get(ID_LABEL) not in self._living]
