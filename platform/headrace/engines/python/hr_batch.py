"""Batching: requests are collected and the handler is called once with the list of their inputs."""

from __future__ import annotations

import asyncio
from typing import Any, List, Optional, Tuple

import hr_loader
import hr_types
from hr_connection import Exchange
from hr_failure import handler_failed
from hr_inputs import Inputs, check_route
from hr_outputs import Outputs
from hr_pool import ThreadPool
from hr_problem import Problem
from hr_server import Server

Waiting = Tuple[Exchange, Any]
Answer = Tuple[bytes, bytes]


class BatchApp:
    """At most ``concurrency`` batches at once, each of at most ``max_size`` requests."""

    def __init__(
        self,
        server: Server,
        loaded: hr_loader.Loaded,
        pool: ThreadPool,
        *,
        concurrency: int,
        max_size: int,
        wait_ms: float,
    ) -> None:
        if loaded.mode not in (hr_loader.FUNCTION, hr_loader.ASYNC):
            raise hr_loader.StartFailed(
                "load-failed", "batch needs a handler that returns a list, not a generator"
            )
        self._server = server
        self._call = loaded.call
        self._async = loaded.mode == hr_loader.ASYNC
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._free = concurrency
        self._max_size = max_size
        self._wait_s = wait_ms / 1000
        self._waiting: List[Waiting] = []
        self._due = False
        self._timer: Optional[asyncio.TimerHandle] = None
        self.inputs = Inputs(loaded.call, batch=True)
        if self.inputs.single is None:
            raise hr_loader.StartFailed(
                "load-failed", "batch needs a handler with one parameter: the list of inputs"
            )
        self.outputs = Outputs(loaded.call, hr_types.batch_item)

    def start(self, x: Exchange) -> None:
        """Put an admitted request into the next batch."""
        try:
            check_route(x.head)
            args, kwargs = self.inputs.bind(x.head, x.body)
        except Problem as problem:
            self._server.release(x)
            x.problem(problem)
            return
        values = (*args, *kwargs.values())
        if not values:
            self._server.release(x)
            x.problem(Problem("validation-failed", "an input is needed", errors=[]))
            return
        x.body = b""
        self._waiting.append((x, values[0]))
        x.cancel = lambda: self._forget(x)
        if len(self._waiting) >= self._max_size:
            self._due = True
        elif self._timer is None and not self._due:
            self._timer = self._loop.call_later(self._wait_s, self._ripe)
        self._flush()

    def _forget(self, x: Exchange) -> None:
        left = [(other, value) for other, value in self._waiting if other is not x]
        if len(left) < len(self._waiting):
            self._waiting = left
            self._server.release(x)

    def _ripe(self) -> None:
        self._timer = None
        self._due = True
        self._flush()

    def _flush(self) -> None:
        while self._due and self._waiting and self._free > 0:
            batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
            self._free -= 1
            # Those left over have waited already: they go as soon as there is room.
            self._due = bool(self._waiting)
            if self._async:
                self._start_async(batch)
            else:
                for x, _ in batch:
                    x.cancel = lambda x=x: self._server.abandon(x)
                self._pool.submit(lambda batch=batch: self._run_sync(batch))  # type: ignore[misc]
        if not self._waiting:
            self._due = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _start_async(self, batch: List[Waiting]) -> None:
        task = self._loop.create_task(self._run_async(batch))

        def cancel() -> None:
            if all(x.cancelled for x, _ in batch):
                task.cancel()
                for x, _ in batch:
                    self._server.abandon(x)

        def ended(_: "asyncio.Task[Tuple[List[Answer], Optional[BaseException]]]") -> None:
            # Also of a task that was cancelled before its first step.
            self._finish(batch, *(([], asyncio.CancelledError()) if task.cancelled() else task.result()))

        for x, _ in batch:
            x.cancel = cancel
        task.add_done_callback(ended)

    async def _run_async(self, batch: List[Waiting]) -> "Tuple[List[Answer], Optional[BaseException]]":
        try:
            return self._split(batch, await self._call([value for _, value in batch])), None
        except BaseException as error:
            return [], error

    def _run_sync(self, batch: List[Waiting]) -> None:
        answers: List[Answer] = []
        error: Optional[BaseException] = None
        try:
            answers = self._split(batch, self._call([value for _, value in batch]))
        except BaseException as raised:
            error = raised
        self._loop.call_soon_threadsafe(self._finish_thread, batch, answers, error)

    def _finish_thread(
        self, batch: List[Waiting], answers: List[Answer], error: Optional[BaseException]
    ) -> None:
        self._pool.done()
        self._finish(batch, answers, error)

    def _split(self, batch: List[Waiting], results: Any) -> List[Answer]:
        if isinstance(results, (str, bytes, dict)) or not hasattr(results, "__len__"):
            what = hr_types.name_of(results)
            detail = f"the batch handler returned {what}: return a list with one result per input"
            raise Problem("output-invalid", detail)
        if len(results) != len(batch):
            counts = f"{len(results)} results for {len(batch)} inputs"
            detail = f"the batch handler returned {counts}: return one for each"
            raise Problem("output-invalid", detail)
        return [self.outputs.encode(result) for result in results]

    def _finish(self, batch: List[Waiting], answers: List[Answer], error: Optional[BaseException]) -> None:
        self._free += 1
        problem: Optional[Problem] = None
        header = b""
        if isinstance(error, Problem):
            problem = error
        elif error is not None and not all(x.cancelled for x, _ in batch):
            problem, header = handler_failed(error)
        for x, _ in batch:
            self._server.release(x)
        for i, (x, _) in enumerate(batch):
            if problem is not None:
                x.problem(problem, header)
            elif answers:
                x.respond(200, *answers[i])
        self._flush()
