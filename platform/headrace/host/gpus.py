"""What accelerators are used, read from the tool that their driver brings along: no library is needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger("headrace.host")

READ_TIMEOUT_S = 5.0
READ_PERIOD_S = 10.0
"""The tool takes a tenth of a second of a core: a newer reading is not worth that."""
_QUERY = ("--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class GpuUse:
    """One accelerator: its busy part, 0 to 1, and the bytes in use on it, whoever uses them."""

    busy: float
    memory: int


class GpuReader(Protocol):
    """Reads all accelerators of this machine."""

    async def read(self) -> dict[int, GpuUse]:
        """By the driver's number; empty when nobody can tell. Never raises."""
        ...


def parse_smi(text: str) -> dict[int, GpuUse]:
    """The lines of ``nvidia-smi``: number, per cent, MiB. What it cannot tell (``[N/A]``) is left out."""
    found: dict[int, GpuUse] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or not fields[0].isdigit():
            continue
        try:
            busy, mib = float(fields[1]), float(fields[2])
        except ValueError:
            continue
        if 0 <= busy <= 100 and 0 <= mib < 1 << 30:
            found[int(fields[0])] = GpuUse(busy / 100, int(mib) << 20)
    return found


class NvidiaSmi:
    """Runs ``nvidia-smi``, seldom; what it said last holds in between."""

    def __init__(self, program: str, now: Callable[[], float]) -> None:
        self._program, self._now = program, now
        self._next = 0.0
        self._last: dict[int, GpuUse] = {}

    async def read(self) -> dict[int, GpuUse]:
        """See `GpuReader.read`."""
        if self._now() >= self._next:
            self._next = self._now() + READ_PERIOD_S
            self._last = await self._ask()
        return self._last

    async def _ask(self) -> dict[int, GpuUse]:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program, *_QUERY,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            log.info("%s cannot be run: %s", self._program, error)
            return {}
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                text, _ = await process.communicate()
        except TimeoutError:
            log.warning("%s does not answer", self._program)
            return {}
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return parse_smi(text.decode("utf-8", "replace")) if process.returncode == 0 else {}


def find_reader(now: Callable[[], float]) -> GpuReader | None:
    """The reader for this machine; None when there is none."""
    program = shutil.which("nvidia-smi")
    return NvidiaSmi(program, now) if program else None
