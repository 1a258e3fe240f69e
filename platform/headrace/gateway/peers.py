"""The gateways of one machine among each other: who has a request, and what has just happened to jobs.

Each listens on a socket in the run directory and connects to those that it finds there: nothing of this needs
control. The name of a gateway's socket begins as the ids of its requests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from headrace import link, wire
from headrace.errors import GatewayAway, LinkError

log = logging.getLogger("headrace.gateway")

DIRECTORY = "gateways"
"""In the run directory."""
SCAN_S = 2.0
"""A gateway connects to the others at its start, and looks so often for links that broke."""
CONNECT_S = 1.0
ANSWER_S = 2.0
"""For an answer, beside what the question says it may wait."""
FLUSH_S = 0.005
MAX_PENDING = 10_000
"""Hints that wait to be sent; more are dropped: who waits for a job looks by itself, too."""
TRIES = 2

Answer = Callable[[wire.ApiCall], Awaitable[wire.ApiReply]]


async def _nothing(question: wire.ApiCall) -> wire.ApiReply:
    return wire.ApiReply(status=404)


class Peers:
    """See the module. ``prefix`` begins the ids of this gateway's requests; ``answer`` is asked for them,
    ``hinted`` hears that something happened to jobs elsewhere, ``met`` that there is a new link.
    """

    def __init__(self, directory: Path, token: str, prefix: str, gateway: str) -> None:
        self._dir = directory
        self._token = token
        self._prefix = prefix
        # The gateway's own id as well: in tests several live in one process.
        self._name = f"{prefix}.{gateway}"
        self.answer: Answer = _nothing
        self.hinted: Callable[[Sequence[str]], None] = lambda jobs: None
        self.met: Callable[[], None] = lambda: None
        self._server: asyncio.Server | None = None
        self._links: dict[str, link.Link] = {}
        self._open: set[link.Link] = set()
        self._pending: dict[str, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._scanning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, and begin to look for the others. What stands in the way is no reason not to serve."""
        path, draft = self._dir / self._name, self._dir / f".{self._name}"
        try:
            self._dir.mkdir(mode=0o700, exist_ok=True)
            servers = await link.listen([f"unix:{draft}"], token=self._token, epoch=0, on_link=self._came)
            self._server = servers[0]
            # Under its name it takes connections from its first moment: one that refuses is a dead one's.
            draft.rename(path)
        except OSError as error:
            log.warning("other gateways cannot ask this one for its requests: %s", error)
            if self._server is not None:
                self._server.close()
                self._server = None
            return
        self._scanning = asyncio.get_running_loop().create_task(self._scan())

    async def stop(self) -> None:
        """Go, and leave nothing."""
        if self._scanning is not None:
            self._scanning.cancel()
            await asyncio.gather(self._scanning, return_exceptions=True)
        if self._timer is not None:
            self._flush()
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                (self._dir / self._name).unlink(missing_ok=True)
        for known in list(self._open):
            known.close("the gateway stops")

    # -- hints --------------------------------------------------------------------------------------

    def tell(self, job_id: str) -> None:
        """Something happened to the job: all others hear of it soon, unless it gets lost."""
        if not self._links or len(self._pending) >= MAX_PENDING:
            return
        self._pending[job_id] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        hints, self._pending = wire.JobHints(jobs=list(self._pending)), {}
        for known in list(self._links.values()):
            with contextlib.suppress(LinkError):
                known.send(hints)

    # -- questions ----------------------------------------------------------------------------------

    def may_know(self, request_id: str) -> bool:
        """Whether the request may be another gateway's."""
        return bool(self._owners(request_id))

    async def ask(self, request_id: str, question: wire.ApiCall, wait_s: float) -> wire.ApiReply | None:
        """What the gateway says that has the request; None: it is gone. It may take ``wait_s`` to answer.

        Raises `GatewayAway` when it is there and does not answer.
        """
        for name in self._owners(request_id):
            for _ in range(TRIES):
                known = self._links.get(name) or await self._connect(name)
                if known is None:
                    break
                try:
                    reply = await known.call(question, wait_s + ANSWER_S)
                except LinkError:
                    continue
                except TimeoutError:
                    break
                if isinstance(reply, wire.ApiReply):
                    return reply
                break
            if name in self._listed():
                raise GatewayAway(
                    "the gateway that has this request does not answer.", hint="Try again.", retry_after=1
                )
        return None

    def _owners(self, request_id: str) -> list[str]:
        found = [name for name in self._links if request_id.startswith(name.partition(".")[0])]
        if found or self._server is None or request_id.startswith(self._prefix):
            return found
        return [name for name in self._listed() if request_id.startswith(name.partition(".")[0])]

    # -- links --------------------------------------------------------------------------------------

    def _listed(self) -> list[str]:
        """Others' sockets."""
        try:
            names = os.listdir(self._dir)
        except OSError:
            return []
        return [name for name in names if name[0] != "." and "." in name and name != self._name]

    async def _scan(self) -> None:
        while True:
            for name in self._listed():
                if name not in self._links:
                    await self._connect(name)
            await asyncio.sleep(SCAN_S)

    async def _connect(self, name: str) -> link.Link | None:
        """A link to a gateway; None: it is gone, or does not answer in time."""
        path = self._dir / name
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await link.connect(f"unix:{path}", role="gateway", id=self._name, token=self._token)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        except (OSError, LinkError, TimeoutError) as error:
            log.debug("no link to gateway %s: %s", name, error)
            return None
        found.peer_id = name
        return self._add(found)

    def _came(self, known: link.Link, hello: wire.Hello) -> None:
        if hello.role != "gateway" or hello.id == self._name:
            known.close("only gateways talk here")
        else:
            self._add(known)

    def _add(self, known: link.Link) -> link.Link:
        self._open.add(known)
        self._links[known.peer_id] = known
        known.start(self._heard, self._lost)
        # What was told before there was a link went by.
        self.met()
        return known

    def _lost(self, known: link.Link, reason: str) -> None:
        self._open.discard(known)
        if self._links.get(known.peer_id) is known:
            del self._links[known.peer_id]

    def _heard(self, known: link.Link, msg: wire.AnyMessage) -> Awaitable[wire.AnyMessage | None] | None:
        if isinstance(msg, wire.JobHints):
            self.hinted(msg.jobs)
        elif isinstance(msg, wire.ApiCall):
            return self.answer(msg)
        else:
            log.warning("a gateway sent %s, which means nothing here", type(msg).__name__)
        return None
