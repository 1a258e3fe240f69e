"""The end of an endpoint, and what may be thrown away after it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec

from headrace.control.blobs import Blobs
from headrace.control.model import Endpoint, Pin, World
from headrace.control.reconcile import Reconciler
from headrace.control.routes import Routes
from headrace.control.specs import slim
from headrace.control.store import Store
from headrace.control.warm import Warm
from headrace.sdk.spec import EndpointSpec

log = logging.getLogger("headrace.control")
POLL_S = 0.05
GONE_MARGIN_S = 5.0
COLLECT_EVERY_S = 3600.0


class Lifecycle:
    """Deletes endpoints, pins versions that callers name, collects blobs that nothing needs."""

    def __init__(
        self,
        *,
        world: World,
        store: Store,
        blobs: Blobs,
        routes: Routes,
        reconciler: Reconciler,
        warm: Warm,
        grace_s: float,
    ) -> None:
        self._world = world
        self._store = store
        self._blobs = blobs
        self._routes = routes
        self._reconciler = reconciler
        self._warm = warm
        self._grace_s = grace_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._pinning: set[tuple[str, int]] = set()

    async def stop(self) -> None:
        """Cancel what runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def delete(self, endpoint: Endpoint) -> None:
        """Take it out of the store and the routes; its instances end in the background."""
        if endpoint.deleting:
            return
        # Marked first: nothing new is started or deployed while the store works.
        endpoint.deleting = True
        try:
            await self._store.delete_endpoint(endpoint.project, endpoint.name)
        except BaseException:
            endpoint.deleting = False
            raise
        self._routes.derive(endpoint)
        self._routes.publish(removed_endpoints=[endpoint.key])
        self._reconciler.release(list(endpoint.instances.values()), "its endpoint is deleted", self._grace_s)
        self._warm.forget(endpoint.key)
        self._spawn(self._finish(endpoint))

    def pin(self, endpoint: Endpoint, version: int, queued: int, received: float) -> None:
        """A caller named a version that is not loaded: fetch its spec, then start it."""
        key = (endpoint.key, version)
        if version in endpoint.versions and key not in self._pinning:
            self._pinning.add(key)
            self._spawn(self._pin(endpoint, version, queued, received))

    async def collect(self) -> None:
        """Remove blobs that no version needs (those asked for within the last hour stay)."""
        needed = await self._store.bundles()
        for endpoint in self._world.endpoints.values():
            needed.update(spec.bundle for spec in endpoint.trials.values())
            needed.update(spec.image.context for spec in endpoint.trials.values())
        removed = await self._blobs.collect(lambda sha256: sha256 in needed)
        if removed:
            log.info("%d blobs that nothing needs are removed", removed)

    def collect_soon(self) -> None:
        """`collect` in the background."""
        self._spawn(self.collect())

    async def _finish(self, endpoint: Endpoint) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s + GONE_MARGIN_S):
                while endpoint.instances:  # noqa: ASYNC110 - ends in several places, and rarely
                    await asyncio.sleep(POLL_S)
        for instance in list(endpoint.instances.values()):
            self._world.remove(instance)
        self._world.endpoints.pop(endpoint.key, None)
        self._world.active.pop(endpoint.key, None)
        await self.collect()

    async def _pin(self, endpoint: Endpoint, version: int, queued: int, received: float) -> None:
        try:
            data = await self._store.version_spec(endpoint.project, endpoint.name, version)
            if data is None or endpoint.deleting or version == endpoint.version:
                return
            spec = slim(msgspec.json.decode(data, type=EndpointSpec))
            pin = endpoint.pins.setdefault(version, Pin(spec))
            pin.queued, pin.queued_at = queued, self._world.now()
            self._reconciler.wake(endpoint, version, received)
        finally:
            self._pinning.discard((endpoint.key, version))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", exc_info=task.exception())
