"""Sync calls without an ``Idempotency-Key``, asked for like jobs: no store knows them, their gateway does.

Any gateway may be asked: it asks the one whose request it is. It decides itself who may see the call, by the
project, which it passes on, and by the endpoint that the answer names.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Any

import msgspec

from headrace import wire
from headrace.errors import Conflict
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.peers import Peers
from headrace.gateway.recent import brief, document, ended, living

POLL_S = 0.1
STEP_S = 2.0
"""Another gateway is asked to wait for so long at a time: whoever asked may be gone."""
_ID = re.compile(r"[0-9a-f]{18}")
"""Ids of requests look so, those of jobs don't (but those of sync calls with a key)."""
_PATH = re.compile(r"/jobs/([0-9a-f]{18})(/cancel)?")


class PlainCalls:
    """See the module. ``gateway`` is the id of this one."""

    def __init__(self, dispatcher: Dispatcher, gateway: str, peers: Peers) -> None:
        self._dispatcher = dispatcher
        self._gateway = gateway
        self._peers = peers
        peers.answer = self._asked

    def find(self, project: str, request_id: str) -> dict[str, Any] | None:
        """The call in the shape of a job, living or ended lately; None: this gateway does not know it."""
        if (call := self._living(project, request_id)) is not None:
            return document(brief(call), self._gateway, call)
        found = ended(self._dispatcher.recent, request_id) if _ID.fullmatch(request_id) else None
        if found is None or found[1].partition("/")[0] != project:
            return None
        return document(found, self._gateway)

    def elsewhere(self, request_id: str) -> bool:
        """Whether another gateway may know it."""
        return _ID.fullmatch(request_id) is not None and self._peers.may_know(request_id)

    async def ask(self, project: str, request_id: str) -> dict[str, Any] | None:
        """The call as another gateway knows it; None: it doesn't, or is gone. Raises `GatewayAway`."""
        return await self._ask("GET", project, request_id, "")

    async def wait(self, project: str, request_id: str, timeout_s: float) -> dict[str, Any] | None:
        """The same when it has ended, or as it is when the time is up."""
        until = time.monotonic() + timeout_s
        if (found := await self._wait(project, request_id, timeout_s)) is not None:
            return found
        while True:
            left = max(0.0, until - time.monotonic())
            found = await self._ask("GET", project, request_id, "", min(STEP_S, left))
            if found is None or found["finished_at"] is not None or not left:
                return found

    async def cancel(self, project: str, request_id: str) -> dict[str, Any] | None:
        """Stop the call: its client gets 409. One that has ended stays what it is."""
        found = self._cancel(project, request_id)
        return found or await self._ask("POST", project, request_id, "/cancel")

    # -- here -----------------------------------------------------------------------------------

    async def _wait(self, project: str, request_id: str, timeout_s: float) -> dict[str, Any] | None:
        until = time.monotonic() + timeout_s
        found = self.find(project, request_id)
        while found is not None and found["finished_at"] is None and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            found = self.find(project, request_id) or found
        return found

    def _cancel(self, project: str, request_id: str) -> dict[str, Any] | None:
        if (call := self._living(project, request_id)) is not None:
            call.fail(Conflict("the call was cancelled."), "cancelled")
        return self.find(project, request_id)

    def _living(self, project: str, request_id: str) -> Call | None:
        if not _ID.fullmatch(request_id):
            return None
        call = living(self._dispatcher.states(), request_id)
        return call if call is not None and call.state.key.partition("/")[0] == project else None

    # -- elsewhere ------------------------------------------------------------------------------

    async def _ask(
        self, method: str, project: str, request_id: str, action: str, wait_s: float = 0.0
    ) -> dict[str, Any] | None:
        if not self.elsewhere(request_id):
            return None
        question = wire.ApiCall(
            method=method, path=f"/jobs/{request_id}{action}", query={"wait": f"{wait_s:g}"}, project=project
        )
        reply = await self._peers.ask(request_id, question, wait_s)
        if reply is None or reply.status != 200:
            return None
        return msgspec.json.decode(reply.body, type=dict[str, Any])

    async def _asked(self, question: wire.ApiCall) -> wire.ApiReply:
        """Another gateway asks."""
        named = _PATH.fullmatch(question.path)
        found = None
        if named is not None and named[2] and question.method == "POST":
            found = self._cancel(question.project, named[1])
        elif named is not None and not named[2]:
            wait_s = float(question.query.get("wait", "0"))
            found = await self._wait(
                question.project, named[1], min(STEP_S, wait_s) if math.isfinite(wait_s) else 0.0
            )
        if found is None:
            return wire.ApiReply(status=404)
        return wire.ApiReply(status=200, body=msgspec.json.encode(found))
