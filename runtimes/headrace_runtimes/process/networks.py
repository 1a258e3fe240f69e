"""The network of builds of the process runtime: made with the first, swept when the host is killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

from headrace_runtimes.containers.sweep import Plan
from headrace_runtimes.containers.watchdog import Watchdog
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.machine import machine_settings
from headrace_runtimes.images.reach import Lend, Reach
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.oci.network import for_builds
from headrace_runtimes.spec import RuntimeSettings


class BuildNetworks:
    """What `images.reach.Lend` is for environments. ``settings``: of the runtime."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        self._tag = hashlib.sha256(str(settings.run_dir).encode()).hexdigest()[:10]
        self._networks = Egress()
        self._watchdog: Watchdog | None = None
        self._opening = asyncio.Lock()

    def lend(self) -> Lend | None:
        """None: builds have the machine's network, as the settings say or because the host is not root."""
        if self._settings.build_allow is None or os.geteuid() != 0:
            return None
        build = machine_settings(os.environ, host_python=self._settings.python, runc="", seccomp=None)
        named = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
        known = for_builds(self._networks, self._settings, replace(build, pip_env={**build.pip_env, **named}))

        @contextlib.asynccontextmanager
        async def lend() -> AsyncIterator[Reach | None]:
            await self._open()
            async with known.lend() as reach:
                yield reach

        return lend

    async def close(self) -> None:
        """Leave nothing."""
        async with self._opening:
            if self._watchdog is not None:
                await self._networks.close()
                await self._watchdog.close()
                self._watchdog = None

    async def _open(self) -> None:
        """Raises `PrepareFailed`."""
        async with self._opening:
            if self._watchdog is not None:
                return
            hooks = self._networks.sweep_commands(self._settings, self._tag)
            watchdog = Watchdog(sys.executable, Plan(str(self._settings.run_dir / "builds"), hooks=hooks))
            try:
                # Before there is anything on the machine that it would have to take away.
                await watchdog.ensure()
                await self._networks.open(self._settings, self._tag)
            except BaseException as error:
                await asyncio.shield(watchdog.close())
                if isinstance(error, OSError):
                    raise PrepareFailed(f"Builds can have no network of their own: {error}.") from error
                raise
            self._watchdog = watchdog
