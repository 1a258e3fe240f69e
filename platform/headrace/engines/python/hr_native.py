"""Native handlers: functions, classes and generators that take and return values, not HTTP."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, Optional, Tuple

import hr_context
import hr_loader
import hr_stream
import hr_types
from hr_connection import Exchange
from hr_failure import handler_failed
from hr_inputs import Inputs, check_route
from hr_outputs import Outputs
from hr_pool import ThreadPool
from hr_problem import Problem
from hr_server import Server


class NativeApp:
    """Calls the handler: async on the loop, sync on a thread, generators as streams."""

    def __init__(self, server: Server, loaded: hr_loader.Loaded, pool: ThreadPool) -> None:
        self._server = server
        self._call = loaded.call
        self._mode = loaded.mode
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.inputs = Inputs(loaded.call)
        streams = loaded.mode in (hr_loader.GENERATOR, hr_loader.ASYNC_GENERATOR)
        self.outputs = Outputs(loaded.call, hr_types.stream_item if streams else None)

    def start(self, x: Exchange) -> None:
        """Begin work on an admitted request."""
        header = x.head.index.get(b"traceparent")
        if header is None:
            self._start(x)
        else:
            hr_context.run_in(header, self._start, x)

    def _start(self, x: Exchange) -> None:
        try:
            check_route(x.head)
            args, kwargs = self.inputs.bind(x.head, x.body)
        except Problem as problem:
            self._server.release(x)
            x.problem(problem)
            return
        x.body = b""
        if self._mode == hr_loader.ASYNC:
            self._cancel_with(x, self._loop.create_task(self._run_async(x, args, kwargs)))
        elif self._mode == hr_loader.FUNCTION:
            self._run_sync(x, args, kwargs)
        elif self._mode == hr_loader.GENERATOR:
            stream = hr_stream.SyncStream(self._loop, x, self.outputs, lambda: self._call(*args, **kwargs))

            def cancel() -> None:
                stream.cancel()
                self._server.abandon(x)

            x.cancel = cancel
            stream.on_end = lambda: self._end_thread(x)
            self._pool.submit(hr_context.bound(stream.run))
        else:
            self._cancel_with(x, self._loop.create_task(self._run_async_stream(x, args, kwargs)))

    def _cancel_with(self, x: Exchange, task: "asyncio.Task[None]") -> None:
        def cancel() -> None:
            # A task that is cancelled before its first step never reaches its own release.
            task.add_done_callback(lambda _: self._server.release(x))
            task.cancel()
            self._server.abandon(x)

        x.cancel = cancel

    async def _run_async(self, x: Exchange, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        # SystemExit and KeyboardInterrupt out of a task would end the loop: nothing leaves this method.
        problem: Optional[Problem] = None
        header = content_type = body = b""
        try:
            content_type, body = self.outputs.encode(await self._call(*args, **kwargs))
        except Problem as error:
            problem = error
        except BaseException as error:
            x.kept = None
            if not x.cancelled:
                problem, header = handler_failed(error)
        self._server.release(x)
        if problem is not None:
            x.problem(problem, header)
        else:
            x.respond(200, content_type, body)

    def _run_sync(self, x: Exchange, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        def job() -> None:
            problem: Optional[Problem] = None
            header = b""
            answer = (b"", b"")
            try:
                if x.cancelled:
                    x.kept = None
                else:
                    result = self._call(*args, **kwargs)
                    if not x.cancelled or x.kept is not None:
                        answer = self.outputs.encode(result)
            except Problem as error:
                problem = error
            except BaseException as error:
                problem, header = handler_failed(error)
            self._loop.call_soon_threadsafe(self._finish_sync, x, answer, problem, header)

        x.cancel = lambda: self._server.abandon(x)
        self._pool.submit(hr_context.bound(job))

    def _finish_sync(
        self, x: Exchange, answer: Tuple[bytes, bytes], problem: Optional[Problem], header: bytes
    ) -> None:
        self._end_thread(x)
        if problem is not None:
            x.problem(problem, header)
        else:
            x.respond(200, *answer)

    def _end_thread(self, x: Exchange) -> None:
        self._pool.done()
        self._server.release(x)

    async def _run_async_stream(self, x: Exchange, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        try:
            await hr_stream.run_async(
                x, self.outputs, lambda: self._call(*args, **kwargs), self._server.release
            )
        finally:
            self._server.release(x)
