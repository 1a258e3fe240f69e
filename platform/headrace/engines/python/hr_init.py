"""The first process of a container: forks the one that waits for an assignment, reaps, tells how it ended.

It runs ``python container.py <door>``: a SOCK_SEQPACKET socket whose one answer carries four descriptors:
control socket, stdout, stderr (those of a zygote's fork) and the end of a pipe for the exit status.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from typing import Any, List, NoReturn, Optional, Tuple

import hr_child
import hr_loader
import hr_park
import hr_preload
import hr_serve
import hr_shim
import hr_sys
from hr_ipc import Channel, Message, close_all

_END_S = 1.0


def main(door: str) -> int:
    """Be the first process of the container; returns its exit code."""
    hr_sys.set_name("hr-init")
    try:
        fds = hr_park.knock(door)
    except OSError as error:
        sys.exit(f"headrace: nobody answers at {door}: {error}")
    ours, theirs = hr_park.line()
    server = os.fork()
    if server == 0:
        ours.close()
        os.close(fds[3])
        _wait_for_assignment(fds[:3], theirs)
    theirs.close()
    for fd in fds[:3]:
        os.close(fd)
    hr_sys.undumpable()
    return _watch(server, fds[3], ours, door)


def _watch(server: int, report: int, line: socket.socket, door: str) -> int:
    """Reap everything until the server has ended; tell how."""

    def forward(number: int, _: Any) -> None:
        with contextlib.suppress(OSError):
            os.kill(server, number)

    def park(*_: Any) -> None:
        nonlocal report
        report = hr_park.park_first(line, report, door)

    signal.signal(signal.SIGUSR1, park)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return 70
        if pid != server:
            continue
        signalled = os.WIFSIGNALED(status)
        _end_all()
        told = {
            "code": None if signalled else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if signalled else None,
        }
        with contextlib.suppress(OSError):
            os.write(report, json.dumps(told).encode())
        os.close(report)
        return 128 + os.WTERMSIG(status) if signalled else os.WEXITSTATUS(status)


def _end_all() -> None:
    """Kill what the server has left behind, within a second: who is told of its end finds nobody else.

    The kernel does so when the first process ends, but that one is done only when its namespaces are.
    """
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        try:
            os.kill(-1, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ProcessLookupError:
            return
        except ChildProcessError:
            # Whoever was put in from outside is reaped there.
            pass
        time.sleep(0.0005)


def _wait_for_assignment(fds: List[int], line: socket.socket) -> NoReturn:
    code = 70
    try:
        hr_child.confine(fds, None, None, os.getppid(), keep=[line.fileno()])
        hr_child.reseed()
        channel, loaded = _prepare(Channel(fds[0]), line)
        line.close()
        code = hr_serve.run(channel, loaded)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:
        print(hr_loader.user_traceback(error), file=sys.stderr)
    finally:
        hr_child.leave(code)


def _prepare(channel: Channel, line: socket.socket) -> Tuple[Channel, Optional[hr_loader.Loaded]]:
    """Answer what comes before the assignment, until ``wait``."""
    loaded: Optional[hr_loader.Loaded] = None
    while True:
        message, fds = channel.recv()
        close_all(fds)
        if message is None:
            raise SystemExit(0)
        op = message.get("op")
        if op == "init":
            _init(channel)
        elif op == "preload":
            _preload(channel, message)
        elif op == "load":
            loaded = _load(channel, message)
        elif op == "park":
            gc.collect()
            channel = hr_park.park(channel, line)
        elif op == "health":
            _health(channel, loaded)
        elif op == "wait":
            gc.collect()
            gc.freeze()
            channel.send({"ev": "waiting"})
            return channel, loaded
        elif op == "stop":
            raise SystemExit(0)


def _init(channel: Channel) -> None:
    missing = hr_preload.import_core()
    hr_shim.install()
    notes = [f"{name}: {why}" for name, why in missing.items() if name.split(".")[0] != "headrace"]
    channel.send({"ev": "up", "python": sys.version.split()[0], "detail": "; ".join(notes)})


def _preload(channel: Channel, message: Message) -> None:
    names = [*(message.get("modules") or ()), *(message.get("imports") or ())]
    refused = {}
    for name in names:
        problem = hr_preload.import_here(str(name))
        if problem:
            refused[str(name)] = problem
    channel.send({"ev": "preloaded", "refused": refused})


def _load(channel: Channel, message: Message) -> Optional[hr_loader.Loaded]:
    started = time.monotonic()
    os.environ.update({str(k): str(v) for k, v in (message.get("env") or {}).items()})
    try:
        loaded = hr_loader.load_in_zygote(message)
    except hr_loader.StartFailed as error:
        channel.send(
            {"ev": "load-failed", "reason": error.reason, "message": str(error), "traceback": error.traceback}
        )
        return None
    channel.send({"ev": "loaded", "seconds": time.monotonic() - started})
    return loaded


def _health(channel: Channel, loaded: Optional[hr_loader.Loaded]) -> None:
    """Whether what was loaded still is, after a checkpoint."""
    try:
        if loaded is not None:
            hr_loader.run_health(loaded, hr_loader.run_alone)
    except hr_loader.StartFailed as error:
        channel.send({"ev": "health", "ok": False, "detail": str(error)})
    else:
        channel.send({"ev": "health", "ok": True, "detail": ""})
