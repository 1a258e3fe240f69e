"""Answers that wait for the end of a job which was stored for them: ``runsync``, a synchronous prediction."""

from __future__ import annotations

import asyncio
import logging

from headrace.errors import RequestError
from headrace.gateway.jobs.service import JobService
from headrace.gateway.request import Request
from headrace.jobs.model import Job

log = logging.getLogger("headrace.gateway")

_STEPS = ("queue", "tier", "claim", "boot", "import", "load", "handler")


async def answered(
    service: JobService, request: Request, job: Job, wait_s: float, *, cancel: bool
) -> Job | None:
    """The job when it is final, or as it is when the time is up. None: it is not kept any more.

    ``cancel``: nobody but this client can ever learn how it ended, so a hang-up cancels it.
    """
    client = request.client
    client.release_body(request)
    try:
        return await service.wait(job.project, job.id, wait_s)
    except asyncio.CancelledError:
        # A gateway that stops cuts its clients off: they did not leave, and the job goes on elsewhere.
        request.close = False
        stopping = client.closes(request)
        if cancel and not stopping:
            service.spawn(_cancel(service, job))
        raise


async def _cancel(service: JobService, job: Job) -> None:
    try:
        await service.cancel(job.project, job.id)
    except RequestError as error:
        log.info("job %s, whose client is gone, is not cancelled: %s", job.id, error)


def server_timing(job: Job) -> bytes:
    """The ``Server-Timing`` line of a job's receipt; empty when it has none."""
    receipt = job.receipt
    parts = []
    for step in _STEPS:
        if step == "tier":
            if isinstance(tier := receipt.get("tier"), str) and tier.isalnum():
                parts.append(f'tier;desc="{tier}"')
            continue
        ms = receipt.get("queued_ms" if step == "queue" else f"{step}_ms")
        if isinstance(ms, int | float):
            parts.append(f"{step};dur={ms:.2f}")
    if job.finished_at is not None:
        parts.append(f"total;dur={max(0.0, job.finished_at - job.created_at) * 1e3:.2f}")
    return f"Server-Timing: {', '.join(parts)}\r\n".encode() if parts else b""
