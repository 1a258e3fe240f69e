"""Everything about jobs in one gateway, put together: stores, runner, service, webhooks, sweeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from headrace.config import Settings
from headrace.errors import DataDirError, RequestError, SettingsError
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.jobs.hints import hear
from headrace.gateway.jobs.hub import Hub
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.runner import Runner
from headrace.gateway.jobs.service import JobService
from headrace.gateway.jobs.sweeper import bury, sweep
from headrace.gateway.jobs.sync import SyncCalls
from headrace.gateway.jobs.webhooks import WebhookSender, read_secret
from headrace.gateway.peers import Peers
from headrace.gateway.routing import RoutingTable
from headrace.jobs.open import not_open_yet, open_blobs, open_store
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

FIRST_OPEN_S = 2.0
"""A start waits so long for the store, then goes on without."""
OPEN_TIMEOUT_S = 10.0
OPEN_AGAIN_S = 1.0
PROBE_S = 1.0
"""A store that has not answered a small question by then does not answer."""
RELEASE_S = 2.0
"""A stop waits so long for the store; without it, another gateway gives back what this one held."""


class JobSystem:
    """See the module. Without a store that answers the gateway still serves; jobs are refused with 503."""

    def __init__(
        self, settings: Settings, dispatcher: Dispatcher, table: RoutingTable, owner: str, peers: Peers
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._table = table
        self._owner = owner
        self._peers = peers
        self._hub = Hub()
        self._tasks: list[asyncio.Task[None]] = []
        self._starting = True
        self._mark: OwnerMark | None = None
        self._probe: asyncio.Task[None] | None = None
        self._store: JobStore | None = None
        self._runner: Runner | None = None
        self.service = JobService(dispatcher, self._hub, webhook_private=settings.webhook_private)
        self.sync = SyncCalls(self.service, owner)

    async def start(self) -> None:
        """Open the stores and begin. Raises `SettingsError` or `DataDirError`; a store that does not answer
        is tried again in the background, for as long as it takes."""
        if not self._settings.data.is_dir():
            self.service.why_not = f"there is no data directory {self._settings.data}"
            return
        self.service.why_not = not_open_yet(self._settings)
        opening = asyncio.get_running_loop().create_task(self._keep_opening())
        self._tasks.append(opening)
        done, _ = await asyncio.wait([opening], timeout=FIRST_OPEN_S)
        self._starting = False
        if done:
            await opening

    async def stop(self, grace_s: float) -> None:
        """Give leases back, let attempts end within ``grace_s``, and close."""
        self.service.detach()
        if self._probe is not None:
            self._probe.cancel()
        runner, mark, store = self._runner, self._mark, self._store
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if runner is not None:
            await runner.stop(grace_s)
        released = store is None
        if store is not None:
            # What is left: leases that were not given back, clients that may go on waiting elsewhere.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(RELEASE_S):
                    await store.release_owner(self._owner, time.time())
                released = True
            with contextlib.suppress(Exception):
                await store.close()
        if mark is not None:
            mark.close(clean=released)

    @property
    def webhook_counts(self) -> Mapping[str, int]:
        """Tries to deliver webhooks, by outcome."""
        return self.service.webhooks.counts if self.service.webhooks is not None else {}

    def endpoints(self, most: int) -> list[tuple[str, str]]:
        """(project, name) of endpoints that may have jobs: all (every gateway names the same ones), unless
        there are more than ``most``; then those with jobs that this gateway has seen."""
        found = sorted(self._table.endpoints)
        if len(found) > most:
            states = self._dispatcher.states()
            found = [state.key for state in states if state.meter.jobs or state.stored or state.held][:most]
        return [(project, name) for project, _, name in (key.partition("/") for key in found)]

    async def store_state(self) -> dict[str, Any]:
        """``kind`` of the job store, whether it is ``reachable`` now, and the ``reason`` why not."""
        # One at a time, with its outcome for all who ask meanwhile: none of them takes a connection more.
        probe = self._probe
        if probe is None or probe.done():
            probe = self._probe = asyncio.get_running_loop().create_task(self._ask_store())
            probe.add_done_callback(_seen)
        # Not `asyncio.timeout`: a query that is cancelled waits for its connection, as long as that hangs.
        done, _ = await asyncio.wait([probe], timeout=PROBE_S)
        reason = ""
        if not done or probe.cancelled():
            if not probe.cancelling():
                probe.cancel()
            reason = f"the job store did not answer within {PROBE_S:g} s"
        elif isinstance(error := probe.exception(), RequestError):
            reason = error.message.rstrip(".")
        elif error is not None:
            raise error
        kind = "postgresql" if self._settings.store else "sqlite"
        return {"kind": kind, "reachable": not reason, "reason": reason}

    async def _ask_store(self) -> None:
        await self.service.store.has_key("", "", "")

    async def _open(self) -> None:
        settings = self._settings
        secret = await asyncio.to_thread(read_secret, settings.data)
        # What is open already is closed when the rest cannot be: this is tried every second.
        async with contextlib.AsyncExitStack() as opened:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                store = await open_store(settings)
            opened.push_async_callback(store.close)
            blobs = await open_blobs(settings)
            opened.push_async_callback(blobs.close)
            mark = await asyncio.to_thread(OwnerMark, settings.data / "gateways", self._owner)
            opened.pop_all()
        self._store, self._mark = store, mark
        runner = Runner(store, blobs, self._dispatcher, self._table, self._owner, self._hub)
        webhooks = WebhookSender(blobs, secret, private=settings.webhook_private, ca=settings.webhook_ca)
        self._runner = runner
        runner.client_for = self.sync.client_for
        self.service.attach(store, blobs, runner, webhooks)
        try:
            await bury(store, mark)
        except Exception as error:
            # The sweeper tries it again. Nothing may end this now: the store would be opened twice.
            log.warning("leases of gateways that are gone are not given back yet: %s", error)
        runner.start()
        self._spawn(webhooks.run(store, self._owner))
        self._spawn(sweep(store, blobs, mark, runner.look))
        self._spawn(hear(store, self._hub, runner, self._peers))

    async def _keep_opening(self) -> None:
        while True:
            try:
                await self._open()
            except Exception as error:
                self._not_yet(error)
                # Whatever else it was may pass: a gateway that gives up has to be started again.
                if self._starting and isinstance(error, SettingsError | DataDirError):
                    raise
            else:
                return
            await asyncio.sleep(OPEN_AGAIN_S)

    def _not_yet(self, error: Exception) -> None:
        why = str(error) or type(error).__name__
        self.service.why_not = f"the job store is not open: {why}".rstrip(".")
        log.warning("%s", self.service.why_not)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))


def _seen(probe: asyncio.Task[None]) -> None:
    """An error that nobody waited for is no news."""
    if not probe.cancelled():
        probe.exception()
