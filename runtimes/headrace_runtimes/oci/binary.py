"""The low-level runtime: which program it is, and how it is called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.spec import Ran

BINARIES = ("runc", "crun", "youki")
"""What is looked for, in this order, when nobody chooses."""
NOT_POSSIBLE = {
    "runsc": "its containers have a kernel of their own, which takes neither sockets nor directories of the "
    "host while they run",
}
WORDS, WORDS_BYTES = "disk/words", 64 << 10
"""In a container's directory, on its own disk: its first process, which may be any program of an image, keeps
the file open and writes as much as it likes. So much of its end is read."""
RUN_TIMEOUT_S = 30.0
VERSION_TIMEOUT_S = 10.0
OUTPUT_BYTES = 1 << 20
DRAIN_S = 0.5
_CHUNK = 65_536


def find(chosen: str | None) -> tuple[str, str]:
    """The program's path, and one line of why there is none: one is empty. ``chosen``: a name or path."""
    if chosen is not None and os.path.basename(chosen) in NOT_POSSIBLE:
        name = os.path.basename(chosen)
        return "", f"{name} cannot be used: {NOT_POSSIBLE[name]}; choose one of {', '.join(BINARIES)}"
    for name in (chosen,) if chosen else BINARIES:
        found = shutil.which(name)
        if found:
            return found, ""
    if chosen and chosen not in BINARIES:
        return "", f"{chosen} is no program here: name one of {', '.join(BINARIES)}, or its path"
    wanted = f"{chosen} is not" if chosen else f"none of {', '.join(BINARIES)} is"
    return "", f"{wanted} installed: apt-get install {chosen or BINARIES[0]}"


@dataclass(frozen=True)
class Binary:
    """``path`` with its state in the directory ``state``."""

    path: str
    state: Path
    criu: str = "criu"
    """What it makes checkpoints with: a name, or the path of a program of that name."""

    @property
    def name(self) -> str:
        """As people say it."""
        return os.path.basename(self.path)

    @property
    def start(self) -> tuple[str, ...]:
        """How each of its calls begins."""
        return (self.path, "--root", str(self.state))

    def version(self) -> str:
        """The first line that it says of itself. Blocks. Raises `PrepareFailed` when it does not run."""
        try:
            done = subprocess.run(
                [self.path, "--version"],
                capture_output=True,
                text=True,
                timeout=VERSION_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise PrepareFailed(
                f"{self.path} does not run ({error}): reinstall it or choose another."
            ) from error
        return (done.stdout.splitlines() or [""])[0]

    async def run(self, id: str, bundle: Path) -> None:
        """Start a container; its pid is in ``bundle/pid`` then. Raises `PrepareFailed`."""
        words = bundle / WORDS
        # Its output is a file: the container's first process keeps what the binary was given.
        with open(words, "wb") as file, empty() as nothing:  # noqa: ASYNC230 - a small file
            process = await asyncio.create_subprocess_exec(
                *self.start, "run", "--detach", "--pid-file", str(bundle / "pid"),
                "--bundle", str(bundle), id,
                stdin=nothing, stdout=file, stderr=file,
            )  # fmt: skip
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError as error:
            raise PrepareFailed(
                f"{self.name} has not started a container within {RUN_TIMEOUT_S:.0f} s: {last_words(words)}."
            ) from error
        finally:
            await _end(process)
        if code != 0:
            raise PrepareFailed(
                f"{self.name} refuses the container: {last_words(words)}. "
                f"Mend that or choose another of {', '.join(BINARIES)}."
            )

    async def exec(self, id: str, process_file: Path, pid_file: Path, timeout_s: float) -> Ran:
        """Run what ``process_file`` says in a container. Raises ``TimeoutError``: it was killed then.

        What it leaves running ends with the container; its output is not waited for.
        """
        with empty() as nothing:
            process = await asyncio.create_subprocess_exec(
                *self.start, "exec", "--process", str(process_file), "--pid-file", str(pid_file), id,
                stdin=nothing, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        kept = bytearray(), bytearray()
        pumps = [
            asyncio.create_task(_pump(stream, into))
            for stream, into in zip((process.stdout, process.stderr), kept, strict=True)
        ]
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
            await asyncio.wait(pumps, timeout=DRAIN_S)
        except BaseException:
            # The command has no parent to take it along: the binary cannot pass SIGKILL on.
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)  # noqa: ASYNC240 - a few digits
            raise
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            await _end(process)
        return Ran(code, bytes(kept[0]), bytes(kept[1]))


@contextlib.contextmanager
def empty() -> Iterator[int]:
    """A descriptor to read from that holds nothing, for the standard input of a binary.

    Never the machine's ``/dev/null``: crun, and runc 1.1.2 to 1.1.4, give what they are handed to the
    container's user, and ``/dev/null`` belonged to a container then.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


async def _pump(stream: asyncio.StreamReader, into: bytearray) -> None:
    """Keep the first `OUTPUT_BYTES`, let go of the rest."""
    while chunk := await stream.read(_CHUNK):
        into += chunk[: OUTPUT_BYTES - len(into)]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def last_words(path: Path) -> str:
    """The last line that the binary, or the engine before anybody listened, has printed."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - WORDS_BYTES))
            lines = file.read(WORDS_BYTES).decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:500].rstrip(".") if lines else "no reason given"
    return "no reason given"
