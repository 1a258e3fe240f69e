"""Child processes of the supervisor: tied to its life, with a bounded log, ended in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from headrace.cluster.identity import Identity, identify
from headrace.config import Settings

LOG_BYTES = 8 << 20
"""A log above this is put aside at the next start; one old one is kept."""
TAIL_LINES, TAIL_COLUMNS = 3, 300
KILL_WAIT_S = 5.0
MAX_FILES = 1 << 17


def allow_many_files() -> None:
    """Take as many descriptors as we may, here and in children: the usual 1024 are few clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def child_environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of the platform's processes: the settings as ``HEADRACE_*``, no keys of the user.

    Without ``PYTHONDONTWRITEBYTECODE``, which costs 3 s at each start of a Ray worker.
    """
    dropped = ("HEADRACE_", "RAY_", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP")
    # An existing cluster's token is the user's to give.
    kept = ("RAY_AUTH_",) if settings.address else ()
    environment = {
        k: v for k, v in base.items() if not k.startswith(dropped) or (kept and k.startswith(kept))
    }
    if base.get("PYTHONPATH"):
        entries = [str(Path(entry).absolute()) for entry in base["PYTHONPATH"].split(os.pathsep) if entry]
        environment["PYTHONPATH"] = os.pathsep.join(entries)
    for name, value in msgspec.structs.asdict(settings).items():
        if value is None:  # no text says so: it is what it is without a word
            continue
        environment[f"HEADRACE_{name.upper()}"] = (
            str(value).lower() if isinstance(value, bool) else str(value)
        )
    return environment


class Child:
    """One process running a module of ours. stderr goes to ``log``; stdout too, unless ``talks``."""

    def __init__(
        self,
        name: str,
        module: str,
        log: Path,
        environment: Mapping[str, str],
        *,
        talks: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.log = log
        self._module = module
        self._environment = dict(environment)
        self._talks = talks
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self.identity: Identity | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def lines(self) -> asyncio.StreamReader:
        """Its stdout (``talks`` only)."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    async def start(self) -> None:
        """Start it. Must be called from the main thread, whose end it notices. Raises ``OSError``."""
        _rotate(self.log)
        try:
            fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            # A full disk: better without a log than not at all.
            fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._log_start = os.fstat(fd).st_size
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "headrace.cluster.child", str(os.getpid()), self._module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if self._talks else fd,
                stderr=fd,
                env=self._environment,
                pass_fds=self._pass_fds,
                cwd="/",  # a file in the user's directory must not shadow a module
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends the others in order
            )  # fmt: skip
        finally:
            os.close(fd)
        self.identity = identify(self.name, self._process.pid)

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self, grace_s: float, *, by_stdin: bool = False) -> bool:
        """SIGTERM (or the end of its stdin), and SIGKILL after ``grace_s``. Whether it ended by itself."""
        if not self.running:
            return True
        if by_stdin and self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        else:
            self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            await self.kill()
            return False
        return True

    async def kill(self) -> None:
        """SIGKILL, and wait for the end (at most `KILL_WAIT_S`)."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_WAIT_S):
                    await self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has ended."""
        if self._process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def tail(self) -> str:
        """The last lines that this process wrote to its log, as one line."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(line[:TAIL_COLUMNS] for line in lines[-TAIL_LINES:])


def _rotate(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
