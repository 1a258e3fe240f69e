"""The instance's side of its control socket while it serves: stats, health, stop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any, Callable, Optional

from hr_ipc import Channel, Message, close_all
from hr_loader import Loaded
from hr_server import Server


class Controls:
    """Reads packets from the runtime on the loop."""

    def __init__(self, channel: Channel, server: Server, loaded: Loaded) -> None:
        self._channel = channel
        self._server = server
        self._health = loaded.method("health")
        self._loop = asyncio.get_running_loop()
        self._stopped: "asyncio.Future[Optional[float]]" = self._loop.create_future()
        self._checking = False
        self._loop.add_reader(channel.fileno(), self._read)

    def end(self) -> None:
        """The instance ends by itself."""
        self._end(None)

    async def wait(self) -> Optional[float]:
        """The grace of ``stop`` in seconds; ``None`` when the runtime is gone."""
        return await self._stopped

    def _read(self) -> None:
        message, fds = self._channel.recv()
        close_all(fds)
        if message is None:
            self._loop.remove_reader(self._channel.fileno())
            self._end(None)
            return
        op = message.get("op")
        if op == "stats":
            self._send({"ev": "stats", "in_flight": self._server.in_flight, "served": self._server.served})
        elif op == "health":
            self._check()
        elif op == "left":
            self._server.left()
        elif op == "stop":
            self._server.draining = True
            self._end(float(message.get("grace") or 0.0))

    def _end(self, grace: Optional[float]) -> None:
        if not self._stopped.done():
            self._stopped.set_result(grace)

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except OSError:
            self._end(None)

    def _check(self) -> None:
        if self._health is None:
            self._send({"ev": "health", "ok": True, "detail": ""})
        elif not self._checking:
            # The answer to the check that runs is the answer to this one too.
            self._checking = True
            if inspect.iscoroutinefunction(self._health):
                self._loop.create_task(self._check_async(self._health))
            else:
                threading.Thread(
                    target=self._check_sync, args=(self._health,), name="health", daemon=True
                ).start()

    async def _check_async(self, health: Callable[[], Any]) -> None:
        try:
            self._checked(await health(), None)
        except BaseException as error:
            self._checked(None, error)

    def _check_sync(self, health: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = health()
        except BaseException as error:
            failure = error
        self._loop.call_soon_threadsafe(self._checked, result, failure)

    def _checked(self, result: Any, error: Optional[BaseException]) -> None:
        self._checking = False
        ok = error is None and (result is None or bool(result))
        detail = (
            f"{type(error).__name__}: {error}" if error else "" if ok else f"health() returned {result!r}"
        )
        self._send({"ev": "health", "ok": ok, "detail": detail})
