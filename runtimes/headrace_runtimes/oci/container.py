"""`OciContainer`: one container, from its first process to the last of its traces."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from headrace_runtimes.containers.driver import HOME, ContainerSpec
from headrace_runtimes.containers.ending import ENDED_EARLY, in_words, last_lines
from headrace_runtimes.errors import PrepareFailed, WrongState
from headrace_runtimes.oci.binary import WORDS, Binary
from headrace_runtimes.oci.bundle import process_of
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.oci.kernel import KernelContainer
from headrace_runtimes.oci.layout import Own
from headrace_runtimes.spec import Ran

Remove = Callable[["OciContainer"], Awaitable[None]]
WORDS_BYTES = 8192
"""So much of what was said is looked at, from its end."""


class OciContainer(KernelContainer):
    """See `containers.driver.Container`."""

    def __init__(self, spec: ContainerSpec, place: Own, binary: Binary, remove: Remove) -> None:
        super().__init__(spec.id, place.directory, place.disk, Cgroup(place.cgroup), dict(spec.env))
        self.place = place
        self._binary, self._remove_with = binary, remove
        self._execs = 0

    def started(self) -> None:
        """Its first process runs. Raises `PrepareFailed`."""
        try:
            self.entered(int((self.directory / "pid").read_text()))
        except ProcessLookupError as error:
            said = _said(self.directory / WORDS)
            raise PrepareFailed(f"The engine {ENDED_EARLY} ({in_words(None, None, said)}).") from error
        except (OSError, ValueError) as error:
            raise PrepareFailed(f"The container {self.id} ended at once: {error}.") from error

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """See `Container.exec`: with the rights, the environment and the directory of the instance."""
        if self.cgroup.frozen():
            raise WrongState(f"The sandbox {self.id} is paused: resume it first.")
        self._execs += 1
        told, pid_file = (self.directory / f"exec{self._execs}.{kind}" for kind in ("json", "pid"))
        process = process_of(argv, self._env | {"HOME": f"{HOME}/home"} | dict(env), HOME)
        await asyncio.to_thread(_write_private, told, json.dumps(process))
        try:
            return await self._binary.exec(self.id, told, pid_file, timeout_s)
        finally:
            for path in (told, pid_file):
                path.unlink(missing_ok=True)

    async def said(self) -> str:
        """See `Container.said`."""
        return await asyncio.to_thread(_said, self.directory / WORDS)

    async def _clean_up(self) -> None:
        await self._remove_with(self)


def _said(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - WORDS_BYTES))
            return last_lines(file.read(WORDS_BYTES).decode("utf-8", "replace"))
    except OSError:
        return ""


def _write_private(path: Path, text: str) -> None:
    """A file, not arguments: whoever may look at processes on the host would read the variables."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
