"""Weights on this host: fetched before a claim, shown to the instance, held in memory where there is room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.trees import remove_tree
from headrace_runtimes.weights import Item, Keeper, Pin, WeightsCache, WeightsFailed, WeightsSettings

from headrace import wire
from headrace.config import Settings

log = logging.getLogger("headrace.host")

INSIDE = "/weights"
VARIABLE = "HEADRACE_WEIGHTS"
REFRESH_S = 60.0
"""How often what is held in memory is locked again: see `Keeper`."""


@dataclass(frozen=True)
class Shown:
    """What an assignment gets."""

    mounts: tuple[tuple[Path, str], ...] = ()
    env: dict[str, str] = field(default_factory=dict)


NOTHING = Shown()


class HostWeights:
    """Pins weights for instances, by their id. One for each host."""

    def __init__(self, settings: Settings, memory: int, links: Path) -> None:
        """``links``: a directory of this host's own, for instances that share its file system."""
        self._cache = WeightsCache(
            WeightsSettings(
                root=settings.weights,
                disk_bytes=settings.weights_bytes,
                allow=settings.weights_prefixes,
                private=settings.weights_private,
            )
        )
        self._keeper = Keeper(int(memory * settings.weights_memory))
        self._links = links
        self._pins: dict[str, list[Pin]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refreshing: asyncio.Task[None] | None = None

    async def show(
        self, id: str, specs: Sequence[wire.WeightsSpec], *, mounts: bool, told: Callable[[str], None]
    ) -> Shown:
        """Have them all here, and pinned until `release`. ``mounts``: they can be shown at a path of the
        sandbox's own; otherwise links to them are made. Raises `WeightsFailed`, ``OSError``."""
        if not specs:
            return NOTHING
        pins = self._pins.setdefault(id, [])
        for spec in specs:
            pins.append(await self._cache.ensure(Item(spec.source, spec.sha256), told))
        self._later(self._hold(list(pins)))
        if mounts:
            shown = tuple((p.path, f"{INSIDE}/{s.name}") for s, p in zip(specs, pins, strict=True))
            return Shown(shown, {VARIABLE: INSIDE})
        directory = self._links / id
        await asyncio.to_thread(_link, directory, {s.name: p.path for s, p in zip(specs, pins, strict=True)})
        return Shown(env={VARIABLE: str(directory)})

    def release(self, id: str) -> None:
        """The instance has ended."""
        pins = self._pins.pop(id, None)
        if pins is None:
            return
        for pin in pins:
            pin.release()
        self._later(asyncio.to_thread(_unlink, self._links / id))

    async def close(self) -> None:
        """Let all go; files stay on the disk."""
        for id in list(self._pins):
            self.release(id)
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        for task in list(self._tasks):
            # A read that has begun ends by itself; what it maps goes with the keeper.
            await asyncio.gather(task, return_exceptions=True)
        self._keeper.close()

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._keeper.refresh()

    async def _hold(self, pins: list[Pin]) -> None:
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_for_ever())
        for pin in pins:
            try:
                files = await asyncio.to_thread(pin.files)
                in_use = {other.item.key for pins in self._pins.values() for other in pins}
                await self._keeper.keep(pin.item.key, files, in_use)
            except OSError as error:
                log.warning("weights %s are not held in memory: %s", pin.item.shown, error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def death_of_weights(error: WeightsFailed) -> wire.Death:
    """Why an instance whose weights cannot be had did not start."""
    return wire.Death(reason="load-failed", detail=str(error))


def _link(directory: Path, targets: dict[str, Path]) -> None:
    directory.mkdir(mode=0o711, parents=True)
    directory.parent.chmod(0o711)
    directory.chmod(0o755)
    for name, target in targets.items():
        (directory / name).symlink_to(target)


def _unlink(directory: Path) -> None:
    with contextlib.suppress(OSError):
        remove_tree(directory)
