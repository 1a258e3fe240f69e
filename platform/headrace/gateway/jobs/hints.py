"""What other gateways did to jobs, heard at once from a store that tells it (PostgreSQL).

Hints make things faster, and nothing depends on them: who waits asks the store now and then, and a heartbeat
finds that a job was cancelled elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from headrace.errors import RequestError
from headrace.gateway.jobs.hub import Hub
from headrace.gateway.jobs.runner import Runner
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

AGAIN_S = 1.0


@runtime_checkable
class Tells(Protocol):
    """A store that tells what other gateways did, until the task is cancelled."""

    async def watch(self, callback: Callable[[str, str, str], None]) -> None:
        """``chunks`` and ``final`` come with a project (or empty) and a job id; others are passed over."""
        ...


async def hear(store: JobStore, hub: Hub, runner: Runner) -> None:
    """Ring for those who wait here, and end what was cancelled elsewhere; for ever, or not at all.

    That a job was queued is not followed: the gateway that stored it leases it, and should that one die or
    have no way to an instance, the others look twice a second. To follow each would be a lease per gateway.
    """
    if not isinstance(store, Tells):
        return

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
                    hub.ring(subject)
                    # Those of ours that ended by themselves are told without their project.
                    if hint == "final" and project and runner.runs_here(subject):
                        looks.create_task(look(project, subject))

                await store.watch(heard)
        except* Exception as errors:
            log.warning("hints of other gateways are not heard for a moment: %s", errors.exceptions[0])
        await asyncio.sleep(AGAIN_S)
