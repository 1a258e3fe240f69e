"""``headrace up`` and ``down``: start the platform's processes, keep them up, leave nothing. No Ray here.

Order: checks that need nothing started; the data directory's lock; the sweep of what a killed predecessor
left; then the Ray driver and the gateways side by side. The end goes backwards: gateways finish what they
have, then the driver, then whatever still lives or lies in the run directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
import psutil

from headrace import __version__
from headrace.cluster.identity import UpRecord, new_record, read_record, remove_record
from headrace.cluster.listeners import check_ports, listeners, with_ports
from headrace.cluster.parts import Platform
from headrace.cluster.processes import allow_many_files
from headrace.cluster.sweep import check_run_dir, clear, end_leftovers, leftovers
from headrace.config import Settings, load_settings
from headrace.datadir import open_data_dir
from headrace.errors import DataDirError, NotRunning, SetupError

MIN_PYTHON = (3, 11)
DOWN_DEADLINE_S = 30.0
"""Beside what requests get to end in: `Settings.drain_grace`."""
PORT_WAIT_S = 3.0
"""After a sweep the kernel may take a moment to free the ports of what was killed."""


class UpEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` and `down` tell while they work. ``seconds`` since their start; ``text`` is one line."""

    kind: Literal["waiting", "done", "key", "ready", "warning", "stopping", "stopped"]
    text: str
    """With ``key``, told once in the life of a data directory: the new admin key, which belongs in no log."""
    what: str = ""
    """The part it is about: ``ray``, ``control``, ``host``, ``gateway`` ..."""
    seconds: float = 0.0
    record: UpRecord | None = None
    """With ``ready``: pid, url, ports."""


OnEvent = Callable[[UpEvent], None]
Once = Callable[[UpRecord], Awaitable[int]]


async def up(settings: Settings, on_event: OnEvent, once: Once | None = None) -> int:
    """Run the platform until SIGINT or SIGTERM; with ``once``, until that is done. The exit code.

    A second signal ends everything at once. Raises `SetupError` (its subclasses say more) when something
    is in the way or a part does not start: then nothing is left running.
    """
    if sys.version_info < MIN_PYTHON:
        raise SetupError(f"Python {sys.version.split()[0]} is too old.", hint="Use Python 3.11 or newer.")
    started = time.monotonic()

    def tell(kind: Any, text: str, what: str = "", record: UpRecord | None = None) -> None:
        seconds = time.monotonic() - started
        on_event(UpEvent(kind=kind, text=text, what=what, seconds=seconds, record=record))

    allow_many_files()
    if not settings.address:
        check_run_dir(settings.run)
    try:
        return await _up(settings, tell, once)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DataDirError(
            f"no space is left for the data directory {settings.data} or the run directory {settings.run}.",
            hint="Free some, or name another one with --data-dir.",
        ) from error


async def _up(settings: Settings, tell: Callable[..., None], once: Once | None) -> int:
    data = open_data_dir(settings)
    try:
        # Before anything can fail: the next start would not know that nobody has seen it.
        if data.fresh_key:
            tell("key", data.admin_key, "key")
        await _sweep_predecessor(settings, tell)
        settings = with_ports(settings)
        await _wait_for_ports(settings)
        platform = Platform(settings, new_record(settings, __version__), data.admin_key, tell)
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # Not the loop's handlers: to remove one of them puts Python's own back, and a Ctrl-C that another
        # thread takes in that moment would make an interrupted command of one that has ended in order.
        before = {
            number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(platform.ask_to_stop))
            for number in signals
        }
        try:
            return await platform.run(once)
        finally:
            # A second Ctrl-C that comes now changes nothing: all has ended, and so does this process.
            for number in signals:
                signal.signal(number, _nothing if platform.asked else before[number])
            for number in signals if platform.asked else ():
                signal.signal(number, signal.SIG_IGN)
    finally:
        data.close()


def _nothing(number: int, frame: object) -> None:
    """What was sent before it was ignored is taken by a handler, and forgotten."""


async def _sweep_predecessor(settings: Settings, tell: Callable[..., None]) -> None:
    """We hold the lock, so whatever else still runs from this data directory has lost its supervisor."""
    record = read_record(settings.data)
    known = record.children if record is not None else ()
    # In a cluster that is not ours, control and hosts outlive a killed `headrace up`, and are attached to.
    theirs = bool(settings.address)
    ended = await asyncio.to_thread(end_leftovers, settings.run, known, only_known=theirs)
    if ended:
        tell("warning", f"ended {ended} processes that a killed platform had left", "sweep")
    if not theirs:
        await asyncio.to_thread(clear, settings.run)
        settings.control_socket.unlink(missing_ok=True)
    remove_record(settings.data)


async def _wait_for_ports(settings: Settings) -> None:
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            return check_ports(settings)
        except SetupError:
            # A port that others hold is no matter of waiting, unless they are just ending.
            if time.monotonic() > deadline or not leftovers(settings.run):
                raise
        await asyncio.sleep(0.1)


async def down(settings: Settings, on_event: OnEvent | None = None) -> UpRecord:
    """Stop the platform of this data directory and wait for its end; the record of what ran.

    Raises `NotRunning`; `SetupError` when it belongs to another user or does not end in time.
    """
    started = time.monotonic()

    def tell(kind: Any, text: str) -> None:
        if on_event is not None:
            on_event(UpEvent(kind=kind, text=text, what="platform", seconds=time.monotonic() - started))

    record = read_record(settings.data)
    process = record.supervisor.process() if record is not None else None
    if record is None or process is None:
        if record is not None:
            await _sweep_after_death(settings)
        raise NotRunning(
            f"nothing runs with the data directory {settings.data}.", hint="`headrace up` starts it."
        )
    tell("stopping", f"stopping the platform (pid {record.pid})")
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.AccessDenied as error:
        raise SetupError(
            f"the platform (pid {record.pid}) belongs to another user.", hint="Run this as that user."
        ) from error
    except psutil.NoSuchProcess:
        pass
    patience = settings.drain_grace + DOWN_DEADLINE_S
    deadline = started + patience
    while record.supervisor.process() is not None:
        if time.monotonic() > deadline:
            raise SetupError(
                f"the platform (pid {record.pid}) did not end in {patience:g} s.",
                hint=f"`kill -9 {record.pid}` ends it; the next `headrace up` cleans up.",
            )
        await asyncio.sleep(0.05)
    tell("stopped", f"stopped the platform (pid {record.pid})")
    return record


async def _sweep_after_death(settings: Settings) -> None:
    """The platform was killed: end what it left, unless another one is just starting."""
    with contextlib.suppress(DataDirError):
        data = open_data_dir(settings)
        try:
            await _sweep_predecessor(settings, lambda *_: None)
        finally:
            data.close()


def status(settings: Settings) -> UpRecord | None:
    """The record of the platform that runs with this data directory, or None."""
    record = read_record(settings.data)
    return record if record is not None and record.supervisor.process() is not None else None


def doctor_ports(settings: Settings | None = None) -> list[str]:
    """Listeners of the running platform that other machines can reach, but for the gateway's own."""
    settings = load_settings() if settings is None else settings
    record = status(settings)
    if record is None:
        return []
    processes = {p.pid: p for p in leftovers(settings.run, record.children) if p.pid != os.getpid()}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(record.pid).children(recursive=True):
            processes[process.pid] = process
    return [
        str(found) for found in listeners(processes.values()) if found.exposed and found.port != record.port
    ]
