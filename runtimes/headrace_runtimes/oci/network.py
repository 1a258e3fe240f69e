"""What the driver asks of who makes networks for its containers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.reach import Reach, hosts_of
from headrace_runtimes.network.policy import EVERYTHING
from headrace_runtimes.network.rules import RESOLVER
from headrace_runtimes.spec import Network, Owned, RuntimeSettings


class Networks(Protocol):
    """Network namespaces, one for a container; `open` and `close` with the driver's."""

    def why_not(self) -> str:
        """Why ``egress`` reaches nothing here; empty when it can. Before `open`: as far as it can be told."""
        ...

    async def open(self, settings: RuntimeSettings, tag: str) -> None:
        """Sweep what a predecessor with the same ``tag`` left. Raises `PrepareFailed`."""
        ...

    async def close(self) -> None:
        """Leave nothing."""
        ...

    async def make(self, id: str, first_id: int, network: Network) -> str | None:
        """The path of a namespace for a container; None: one of its own that reaches nothing, or the host's.

        Raises `PrepareFailed`.
        """
        ...

    async def attach(self, id: str, pid: int) -> None:
        """The container was made without that path: what is in the namespace moves into that of ``pid``.

        Raises ``OSError``: then it reaches nothing.
        """
        ...

    async def remove(self, id: str) -> None:
        """The container is gone, or was never made."""
        ...

    def sweep_commands(self, settings: RuntimeSettings, tag: str) -> tuple[tuple[str, ...], ...]:
        """Commands that take all of it away when this process cannot any more (`containers.sweep`).

        Asked for before `open`: a host may die while that is at work.
        """
        ...

    async def list_owned(self) -> list[Owned]:
        """Interfaces and namespaces that exist."""
        ...


def for_builds(networks: Networks, settings: RuntimeSettings, build: BuildSettings) -> BuildSettings:
    """``build`` with steps that reach what ``settings.build_allow`` says, and the host's package indexes."""
    if settings.build_allow is None:
        return build
    allowed = (EVERYTHING, *settings.build_allow, *hosts_of(build.step_env, build.pip_env))
    numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def lend() -> AsyncIterator[Reach | None]:
        id = f"build-{next(numbers)}-{secrets.token_hex(4)}"
        if why := networks.why_not():
            raise PrepareFailed(
                f"Images cannot be built here apart from the host's network: {why}. Mend that, or set "
                "build_allow to host."
            )
        path = await networks.make(id, 0, Network("egress", allowed))
        try:
            yield None if path is None else Reach(path, RESOLVER)
        finally:
            await asyncio.shield(networks.remove(id))

    return replace(build, lend=lend)


class LoopbackOnly:
    """Nothing is made: a container has the host's network or reaches nothing."""

    def why_not(self) -> str:
        """See `Networks.why_not`."""
        return ""

    async def open(self, settings: RuntimeSettings, tag: str) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def make(self, id: str, first_id: int, network: Network) -> str | None:
        """See `Networks.make`."""
        return None

    async def attach(self, id: str, pid: int) -> None:
        """Nothing to do."""

    async def remove(self, id: str) -> None:
        """Nothing to do."""

    def sweep_commands(self, settings: RuntimeSettings, tag: str) -> tuple[tuple[str, ...], ...]:
        """None."""
        return ()

    async def list_owned(self) -> list[Owned]:
        """None."""
        return []
