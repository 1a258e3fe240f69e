"""An instance's life: assignment, import, load, serving, its host's questions, stop."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import resource
import socket
import sys
import time
from typing import Any, Awaitable, Callable, Optional

import hr_failure
import hr_loader
import hr_native
import hr_secrets
import hr_sys
from hr_asgi import AsgiApp
from hr_batch import BatchApp
from hr_hub import Controls
from hr_ipc import Channel, Message, close_all
from hr_loader import Loaded, StartFailed
from hr_pool import ThreadPool
from hr_server import Server

_CANCEL_GRACE_S = 5.0
"""A handler that was cancelled has so long to return."""
_STUCK = 75
"""Exit code of an instance whose handlers did not return after they were cancelled."""
_LAST_REFUSALS_S = 0.1
_SHUTDOWN_S = 5.0
"""What unload or a lifespan's shutdown may take when the grace is used up."""


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's when the environment has it."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run(channel: Channel, loaded: Optional[Loaded]) -> int:
    """Wait for the assignment and be that instance; returns the exit code."""
    loop = new_loop()
    while True:
        message, fds = channel.recv()
        if message is None:
            return 0
        op = message.get("op")
        if op == "assign" and len(fds) == 1:
            return _Instance(loop, channel, message, fds[0]).run(loaded)
        close_all(fds)
        if op == "stop":
            return 0
        if op == "stats":
            channel.send({"ev": "stats", "in_flight": 0, "served": 0})
        elif op == "health":
            channel.send({"ev": "health", "ok": True, "detail": "waiting for an assignment"})
        elif op == "assign":
            _fail(channel, StartFailed("load-failed", f"assign takes 1 descriptor, not {len(fds)}"))


def _fail(channel: Channel, error: StartFailed) -> None:
    channel.send(
        {"ev": "failed", "reason": error.reason, "message": str(error), "traceback": error.traceback}
    )


def settle_in(message: Message) -> None:
    """Environment, directories and limits of the instance."""
    home = str(message["dir"])
    os.chdir(home)
    environment = {"HOME": os.path.join(home, "home"), "TMPDIR": os.path.join(home, "tmp")}
    for path in environment.values():
        try:
            os.mkdir(path, 0o700)
        except OSError:
            continue
    environment.update({str(k): str(v) for k, v in (message.get("env") or {}).items()})
    environment.update(hr_secrets.keep(message, home))
    os.environ.update(environment)
    if "TZ" in environment:
        time.tzset()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]
    sys.argv = [str(message.get("entry", ""))]
    if message.get("nofile"):
        hr_sys.limit(resource.RLIMIT_NOFILE, int(message["nofile"]))
    name = str(message.get("endpoint", "")).rpartition("/")[2]
    hr_sys.set_name("hr-" + name)
    hr_failure.endpoint = name or hr_failure.endpoint


class _Instance:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, channel: Channel, message: Message, listen_fd: int
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._message = message
        self._socket = socket.socket(fileno=listen_fd)
        self._began = time.monotonic()
        concurrency = max(1, int(message.get("concurrency") or 1))
        self._batch = int(message.get("batch_max_size") or 0)
        self._concurrency = concurrency
        self._server = Server(
            str(message["token"]),
            # A batch holds one place in the handler, each of its requests one on the wire.
            concurrency * max(1, self._batch),
            int(message.get("max_body") or (32 << 20)),
            float(message.get("timeout") or 0.0),
            float(message.get("cancel_grace") or _CANCEL_GRACE_S),
        )
        self._stuck = False
        self._asgi: Optional[AsgiApp] = None
        self._loaded: Optional[Loaded] = None

    def run(self, loaded: Optional[Loaded]) -> int:
        try:
            self._start(loaded)
        except StartFailed as error:
            print(error.traceback or str(error), file=sys.stderr)
            _fail(self._channel, error)
            return 1
        grace = self._loop.run_until_complete(self._controls.wait())
        if self._stuck:
            # No unload: the thread that does not return may hold what it needs.
            self._loop.run_until_complete(asyncio.sleep(_LAST_REFUSALS_S))
            self._loop.run_until_complete(self._server.flush(1.0))
            return _STUCK
        if grace is None:
            return 0
        self._stop(grace)
        return 0

    def _start(self, loaded: Optional[Loaded]) -> None:
        message = self._message
        entry, handler = str(message["entry"]), str(message.get("handler") or hr_loader.FUNCTION)
        limit = float(message.get("load_timeout") or 0.0)
        try:
            settle_in(message)
        except OSError as error:
            raise StartFailed("load-failed", f"the instance's directory: {error}") from error
        ready = time.monotonic()
        reuse = loaded is not None and loaded.entry == entry
        target: Any = None
        with hr_loader.time_limit(limit, "importing the endpoint"):
            if not reuse:
                target = hr_loader.import_entry(str(message["code"]), entry)
        imported = time.monotonic()
        self._channel.send({"ev": "imported", "seconds": imported - ready})
        if reuse and loaded is not None:
            self._loaded = loaded
        else:
            with hr_loader.time_limit(limit, "load()"):
                self._loaded = hr_loader.make(target, handler, entry)
                hr_loader.run_load(self._loaded, self._drive(limit))
        if not message.get("probed"):
            with hr_loader.time_limit(limit, "health()"):
                hr_loader.run_health(self._loaded, self._drive(limit))
        self._loop.run_until_complete(self._open(self._loaded, limit))
        done = time.monotonic()
        self._channel.send(
            {
                "ev": "ready",
                "boot": ready - self._began,
                "imported": imported - ready,
                "load": done - imported,
            }
        )

    def _drive(self, limit: float) -> Callable[[Awaitable[Any]], Any]:
        """Run something async on the loop that will serve, so that what it opens stays usable."""

        async def wait(awaitable: Awaitable[Any]) -> Any:
            if not limit:
                return await awaitable
            try:
                return await asyncio.wait_for(awaitable, limit)
            except asyncio.TimeoutError as error:
                raise hr_loader.LoadTimeout(f"load() took longer than {limit:g} s") from error

        return lambda awaitable: self._loop.run_until_complete(wait(awaitable))

    async def _open(self, loaded: Loaded, limit: float) -> None:
        server = self._server
        pool = ThreadPool(self._concurrency)
        if loaded.mode == hr_loader.ASGI:
            self._asgi = AsgiApp(server, loaded)
            try:
                await asyncio.wait_for(self._asgi.startup(), limit or None)
            except asyncio.TimeoutError as error:
                raise StartFailed(
                    "load-failed", f"the lifespan startup took longer than {limit:g} s"
                ) from error
            server.app = self._asgi
        elif self._batch > 0:
            wait_ms = float(self._message.get("batch_max_wait_ms") or 0.0)
            server.app = BatchApp(
                server, loaded, pool, concurrency=self._concurrency, max_size=self._batch, wait_ms=wait_ms
            )
        else:
            server.app = hr_native.NativeApp(server, loaded, pool)
        self._controls = Controls(self._channel, server, loaded)
        server.stuck = self._give_up
        await server.listen(self._socket)

    def _give_up(self) -> None:
        if not self._stuck:
            self._stuck = True
            grace = self._server.cancel_grace_s
            why = f"a cancelled request still runs after {grace:g} s, and nothing else does"
            print(f"headrace: {why}: this instance ends", file=sys.stderr, flush=True)
            self._channel.send({"ev": "stuck", "message": why})
            self._controls.end()

    def _stop(self, grace: float) -> None:
        ends = time.monotonic() + grace
        run = self._loop.run_until_complete
        if not run(self._server.drain(grace)):
            self._server.cut_off()
        run(self._server.flush(max(0.2, ends - time.monotonic())))
        left = max(_SHUTDOWN_S, ends - time.monotonic())
        try:
            if self._asgi is not None:
                run(asyncio.wait_for(self._asgi.shutdown(), left))
            unload = self._loaded.method("unload") if self._loaded is not None else None
            if unload is not None:
                result = unload()
                if inspect.isawaitable(result):
                    self._drive(left)(result)
        except BaseException as error:
            print(hr_loader.user_traceback(error), file=sys.stderr)
