"""Which zygotes this host holds: control's wish (`wire.SetWarm`) as the runtimes' `Base` values."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
from headrace_runtimes.errors import RuntimeFailure
from headrace_runtimes.spec import Base, BaseStatus, LoadedEndpoint, Network, NetworkMode

from headrace import wire
from headrace.errors import HeadraceError
from headrace.host import given
from headrace.host.bundles import Bundles
from headrace.host.images import Images
from headrace.host.runtimes import Runtimes

log = logging.getLogger("headrace.host")

MAX_BASES = 50_000
"""Base values remembered; above that the memory is emptied (they are made again from their specs)."""
PLAIN_KEY = "plain"
"""Runtimes hold a base of this key by themselves: nothing preloaded but the engine."""
_canonical = msgspec.msgpack.Encoder(order="deterministic")


def base_key(spec: wire.BaseSpec) -> str:
    """A stable name of the base: equal specs have equal keys, in every process."""
    if spec == wire.BaseSpec(runtime=spec.runtime):
        return PLAIN_KEY
    return hashlib.sha256(_canonical.encode(spec)).hexdigest()[:20]


def _network(spec: wire.BaseSpec) -> Network:
    if not spec.network:
        return Network()
    return Network(cast(NetworkMode, spec.network), spec.allow)


class Pool:
    """Keeps the runtimes' bases in step with the wish, and tells `on_warm` what becomes of them."""

    def __init__(
        self,
        runtimes: Runtimes,
        bundles: Bundles,
        images_dir: Path,
        on_warm: Callable[[wire.WarmReport], None],
    ) -> None:
        self._runtimes, self._bundles, self._on_warm = runtimes, bundles, on_warm
        self._images = Images(images_dir, runtimes, bundles, self._on_image)
        self._bases: dict[wire.BaseSpec, Base] = {}
        self._specs: dict[tuple[str, str], wire.BaseSpec] = {}
        """By runtime and key."""
        self._reports: dict[wire.BaseSpec, wire.WarmReport] = {}
        self._wanted: list[tuple[wire.BaseSpec, int]] = []
        self._secrets: Mapping[str, str] = {}
        """What loaded bases see, by ``project/name@version``."""
        self._task: asyncio.Task[None] | None = None

    def base(self, spec: wire.BaseSpec) -> Base:
        """The runtime's value for a base; its loaded bundle need not be here yet."""
        base = self._bases.get(spec)
        if base is None:
            if len(self._bases) >= MAX_BASES:
                self._bases.clear()
            base = self._bases[spec] = Base(
                key=base_key(spec),
                preload=spec.preload,
                imports=spec.imports,
                loaded=self._loaded(spec.loaded),
                image=spec.image,
                network=_network(spec),
            )
            self._specs[spec.runtime, base.key] = spec
        return base

    def want(
        self, wanted: Sequence[tuple[wire.BaseSpec, int]], secrets: Mapping[str, str] | None = None
    ) -> None:
        """Hold these from now on. Returns at once; the newest call wins."""
        self._secrets = secrets or {}
        self._wanted = [(spec, spares) for spec, spares in wanted if spec.runtime in self._runtimes]
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._apply())

    async def close(self) -> None:
        """Stop following the wish; the runtimes end the bases when they close."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._images.close()

    async def prepared(self, spec: wire.BaseSpec) -> None:
        """Have the image of a base here; how far it is, and why it failed, is told as the base's state.

        Raises as `Images.ensure`.
        """
        try:
            await self._images.ensure(spec)
        except (RuntimeFailure, HeadraceError, TimeoutError, OSError) as error:
            detail = str(error) or "the image's files could not be fetched in time"
            self._tell(wire.WarmReport(base=spec, state="failed", unprepared=True, detail=detail))
            raise

    def reports(self) -> list[wire.WarmReport]:
        """All bases of this host."""
        return list(self._reports.values())

    def note(self, spec: wire.BaseSpec) -> str:
        """Why an instance of this base did not start from a loaded zygote; empty when it did."""
        if spec.loaded is None:
            return ""
        report = self._reports.get(spec)
        return report.detail if report is not None else ""

    def bundles(self) -> set[str]:
        """Bundles that the wanted loaded bases need."""
        return {spec.loaded.bundle for spec, _ in self._wanted if spec.loaded is not None}

    def on_base(self, runtime: str, status: BaseStatus) -> None:
        """What is to be called when a base of a runtime changes."""
        spec = self._specs.get((runtime, status.key))
        if spec is None:
            return
        detail = status.detail
        if spec.loaded is not None and status.state == "ready" and not status.loaded and not detail:
            detail = 'snapshot="loaded" fell back to "imports"'
        self._tell(
            wire.WarmReport(
                base=spec,
                pid=status.pid,
                state=status.state,
                spares=status.spares,
                bytes=status.bytes,
                refill_s=status.refill_s,
                refused=dict(status.refused),
                detail=detail,
            )
        )

    def _tell(self, report: wire.WarmReport) -> None:
        self._reports[report.base] = report
        self._on_warm(report)

    def _on_image(self, runtime: str, image: str, far: str) -> None:
        for spec in [s for s, _ in self._wanted if (s.runtime, s.image) == (runtime, image)]:
            self._tell(wire.WarmReport(base=spec, state="starting", unprepared=True, detail=far))

    def _loaded(self, loaded: wire.LoadedBase | None) -> LoadedEndpoint | None:
        if loaded is None:
            return None
        return LoadedEndpoint(
            endpoint=loaded.endpoint,
            version=loaded.version,
            code_dir=self._bundles.path(loaded.bundle),
            entry=loaded.entry,
            handler=loaded.handler,
            env=dict(loaded.env),
            load_timeout_s=loaded.load_timeout_s,
        )

    async def _apply(self) -> None:
        wanted = self._wanted
        unusable = {spec for spec, _ in wanted if given.missing(spec, self._secrets)}
        for spec in unusable:
            why = given.missing(spec, self._secrets)
            self._tell(wire.WarmReport(base=spec, state="failed", detail=why))
        await self._hold(wanted, unusable)
        missing = [spec for spec, _ in wanted if not self._here(spec)]
        # Beside each other: an image may take minutes, and nobody else waits for it.
        await asyncio.gather(*(self._bring(spec, wanted, unusable) for spec in missing))

    async def _bring(
        self, spec: wire.BaseSpec, wanted: list[tuple[wire.BaseSpec, int]], unusable: set[wire.BaseSpec]
    ) -> None:
        try:
            await self.prepared(spec)
            if spec.loaded is not None:
                await self._bundles.ensure(spec.loaded.bundle)
        except (RuntimeFailure, HeadraceError, TimeoutError, OSError) as error:
            unusable.add(spec)
            if self._images.has(spec):
                detail = str(error) or "no answer in time"
                self._tell(wire.WarmReport(base=spec, state="failed", detail=detail))
        else:
            await self._hold(wanted, unusable)

    def _here(self, spec: wire.BaseSpec) -> bool:
        """Whether all is here that a runtime needs to hold it."""
        bundle = spec.loaded is None or self._bundles.has(spec.loaded.bundle)
        return bundle and self._images.has(spec)

    async def _hold(self, wanted: list[tuple[wire.BaseSpec, int]], unusable: set[wire.BaseSpec]) -> None:
        for spec, _ in wanted:
            self.base(spec)
        # The specs of instances' bases are remembered as well: only what nobody holds is forgotten.
        for spec in self._reports.keys() - {spec for spec, _ in wanted}:
            del self._reports[spec]
        for name in self._runtimes.names:
            mine = [(s, n) for s, n in wanted if s.runtime == name and s not in unusable and self._here(s)]
            if not mine and self._runtimes.now(name) is None:
                continue
            try:
                runtime = await self._runtimes.get(name)
                await runtime.hold([(given.filled(self.base(s), s, self._secrets), n) for s, n in mine])
            except RuntimeFailure as error:
                for spec, _ in mine:
                    self._tell(wire.WarmReport(base=spec, state="failed", detail=str(error)))
