"""Which runtimes this host offers, and the runtimes themselves, opened when they are first needed."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from headrace_runtimes import registry
from headrace_runtimes.base import Runtime
from headrace_runtimes.errors import PrepareFailed, RuntimeFailure
from headrace_runtimes.spec import BaseStatus, RuntimeSettings

from headrace.errors import SettingsError

log = logging.getLogger("headrace.host")

AUTO = "auto"
PROCESS = "process"
HOST = "host"
Make = Callable[[str], Runtime]


def build_allow(wish: str) -> tuple[str, ...] | None:
    """The setting of that name, as runtimes want it."""
    names = tuple(name.strip() for name in wish.split(",") if name.strip())
    return None if HOST in names else names


def maker(oci_binary: str, criu: str = "") -> Make:
    """Loads runtimes as the settings say. ``oci_binary``, ``criu``: the settings of those names."""
    told = {"binary": oci_binary, "criu": criu}
    oci = {name: value for name, value in told.items() if value}

    def make(name: str) -> Runtime:
        return registry.load(name, **(oci if name == "oci" else {}))

    return make


def offered(wish: str, make: Make, installed: tuple[str, ...] | None = None) -> dict[str, Runtime]:
    """The unopened runtimes that the setting ``runtimes`` asks for, by name.

    ``auto``: ``process``, and each of the others that can isolate on this machine. Raises `SettingsError` for
    a name that is not installed or cannot work here.
    """
    if wish != AUTO:
        try:
            return named(wish, make)
        except RuntimeFailure as error:
            raise SettingsError(f"runtimes={wish!r}: {error}") from error
    chosen = {PROCESS: make(PROCESS)}
    for name in registry.names() if installed is None else installed:
        if name == PROCESS:
            continue
        try:
            runtime = make(name)
            why = why_not(name, runtime)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if not why:
                chosen[name] = runtime
        if why:
            log.info("runtime %s is not offered: %s", name, why)
    return chosen


def named(wish: str, make: Make) -> dict[str, Runtime]:
    """The unopened runtimes that ``wish`` lists, by name. Blocks. Raises `RuntimeFailure`."""
    names = tuple(dict.fromkeys(name.strip() for name in wish.split(",") if name.strip()))
    if not names:
        raise PrepareFailed('Name at least one: use "auto", or "process,oci".')
    found = {}
    for name in names:
        if name == AUTO:
            raise PrepareFailed('"auto" stands alone: leave the others out, or it.')
        found[name] = make(name)
        if why := why_not(name, found[name]):
            raise PrepareFailed(f"{name} cannot work here: {why}.")
    return found


def left_out(wish: str, chosen: Iterable[str], make: Make) -> dict[str, str]:
    """Installed runtimes that are not among the chosen, and why."""
    found = {}
    for name in set(registry.names()).difference(chosen):
        try:
            why = why_not(name, make(name))
        except Exception as error:
            why = str(error)
        found[name] = why or f"left out by the setting runtimes={wish!r}"
    return found


def why_not(name: str, runtime: Runtime) -> str:
    """Why a runtime is not offered here; empty when it is. ``process`` works everywhere."""
    return "" if name == PROCESS else runtime.capabilities()["isolation"]


class Runtimes:
    """The runtimes of one host. What is opened stays open until `close`."""

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        settings: Callable[[str], RuntimeSettings],
    ) -> None:
        self._all, self._settings = dict(runtimes), settings
        self.on_base: Callable[[str, BaseStatus], None] = lambda name, status: None
        """Told of every change of a base, with its runtime."""
        self.found_out = False
        """Whether one was opened, and may know better what it can do, since somebody last set this back."""
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        self._limiting: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """All that are offered."""
        return tuple(self._all)

    @property
    def pausing(self) -> tuple[str, ...]:
        """Those whose instances can be paused."""
        return tuple(name for name, runtime in self._all.items() if runtime.capabilities().get("pause") == "")

    def capabilities(self) -> dict[str, dict[str, str]]:
        """The support matrix: runtime -> capability -> empty, or why not."""
        found = {name: runtime.capabilities() for name, runtime in self._all.items()}
        return {name: {str(what): why for what, why in able.items()} for name, able in found.items()}

    def checkpoints(self) -> dict[str, int]:
        """What became of checkpoints, by outcome; empty where none are made."""
        found: Counter[str] = Counter()
        for runtime in self.opened().values():
            # Of runtimes that can: it is no part of the contract.
            found.update(getattr(runtime, "checkpoints", dict)())
        return dict(found)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def opened(self) -> dict[str, Runtime]:
        """Those that are open."""
        return {name: runtime for name, runtime in self._all.items() if self._is_open(name)}

    def now(self, name: str) -> Runtime | None:
        """The runtime when it is open."""
        return self._all[name] if self._is_open(name) else None

    def holds_limits(self, name: str) -> bool:
        """Whether the open runtime has the kernel hold its instances' limits."""
        return name in self._limiting

    def add(self, name: str, runtime: Runtime) -> None:
        """Offer one more, unopened."""
        self._all[name] = runtime
        self.found_out = True

    async def get(self, name: str) -> Runtime:
        """The runtime, opened; one opening for all who wait. Raises what its ``open`` raises."""
        if name not in self._all:
            raise PrepareFailed(f"The host has no runtime {name!r}.")
        if not self._is_open(name):
            if self._closed:
                raise PrepareFailed("The host is closing.")
            task = self._opening.get(name)
            if task is None or task.done():
                task = self._opening[name] = asyncio.create_task(self._open(name))
            # Who gives up must not leave it half open for the others.
            await asyncio.shield(task)
        return self._all[name]

    async def close(self) -> None:
        """Close those that are open, and wait for those that are just opening."""
        self._closed = True
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for runtime in self.opened().values():
            await runtime.close()
        self._opening.clear()

    def _is_open(self, name: str) -> bool:
        task = self._opening.get(name)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    async def _open(self, name: str) -> None:
        runtime = self._all[name]
        await runtime.open(self._settings(name), lambda status: self.on_base(name, status))
        if not runtime.capabilities()["limits"]:
            self._limiting.add(name)
        self.found_out = True
