"""The sandboxes of one runtime, by id, and the claims that are under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from headrace_runtimes.base import Sandbox
from headrace_runtimes.errors import AssignFailed, PrepareFailed
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.logs import LogStore
from headrace_runtimes.instance.sandbox import EngineSandbox, Frame
from headrace_runtimes.spec import Assignment, Exit


class Roster:
    """Between `open` and `end_claims` sandboxes are claimed."""

    def __init__(self) -> None:
        self._known: dict[str, EngineSandbox] = {}
        self._claims: set[asyncio.Task[Sandbox]] = set()
        self._idle = asyncio.Event()
        self._closed = True

    def open(self) -> None:
        """Nothing is claimed yet."""
        self._closed = False
        self._idle.set()

    def instances(self) -> list[Sandbox]:
        """All living ones that have been assigned."""
        return [s for s in self._known.values() if s.alive and s.endpoint]

    def holds(self, child: Child) -> bool:
        """Whether one of them is this process."""
        return any(s.holds(child) for s in self._known.values())

    def new(self, id: str, logs: LogStore, boot: Callable[[], Awaitable[Frame]]) -> EngineSandbox:
        """One that has not been started; ``boot`` does that. Raises `PrepareFailed` when the id is taken."""
        if id in self._known:
            raise PrepareFailed(f"There is a sandbox {id} already: use a new id.")
        sandbox = EngineSandbox(id, logs=logs, boot=boot, on_gone=self._forget, on_assign=self._renamed)
        self._known[id] = sandbox
        return sandbox

    async def claim(
        self, assignment: Assignment, work: Callable[[], Coroutine[Any, Any, Sandbox]]
    ) -> Sandbox:
        """What ``work`` makes. Raises what that does, `AssignFailed` when the runtime is closed meanwhile,
        `PrepareFailed` when the id is taken."""
        if assignment.id in self._known:
            raise PrepareFailed(f"There is an instance {assignment.id} already: use a new id.")
        # A task of its own: who closes the runtime ends the start, not the caller.
        task = asyncio.create_task(work())
        self._claims.add(task)
        self._idle.clear()
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not self._closed or (caller and caller.cancelling()):
                raise
            exit = Exit("stopped", "the runtime was closed while it started")
            raise AssignFailed(f"{assignment.endpoint}: {exit.detail}.", exit) from None
        finally:
            self._claims.discard(task)
            if not self._claims:
                self._idle.set()

    async def assign(
        self, assignment: Assignment, frame: Frame, logs: LogStore, claimed_at: float
    ) -> EngineSandbox:
        """Make what holds a waiting process an instance; it has ended when that fails.

        ``claimed_at``: as in `EngineSandbox.assign`. Raises `AssignFailed`, `PrepareFailed`.
        """
        sandbox = EngineSandbox(assignment.id, logs=logs, frame=frame, on_gone=self._forget)
        self._known[assignment.id] = sandbox
        try:
            await sandbox.assign(assignment, claimed_at=claimed_at)
        except BaseException:
            frame.child.kill()
            await asyncio.shield(sandbox.gone())
            raise
        return sandbox

    async def quiet(self, within_s: float) -> None:
        """Returns when nothing is being claimed, at the latest after ``within_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()

    async def end_claims(self) -> None:
        """The runtime closes: those that are under way fail."""
        self._closed = True
        for task in self._claims:
            task.cancel()
        if self._claims:
            await asyncio.wait(self._claims)

    async def stop_all(self) -> None:
        """Without any grace."""
        await asyncio.gather(*(s.stop(0.0) for s in list(self._known.values())))

    def _renamed(self, sandbox: EngineSandbox) -> None:
        """It has an instance's id from now on. Raises `PrepareFailed` when that is taken."""
        other = self._known.get(sandbox.id)
        if other is not None and other is not sandbox:
            raise PrepareFailed(f"There is an instance {sandbox.id} already: use a new id.")
        for id in [id for id, known in self._known.items() if known is sandbox]:
            del self._known[id]
        self._known[sandbox.id] = sandbox

    def _forget(self, sandbox: EngineSandbox) -> None:
        if self._known.get(sandbox.id) is sandbox:
            del self._known[sandbox.id]
