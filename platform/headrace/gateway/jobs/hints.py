"""What other gateways did to jobs, heard at once: from a store that tells it (PostgreSQL), or else from them.

Hints make things faster, and nothing depends on them: who waits asks the store now and then, and a heartbeat
finds that a job was cancelled elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, runtime_checkable

from headrace.errors import RequestError
from headrace.gateway.jobs.hub import Hub
from headrace.gateway.jobs.runner import Runner
from headrace.gateway.peers import Peers
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

AGAIN_S = 1.0


@runtime_checkable
class Tells(Protocol):
    """A store that tells what other gateways did, until the task is cancelled."""

    async def watch(self, callback: Callable[[str, str, str], None]) -> None:
        """``chunks`` and ``final`` come with a project (or empty) and a job id; others are passed over."""
        ...


async def hear(store: JobStore, hub: Hub, runner: Runner, peers: Peers) -> None:
    """Ring for those who wait here, and end what was cancelled elsewhere; for ever.

    That a job was queued is not followed: the gateway that stored it leases it, and should that one die or
    have no way to an instance, the others look twice a second. To follow each would be a lease per gateway.
    """
    source = store.watch if isinstance(store, Tells) else _watch(hub, peers)

    async def look(project: str, job_id: str) -> None:
        # A hint that nobody follows is found by the next heartbeat.
        with contextlib.suppress(RequestError):
            job = await store.get(project, job_id)
            if job is not None and job.state == "cancelled":
                runner.abort(job_id)

    while True:
        try:
            async with asyncio.TaskGroup() as looks:

                def heard(hint: str, project: str, subject: str, looks: asyncio.TaskGroup = looks) -> None:
                    if hint == "resync":
                        # The connection was away: whatever was told meanwhile went by.
                        hub.ring_all()
                    if hint not in ("chunks", "final"):
                        return
                    hub.heard(subject)
                    run = runner.run_of(subject) if hint == "final" else None
                    # Those of ours that ended by themselves are settling.
                    if run is not None and not run.settling:
                        looks.create_task(look(run.lease.job.project, subject))

                await source(heard)
        except* Exception as errors:
            log.warning("hints of other gateways are not heard for a moment: %s", errors.exceptions[0])
        await asyncio.sleep(AGAIN_S)


def _watch(hub: Hub, peers: Peers) -> Callable[[Callable[[str, str, str], None]], Coroutine[Any, Any, None]]:
    """What `Tells.watch` gives, by word of the others; they hear of what happens here."""

    async def watch(callback: Callable[[str, str, str], None]) -> None:
        def hinted(jobs: Sequence[str]) -> None:
            # Chunks and ends of a job come from who runs it: for one that runs here it is an end.
            for job_id in jobs:
                callback("final", "", job_id)

        peers.hinted, peers.met, hub.tell = hinted, lambda: callback("resync", "", ""), peers.tell
        callback("resync", "", "")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            peers.hinted, peers.met, hub.tell = lambda jobs: None, lambda: None, None

    return watch
