"""The zygote: imports once, forks instances, reaps them, and ends with its runtime."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from typing import Any, List, Optional, Set

import hr_child
import hr_forksafe
import hr_loader
import hr_preload
import hr_secrets
import hr_shield
import hr_shim
import hr_sys
from hr_ipc import Channel, Message, close_all


class Zygote:
    """One single-threaded process that answers the runtime's packets in order."""

    def __init__(self, fd: int) -> None:
        self._channel = Channel(fd)
        self._children: Set[int] = set()
        self._loaded: Optional[hr_loader.Loaded] = None
        self._clean: Optional[hr_forksafe.Picture] = None
        self._drop_trials = False
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)

    def run(self) -> int:
        """Answer until the runtime closes the socket; returns the exit code."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            try:
                if self._wake_in in ready:
                    self._drain_wakeups()
                    self._reap()
                if self._channel.fileno() in ready:
                    message, fds = self._channel.recv()
                    if message is None:
                        return 0
                    self._handle(message, fds)
            except (BrokenPipeError, ConnectionResetError):
                return 0

    def _handle(self, message: Message, fds: List[int]) -> None:
        op = message.get("op")
        if op == "init":
            self._init(message)
        elif op == "preload":
            self._preload(message)
        elif op == "load":
            self._load(message)
        elif op == "fork":
            self._fork(message, fds)
        else:
            print(f"headrace zygote: unknown operation {op!r}", file=sys.stderr, flush=True)
        close_all(fds)

    def _init(self, message: Message) -> None:
        hr_sys.set_name("hr-zygote")
        expose, hide = list(message.get("expose") or ()), list(message.get("hide") or ())
        shield, detail = hr_shield.raise_shield(expose, hide)
        self._drop_trials = os.geteuid() == 0 and (shield or hr_shield.reachable(expose))
        try:
            self._drop(message.get("uid"), message.get("gid"))
        except OSError as error:
            detail = f"{detail}; {error}".strip("; ")
        before = hr_forksafe.look()
        missing = hr_preload.import_core()
        # Once here, instead of a search for it in every instance.
        hr_shim.install()
        notes = [
            detail,
            *(
                f"{name} is not used: {why}"
                for name, why in missing.items()
                if name.split(".")[0] != "headrace"
            ),
        ]
        unsafe = hr_forksafe.unsafe_since(before)
        if unsafe:
            notes.append(f"the base environment is not fork-safe: {unsafe}")
        self._settle()
        self._send(ev="up", pid=os.getpid(), shield=shield, detail="; ".join(n for n in notes if n))

    def _drop(self, uid: Optional[int], gid: Optional[int]) -> None:
        if uid is None:
            return
        # It is going to run user code: nothing that holds for an instance may be missing here.
        hr_sys.become(uid, gid, os.getppid())
        self._drop_trials = False

    def _preload(self, message: Message) -> None:
        modules = list(message.get("modules") or ())
        names = modules + list(message.get("imports") or ())
        imported, refused = hr_preload.preload(names, self._drop_trials)
        self._settle()
        self._send(ev="preloaded", imported=imported, refused=refused)

    def _load(self, message: Message) -> None:
        # Once more for a runtime that is not root, whose zygotes keep their uid.
        hr_sys.become(None, None, os.getppid())
        before = hr_forksafe.look()
        started = time.monotonic()
        os.environ.update({str(k): str(v) for k, v in (message.get("env") or {}).items()})
        try:
            os.environ.update(hr_secrets.keep(message, ""))
        except OSError as error:
            self._send(ev="load-failed", reason="load-failed", message=f"its secrets: {error}", traceback="")
            return
        try:
            self._loaded = hr_loader.load_in_zygote(message)
        except hr_loader.StartFailed as error:
            self._send(ev="load-failed", reason=error.reason, message=str(error), traceback=error.traceback)
            return
        unsafe = hr_forksafe.unsafe_since(before)
        if unsafe:
            self._loaded = None
            self._send(ev="load-refused", reason=f"load() is not fork-safe: {unsafe}")
            return
        self._settle()
        self._send(ev="loaded", seconds=time.monotonic() - started)

    def _fork(self, message: Message, fds: List[int]) -> None:
        ident = str(message.get("id", ""))
        uid, gid = message.get("uid"), message.get("gid")
        problem = ""
        if len(fds) != 3:
            problem = f"fork takes 3 descriptors, not {len(fds)}"
        elif uid is not None and os.geteuid() not in (0, uid):
            problem = f"cannot become uid {uid}: the zygote is uid {os.geteuid()}, not root"
        pid = -1
        if not problem:
            sys.stdout.flush()
            sys.stderr.flush()
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:
                problem = f"fork: {error.strerror}"
        if problem:
            self._send(ev="fork-failed", id=ident, message=problem)
            return
        if pid == 0:
            # Never returns; the zygote's own descriptors are blanked there.
            hr_child.enter(fds, uid, gid, parent, self._loaded)
        self._children.add(pid)
        self._send(ev="forked", id=ident, pid=pid)

    def _drain_wakeups(self) -> None:
        try:
            while os.read(self._wake_in, 4096):
                pass
        except BlockingIOError:
            return

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if pid in self._children:
                # Before it is reaped its number can't be anybody else's: end what it left in its group.
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if pid in self._children:
                self._children.discard(pid)
                signalled = os.WIFSIGNALED(status)
                code = None if signalled else os.WEXITSTATUS(status)
                self._send(ev="exited", pid=pid, code=code, signal=os.WTERMSIG(status) if signalled else None)

    def _settle(self) -> None:
        # Objects made so far stay out of the collector, so that it does not touch (and copy) their pages.
        gc.collect()
        gc.freeze()

    def _send(self, **message: Any) -> None:
        self._channel.send(message)


def main(fd: int) -> int:
    """Be the zygote on this descriptor; returns the exit code."""
    parent = os.getppid()
    hr_sys.die_with_parent(parent)
    # The runtime decides when this ends, not a Ctrl-C in the terminal that it shares.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.chdir("/")
    for name, value in hr_preload.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    hr_child.line_buffered()
    return Zygote(fd).run()
