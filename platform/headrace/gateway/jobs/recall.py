"""Asks an endpoint's instances for the answer of a job whose gateway died before it had stored it.

Instances keep answers of jobs for a while (the engine's ``hr_kept``): what ran to its end does not run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from headrace.gateway.endpoints import Instance
from headrace.gateway.upstream import AddressRefused, Upstream, open_connection

KEEP_LINE = b"X-Headrace-Keep: 1\r\n"
"""In requests whose answers are to be kept."""
MAX_ASKED = 64
ANSWER_S = 3.0
"""An instance that says nothing for so long (stopped, or too busy) is asked no more."""
AGAIN_S = 0.05
_RECALL = (
    b"GET / HTTP/1.1\r\nHost: headrace\r\n%bX-Headrace-Request-Id: %b\r\nX-Headrace-Recall: %b\r\n"
    b"Connection: close\r\n\r\n"
)
_OWN = (b"connection", b"content-length", b"date")


async def recall(instances: Sequence[Instance], job_id: str, timeout_s: float) -> bytes:
    """The whole answer (head and body), as soon as an instance has it; empty: none has, the job may run.

    While an instance still works on it (a thread that outlives its connection), that is waited for.
    """
    tasks = [asyncio.create_task(_one(instance, job_id)) for instance in instances[:MAX_ASKED]]
    try:
        async with asyncio.timeout(timeout_s):
            for ended in asyncio.as_completed(tasks):
                if answer := await ended:
                    return answer
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return b""


async def _one(instance: Instance, job_id: str) -> bytes:
    while instance.usable:
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await _ask(instance, job_id)
        except (OSError, TimeoutError, AddressRefused):
            return b""
        if answer is None:
            await asyncio.sleep(AGAIN_S)
            continue
        return answer
    return b""


async def _ask(instance: Instance, job_id: str) -> bytes | None:
    """The answer; empty: there is none; None: it is still worked on. Raises ``OSError``."""
    up = cast(Upstream, await open_connection(instance.route.address))
    receiver = _Collector()
    try:
        name = job_id.encode("latin-1")
        up.send(receiver, _RECALL % (instance.token_line, name, name))
        await receiver.over
    finally:
        up.close()
    if receiver.running:
        return None
    return receiver.head + b"".join(receiver.parts) if receiver.head else b""


class _Collector:
    """A `Receiver` that collects a small answer."""

    head_request = False

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head = b""
        self.running = False
        self.parts: list[bytes] = []

    def on_head(self, up: Upstream) -> None:
        """See `Receiver`."""
        self.running = (b"x-headrace-refused", b"running") in ((n.lower(), v) for n, v in up.headers)
        if up.status < 400 and not self.running:
            lines = b"".join(b"%b: %b\r\n" % (n, v) for n, v in up.headers if n.lower() not in _OWN)
            self.head = b"HTTP/1.1 %d OK\r\n%b\r\n" % (up.status, lines)

    def on_body(self, data: bytes) -> None:
        """See `Receiver`."""
        self.parts.append(data)

    def on_complete(self, up: Upstream, reusable: bool) -> None:
        """See `Receiver`."""
        if not self.over.done():
            self.over.set_result(None)

    def on_lost(self, up: Upstream, detail: str) -> None:
        """See `Receiver`."""
        if not self.over.done():
            self.over.set_exception(ConnectionError(detail))
