"""The processes of one platform: started side by side, watched, restarted within budgets, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from headrace.cluster.http import ApiClient
from headrace.cluster.identity import UP_FILE, UpRecord, remove_record, write_record
from headrace.cluster.listeners import open_gateway_listeners
from headrace.cluster.processes import Child, child_environment
from headrace.cluster.sweep import clear, end_leftovers, ray_temp_dir
from headrace.config import Settings
from headrace.errors import NotRunning, RequestError, SetupError
from headrace.heartbeat import FD_VARIABLE, Heartbeat
from headrace.sqlite_writer import disk_is_full

START_DEADLINE_S = 90.0
READY_POLL_S = 0.05
PROBE_TIMEOUT_S = 2.0
GATEWAY_MARGIN_S = 5.0
"""For a gateway to end once its requests have had `Settings.drain_grace`."""
DRIVER_GRACE_S = 15.0
CRASH_WINDOW_S = 60.0
GATEWAY_BACKOFF_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0)
"""Wait before a restart, by the number of ends within `CRASH_WINDOW_S`."""
DRIVER_WINDOW_S = 600.0
DRIVER_BUDGET = 3
"""Restarts of the Ray side within `DRIVER_WINDOW_S`; one more ends the platform."""


class Tell(Protocol):
    """Passes on progress; see `supervisor.UpEvent`."""

    def __call__(self, kind: Any, text: str, what: str = "", record: UpRecord | None = None) -> None:
        """Say ``text`` about ``what``."""


class Platform:
    """One start of the platform. `run` is called once; `ask_to_stop` may be called from a signal handler."""

    def __init__(self, settings: Settings, record: UpRecord, admin_key: str, tell: Tell) -> None:
        self._settings = settings
        self._record = record
        self._api = ApiClient(record.url, admin_key)
        self._tell = tell
        self._environment = child_environment(settings, os.environ)
        logs = settings.data / "logs"
        self._driver = Child(
            "driver", "headrace.cluster.ray_serve", logs / "driver.log", self._environment, talks=True
        )
        self._listeners = open_gateway_listeners(settings)
        self._hearts = [Heartbeat() for _ in self._listeners]
        self._gateways = [
            Child(
                f"gateway-{i}",
                "headrace.gateway",
                logs / f"gateway-{i}.log",
                self._environment
                | {"HEADRACE_LISTEN_FD": str(listener.fileno()), FD_VARIABLE: str(heart.fd)},
                pass_fds=(listener.fileno(), heart.fd),
            )
            for i, (listener, heart) in enumerate(zip(self._listeners, self._hearts, strict=True))
        ]
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self._driver_ready = asyncio.Event()
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._driver_error = ""
        self._missing = "Ray is not up"
        self._store_trouble = ""
        """Why the job store was not there when all else was ready."""
        self._ready = False
        self._began = time.monotonic()

    def ask_to_stop(self) -> None:
        """First call: stop in order. Second: at once."""
        if self._stop.is_set():
            self._kill.set()
        self._stop.set()

    @property
    def asked(self) -> bool:
        """Whether `ask_to_stop` was called."""
        return self._stop.is_set()

    async def run(self, once: Callable[[UpRecord], Awaitable[int]] | None) -> int:
        """Start, serve, stop. Raises `SetupError` when a part does not start or keeps dying."""
        write_record(self._record)
        watchers = [asyncio.create_task(self._keep_driver(), name="driver")]
        watchers += [
            asyncio.create_task(self._keep_gateway(child, heart), name=child.name)
            for child, heart in zip(self._gateways, self._hearts, strict=True)
        ]
        for watcher in watchers:
            watcher.add_done_callback(self._watcher_ended)
        try:
            if not await self._until(self._wait_ready()):
                return 0
            self._ready = True
            self._save(state="ready", ready_s=round(time.monotonic() - self._began, 3))
            self._tell("ready", f"ready at {self._record.url}", "platform", self._record)
            if self._store_trouble:
                refused = "jobs and calls with an Idempotency-Key are refused with 503 for now"
                self._tell("warning", f"{refused}: {self._store_trouble}", "store")
            result: list[int] = []

            async def work() -> None:
                if once is not None:
                    result.append(await once(self._record))
                else:
                    await self._stop.wait()

            await self._until(work())
            return result[0] if result else 0
        finally:
            await self._end(watchers)

    async def _until(self, work: Any) -> bool:
        """Do ``work`` until it is done, a stop is asked for (False), or a part fails for good (raises)."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stop, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            if self._fatal.done():
                self._fatal.result()
            if task.done():
                task.result()
                return True
            return False
        finally:
            for one in (task, stop):
                one.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    # -- readiness ----------------------------------------------------------------------------

    async def _wait_ready(self) -> None:
        self._tell("waiting", "starting Ray and the gateway", "ray")
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                await self._driver_ready.wait()
                self._tell("waiting", "waiting for the gateway and a host", "gateway")
                await self._poll("/readyz", lambda _: True)
                self._tell("done", "gateway ready", "gateway")
                found = await self._poll(
                    "/api/v1/status", lambda found: is_complete(found, len(self._gateways))
                )
                self._store_trouble = str(found.get("store", {}).get("reason", ""))
        except TimeoutError:
            raise SetupError(
                f"the platform was not ready within {START_DEADLINE_S:g} s: {self._missing}.",
                hint=f"The logs are in {self._settings.data / 'logs'}.",
            ) from None

    async def _poll(self, path: str, good: Callable[[Any], bool]) -> Any:
        while True:
            try:
                found = await self._api.get(path, timeout_s=PROBE_TIMEOUT_S)
            except (NotRunning, RequestError) as error:
                self._missing = f"{path}: {error.message}"
            else:
                if good(found):
                    return found
                self._missing = f"{path} says {str(found)[:200]}"
            await asyncio.sleep(READY_POLL_S)

    # -- keeping up ---------------------------------------------------------------------------

    async def _keep_gateway(self, child: Child, heart: Heartbeat) -> None:
        ends: deque[float] = deque(maxlen=len(GATEWAY_BACKOFF_S))
        while not self._stop.is_set():
            await child.start()
            self._save()
            silence = asyncio.create_task(self._end_silent(child, heart))
            try:
                code = await child.wait()
            finally:
                silence.cancel()
                await asyncio.gather(silence, return_exceptions=True)
            if self._stop.is_set():
                return
            if not self._ready:
                self._fail(f"the gateway ended at its start ({_ending(code, child)})", child)
                return
            now = time.monotonic()
            while ends and now - ends[0] > CRASH_WINDOW_S:
                ends.popleft()
            ends.append(now)
            wait = GATEWAY_BACKOFF_S[len(ends) - 1]
            later = f" in {wait:g} s" if wait else ""
            self._tell(
                "warning", f"{child.name} ended ({_ending(code)}): starting it again{later}", "gateway"
            )
            await asyncio.sleep(wait)

    async def _end_silent(self, child: Child, heart: Heartbeat) -> None:
        """A gateway that is stopped or hangs answers nobody and holds its jobs: only its end frees them."""
        await heart.silence()
        self._tell("warning", f"{child.name} is silent: it is stopped or hangs, and is killed", "gateway")
        child.signal(signal.SIGKILL)

    async def _keep_driver(self) -> None:
        restarts: deque[float] = deque()
        child = self._driver
        while not self._stop.is_set():
            self._driver_error = ""
            await child.start()
            self._save()
            await self._follow_driver()
            code = await child.wait()
            self._driver_ready.clear()
            if self._stop.is_set():
                return
            why = self._driver_error or _ending(code, child)
            if not self._ready:
                self._fail(f"Ray did not start: {why}", child)
                return
            now = time.monotonic()
            while restarts and now - restarts[0] > DRIVER_WINDOW_S:
                restarts.popleft()
            if len(restarts) >= DRIVER_BUDGET:
                self._fail(
                    f"Ray ended {DRIVER_BUDGET + 1} times in {DRIVER_WINDOW_S / 60:g} minutes: {why}", child
                )
                return
            restarts.append(now)
            self._tell("warning", f"Ray ended ({why}): starting it again", "ray")
            await asyncio.to_thread(self._sweep_ray)

    def _sweep_ray(self) -> None:
        # The gateways live on; only what belongs to the head that died goes, sandboxes included.
        spared = [c.identity.pid for c in self._gateways if c.identity is not None]
        if not self._settings.address:
            end_leftovers(self._settings.run, spare=spared)
            clear(ray_temp_dir(self._settings.run))

    async def _follow_driver(self) -> None:
        """Read what the driver says, until it closes its stdout."""
        lines = self._driver.lines
        while True:
            try:
                line = await lines.readline()
            except ValueError:
                continue
            if not line:
                return
            try:
                said = json.loads(line)
                event, detail = str(said["event"]), str(said.get("detail", ""))
            except (ValueError, KeyError, TypeError):
                continue
            if event == "failed":
                self._driver_error = detail
            elif event == "ready":
                self._driver_ready.set()
                if self._ready:
                    self._tell("done", "Ray is back", "ray")
            elif event != "stopped":
                self._tell("done", f"{event} ready", event)

    def _watcher_ended(self, task: asyncio.Task[None]) -> None:
        """Nobody would start its part again: end, rather than go on without."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._fatal.done():
            full = isinstance(error, OSError) and disk_is_full(error)
            self._fatal.set_exception(
                error if full else SetupError(f"{task.get_name()}: {type(error).__name__}: {error}.")
            )

    def _fail(self, message: str, child: Child) -> None:
        if not self._fatal.done():
            self._fatal.set_exception(SetupError(f"{message.rstrip('. ')}.", hint=f"The log is {child.log}."))

    def _save(self, **changes: Any) -> None:
        children = tuple(c.identity for c in (self._driver, *self._gateways) if c.identity is not None)
        self._record = msgspec.structs.replace(self._record, children=children, **changes)
        try:
            write_record(self._record)
        except OSError as error:
            if not self._ready and disk_is_full(error):
                # Nothing runs yet that is worth keeping up.
                if not self._fatal.done():
                    self._fatal.set_exception(error)
                return
            # Keeping the platform up matters more than what a later start would read there.
            self._tell(
                "warning", f"{self._settings.data / UP_FILE} cannot be written: {error.strerror}", "disk"
            )

    # -- the end ------------------------------------------------------------------------------

    async def _end(self, watchers: list[asyncio.Task[None]]) -> None:
        self._stop.set()
        for listener in self._listeners:
            listener.close()
        if not self._fatal.done():
            self._fatal.cancel()
        elif not self._fatal.cancelled():
            self._fatal.exception()
        self._save(state="stopping")
        orderly = asyncio.create_task(self._end_orderly())
        kill = asyncio.create_task(self._kill.wait())
        await asyncio.wait({orderly, kill}, return_when=asyncio.FIRST_COMPLETED)
        for task in (orderly, kill, *watchers):
            task.cancel()
        await asyncio.gather(orderly, kill, *watchers, return_exceptions=True)
        for heart in self._hearts:
            heart.close()
        for child in (*self._gateways, self._driver):
            child.signal(signal.SIGKILL)
        await asyncio.gather(*(child.kill() for child in (*self._gateways, self._driver)))
        if not self._settings.address:
            await asyncio.to_thread(end_leftovers, self._settings.run)
            await asyncio.to_thread(clear, self._settings.run)
            self._settings.control_socket.unlink(missing_ok=True)
        remove_record(self._settings.data)
        self._tell("stopped", "everything is stopped", "platform")

    async def _end_orderly(self) -> None:
        self._tell("stopping", "stopping the gateway", "gateway")
        grace = self._settings.drain_grace + GATEWAY_MARGIN_S
        await asyncio.gather(*(child.stop(grace) for child in self._gateways))
        self._tell("stopping", "stopping control, hosts and Ray", "ray")
        # Ray's own handler of SIGTERM writes a native stack into the log first.
        await self._driver.stop(DRIVER_GRACE_S, by_stdin=True)


def is_complete(found: Any, gateways: int) -> bool:
    """Whether control's status names a host and all gateways: any of them may get the next request."""
    try:
        return bool(found["hosts"]) and int(found["gateways"]) >= gateways
    except (ValueError, TypeError, KeyError):
        return False


def _ending(code: int, child: Child | None = None) -> str:
    """How a process ended; with ``child``, and unless somebody killed it, its last words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    words = child.tail() if child is not None else ""
    return f"exit code {code}: {words}" if words else f"exit code {code}"
