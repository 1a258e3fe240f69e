"""Sync calls without an ``Idempotency-Key``, asked for like jobs: no store knows them, their gateway does."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from headrace.errors import Conflict
from headrace.gateway.call import Call
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.recent import brief, document, ended, living

POLL_S = 0.1
_ID = re.compile(r"[0-9a-f]{18}")
"""Ids of requests look so, those of jobs don't (but those of sync calls with a key)."""


class PlainCalls:
    """See the module. ``gateway`` is the id of this one."""

    def __init__(self, dispatcher: Dispatcher, gateway: str) -> None:
        self._dispatcher = dispatcher
        self._gateway = gateway

    def find(self, project: str, request_id: str) -> dict[str, Any] | None:
        """The call in the shape of a job, living or ended lately; None: this gateway does not know it."""
        if (call := self._living(project, request_id)) is not None:
            return document(brief(call), self._gateway, call)
        found = ended(self._dispatcher.recent, request_id) if _ID.fullmatch(request_id) else None
        if found is None or found[1].partition("/")[0] != project:
            return None
        return document(found, self._gateway)

    async def wait(self, project: str, request_id: str, timeout_s: float) -> dict[str, Any] | None:
        """The same when it has ended, or as it is when the time is up."""
        until = time.monotonic() + timeout_s
        found = self.find(project, request_id)
        while found is not None and found["finished_at"] is None and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            found = self.find(project, request_id) or found
        return found

    def cancel(self, project: str, request_id: str) -> dict[str, Any] | None:
        """Stop the call: its client gets 409. One that has ended stays what it is."""
        if (call := self._living(project, request_id)) is not None:
            call.fail(Conflict("the call was cancelled."), "cancelled")
        return self.find(project, request_id)

    def _living(self, project: str, request_id: str) -> Call | None:
        if not _ID.fullmatch(request_id):
            return None
        call = living(self._dispatcher.states(), request_id)
        return call if call is not None and call.state.key.partition("/")[0] == project else None
