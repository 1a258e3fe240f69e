"""A zygote as the runtime sees it: a process that imports once and forks on demand."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import procs
from headrace_runtimes.instance.channel import Channel, ChannelError, Packet, pair
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.mask import Mask
from headrace_runtimes.instance.pipes import LinePipe
from headrace_runtimes.instance.procs import signal_group
from headrace_runtimes.process.spawn import Spawner
from headrace_runtimes.spec import LoadedEndpoint

UP_TIMEOUT_S = 60.0
PRELOAD_TIMEOUT_S = 600.0
LOAD_SLACK_S = 30.0
FORK_TIMEOUT_S = 20.0
END_TIMEOUT_S = 2.0


class ZygoteFailed(PrepareFailed):
    """The zygote did not come up, or ended."""


class LoadRefused(PrepareFailed):
    """``load`` ran, but what it left behind must not be forked."""


class LoadFailed(PrepareFailed):
    """The user's ``load`` (or import) raised in the zygote."""


@dataclass(frozen=True)
class ZygoteOptions:
    """What every zygote of a runtime is started with."""

    python: str
    engine_dir: Path
    env: Mapping[str, str]
    expose: Sequence[Path]
    hide: Sequence[Path]


class Zygote:
    """One zygote process. Not started until `start`."""

    def __init__(
        self,
        key: str,
        options: ZygoteOptions,
        *,
        uid: int | None = None,
        log: Callable[[str, list[str]], None],
        on_child: Callable[[Child, bool], None],
        secrets: Path | None = None,
    ) -> None:
        self.key = key
        self.uid = uid
        self.pid = 0
        self.shield = ""
        self.children: dict[int, Child] = {}
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done with one line of why, when the process is gone."""
        self._options = options
        self._log = log
        self._on_child = on_child
        self.secrets = secrets
        """The directory for the secrets of what it loads."""
        self._numbers = itertools.count(1)
        self._forking: dict[str, tuple[Child, asyncio.Future[None]]] = {}
        self._answer: asyncio.Future[Packet] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._watch: asyncio.Task[None] | None = None
        self._last_words = ""
        self._mask = Mask()

    @property
    def ready(self) -> bool:
        """Whether it can be asked to fork."""
        return self._channel is not None and not self._channel.closed and not self.ended.done()

    async def start(self, spawner: Spawner) -> None:
        """Start the process and shake hands. Raises `ZygoteFailed`; nothing is left then."""
        ours, theirs = pair()
        out, their_out = os.pipe2(os.O_CLOEXEC)
        err, their_err = os.pipe2(os.O_CLOEXEC)
        argv = [self._options.python, str(self._options.engine_dir / "zygote.py"), str(theirs.fileno())]
        try:
            self._process = await spawner.popen(
                argv, pass_fds=(theirs.fileno(),), env=dict(self._options.env), cwd="/",
                stdin=subprocess.DEVNULL, stdout=their_out, stderr=their_err, start_new_session=True,
            )  # fmt: skip
        except BaseException as error:
            ours.close()
            os.close(out)
            os.close(err)
            if not isinstance(error, OSError):
                raise
            raise ZygoteFailed(
                f"Cannot run {argv[0]}: {error.strerror}. Reinstall the environment."
            ) from error
        finally:
            theirs.close()
            os.close(their_out)
            os.close(their_err)
        self.pid = self._process.pid
        self._pipes = pipes = (
            LinePipe(out, lambda x: self._said("stdout", x)),
            LinePipe(err, lambda x: self._said("stderr", x)),
        )
        self._channel = Channel(ours, self._packet, self._cut_off)
        self._watch = asyncio.create_task(self._wait_for_end(self._process, pipes))
        init: Packet = {
            "op": "init", "key": self.key, "name": self.key[:12],
            "expose": [str(p) for p in self._options.expose], "hide": [str(p) for p in self._options.hide],
            "uid": self.uid, "gid": self.uid,
        }  # fmt: skip
        try:
            up = await self._ask(init, UP_TIMEOUT_S)
        except BaseException:
            await self.end()
            raise
        self.shield = "" if up.get("shield", True) else str(up.get("detail", ""))

    async def preload(self, modules: Sequence[str], imports: Sequence[str]) -> dict[str, str]:
        """Import modules; returns those that were refused, with the reason. Raises `ZygoteFailed`."""
        answer = await self._ask(
            {"op": "preload", "modules": list(modules), "imports": list(imports)}, PRELOAD_TIMEOUT_S
        )
        refused = answer.get("refused") or {}
        return {str(k): str(v) for k, v in refused.items()}

    async def load(self, loaded: LoadedEndpoint) -> None:
        """Run the endpoint's ``load`` in it. Raises `LoadRefused`, `LoadFailed`, `ZygoteFailed`."""
        mask = self._mask = Mask(loaded.secrets)
        for pipe in self._pipes:
            pipe.mask = mask
        answer = await self._ask(
            {
                "op": "load", "endpoint": loaded.endpoint, "version": loaded.version,
                "code": str(loaded.code_dir), "entry": loaded.entry, "handler": loaded.handler,
                "env": dict(loaded.env), "timeout": loaded.load_timeout_s,
                "secrets": dict(loaded.secrets), "secrets_env": list(loaded.secrets_env),
                "secrets_dir": str(self.secrets or ""),
            },
            loaded.load_timeout_s + LOAD_SLACK_S,
        )  # fmt: skip
        match answer.get("ev"):
            case "loaded":
                return
            case "load-refused":
                raise LoadRefused(str(answer.get("reason", "not fork-safe")))
            case _:
                if answer.get("traceback"):
                    self._log("stderr", mask.lines(str(answer["traceback"]).splitlines()))
                raise LoadFailed(mask.text(str(answer.get("message", "load failed"))))

    async def fork(self, uid: int | None, *, own_uid: bool) -> Child:
        """A new child, waiting for its assignment. Raises `ZygoteFailed`."""
        child = Child(f"{self.key[:12]}-{next(self._numbers)}", uid, own_uid)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forking[child.id] = (child, done)
        try:
            self._send({"op": "fork", "id": child.id, "uid": uid, "gid": uid}, child.descriptors())
            child.handed_over()
            async with asyncio.timeout(FORK_TIMEOUT_S):
                await done
        except BaseException as error:
            self._forking.pop(child.id, None)
            if child.pid:
                child.kill()
            else:
                child.died(None, None, "never forked")
            if isinstance(error, TimeoutError):
                raise ZygoteFailed(
                    f"The zygote {self.key[:12]} did not fork within {FORK_TIMEOUT_S:.0f} s."
                ) from error
            raise
        return child

    async def end(self) -> None:
        """End it, and with it all of its children. Returns when they are gone."""
        if self._process is None or self._watch is None:
            return
        for child in list(self.children.values()):
            child.kill()
        if self._channel:
            self._channel.close()
        done, _ = await asyncio.wait([self.ended], timeout=END_TIMEOUT_S)
        if not done:
            signal_group(self.pid, signal.SIGKILL)
        await asyncio.wait([self._watch], timeout=END_TIMEOUT_S)

    def _send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        if self._channel is None:
            raise ZygoteFailed("The zygote was not started.")
        try:
            self._channel.send(packet, fds)
        except ChannelError as error:
            raise ZygoteFailed(f"The zygote {self.key[:12]} cannot be asked: {error}.") from error

    async def _ask(self, packet: Packet, timeout_s: float) -> Packet:
        """Questions other than forks come one at a time."""
        answer: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._answer = answer
        try:
            self._send(packet)
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise ZygoteFailed(
                f"The zygote did not answer {packet['op']!r} within {timeout_s:.0f} s."
            ) from error
        finally:
            self._answer = None

    def _packet(self, packet: Packet) -> None:
        match packet.get("ev"):
            case "forked" | "fork-failed":
                self._fork_answered(packet)
            case "exited":
                child = self.children.pop(_whole(packet.get("pid")) or 0, None)
                if child:
                    child.died(_whole(packet.get("code")), _whole(packet.get("signal")))
                    self._on_child(child, False)
            case _:
                if self._answer and not self._answer.done():
                    self._answer.set_result(packet)

    def _fork_answered(self, packet: Packet) -> None:
        child, done = self._forking.pop(str(packet.get("id")), (None, None))
        pid = self._own_child(packet.get("pid")) if packet.get("ev") == "forked" else None
        if child is None or done is None:
            if pid:  # too late: nobody waits for it any more
                signal_group(pid, signal.SIGKILL)
            return
        if pid:
            child.forked(pid)
            self.children[pid] = child
            self._on_child(child, True)
            if not done.done():
                done.set_result(None)
        elif not done.done():
            why = packet.get("message", "no reason given" if packet.get("ev") != "forked" else "it has ended")
            done.set_exception(ZygoteFailed(f"The fork failed: {why}."))

    def _own_child(self, pid: object) -> int | None:
        """``pid`` when it is a child of this zygote, else None.

        A zygote that has run user code may name any process, and what it names we kill as root.
        """
        number = _whole(pid)
        seen = procs.stat(number) if number else None
        return number if seen is not None and seen.ppid == self.pid else None

    def _said(self, stream: str, lines: list[str]) -> None:
        lines = self._mask.lines(lines)
        self._last_words = lines[-1] or self._last_words
        self._log(stream, lines)

    def _cut_off(self) -> None:
        """It closed its end (or we ours): it is about to end, or gets killed."""
        if not self.ended.done():
            asyncio.get_running_loop().call_later(END_TIMEOUT_S, self._kill_if_alive)

    def _kill_if_alive(self) -> None:
        if self._process and not self.ended.done():
            signal_group(self.pid, signal.SIGKILL)

    async def _wait_for_end(self, process: subprocess.Popen[bytes], pipes: Sequence[LinePipe]) -> None:
        await _process_end(process)
        if self._channel:
            self._channel.close()
        for pipe in pipes:
            pipe.close()
        code = process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        why = f"The zygote ended ({how})" + (f": {self._last_words}" if self._last_words else ".")
        if not self.ended.done():
            self.ended.set_result(why)
        failure = ZygoteFailed(why)
        if self._answer and not self._answer.done():
            self._answer.set_exception(failure)
        for _, done in list(self._forking.values()):
            if not done.done():
                done.set_exception(failure)
        while self.children:
            _, child = self.children.popitem()
            child.kill()
            child.died(None, int(signal.SIGKILL), "its zygote ended")
            self._on_child(child, False)


def _whole(value: object) -> int | None:
    """A number as a zygote tells it; None for anything else."""
    return value if isinstance(value, int) and 0 <= value < 1 << 31 else None


async def _process_end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process without blocking and reap it."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:  # an old or emulated kernel
        while process.poll() is None:  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.05)
        return
    gone = asyncio.Event()
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
