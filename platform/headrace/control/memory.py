"""What the autoscaler has learnt of endpoints, kept over control's restarts in ``history/learnt.jsonl``.

Only what took long to learn is taken back: how demand goes through the day, how long requests take and
instances idle. The newest few minutes may be missing; what cannot be read is learnt anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from headrace_autoscaler.spec import EndpointState
from headrace_autoscaler.states import ForecastState, KeepState, LatenessState, SeasonState, WindowState

from headrace.control.model import UNUSED, World

log = logging.getLogger("headrace.control")
FILE = "learnt.jsonl"
SAVE_EVERY_S = 300.0


class Learnt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: the memory of one endpoint, as of ``at`` (`World.now`)."""

    endpoint: str
    at: float
    memory: EndpointState


class Memory:
    """The file of one data directory."""

    def __init__(self, directory: Path, world: World) -> None:
        self._path = directory / FILE
        self._world = world
        self._save_at = world.now() + SAVE_EVERY_S
        self._saving: asyncio.Task[None] | None = None
        self._loaded = False

    async def load(self) -> None:
        """Give endpoints back what was learnt of them."""
        for line in await asyncio.to_thread(self._read):
            endpoint = self._world.endpoints.get(line.endpoint)
            # A clock that was set back: times to come are no memories.
            if endpoint is not None and endpoint.memory is UNUSED and line.at <= self._world.now():
                endpoint.memory = lasting(line.memory)
        self._loaded = True

    def tick(self) -> None:
        """Write it, when it is time, beside all else."""
        if self._world.now() >= self._save_at and self._saving is None:
            self._save_at = self._world.now() + SAVE_EVERY_S
            self._saving = asyncio.get_running_loop().create_task(self.save())
            self._saving.add_done_callback(self._saved)

    async def save(self) -> None:
        """Write all that is known now."""
        now = self._world.now()
        known = [
            Learnt(endpoint.key, now, endpoint.memory)
            for endpoint in self._world.endpoints.values()
            if not endpoint.deleting and lasting(endpoint.memory) != UNUSED
        ]
        try:
            await asyncio.to_thread(self._write, known)
        except OSError as error:
            log.warning("what was learnt cannot be written: %s", error)

    async def stop(self) -> None:
        """Write it a last time; not what was never taken back."""
        if not self._loaded:
            return
        if self._saving is not None:
            await asyncio.wait([self._saving])
        await self.save()

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving = None

    def _read(self) -> list[Learnt]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            log.warning("what was learnt cannot be read: %s", error)
            return []
        found, decoder = [], msgspec.json.Decoder(Learnt)
        for line in lines:
            try:
                found.append(decoder.decode(line))
            except msgspec.MsgspecError as error:
                log.info("what was learnt of an endpoint is of another version: %s", error)
        return found

    def _write(self, known: Iterable[Learnt]) -> None:
        encoder = msgspec.json.Encoder()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{FILE}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                # Line by line: the loop has its turns between them.
                file.writelines(encoder.encode(line) + b"\n" for line in known)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)


def lasting(memory: EndpointState) -> EndpointState:
    """What of a memory is true after a restart: counters begin anew, what was wanted is asked again, and
    instances are idle from when they are seen."""
    demand, known = memory.demand, memory.keep
    if demand is not None:
        demand = msgspec.structs.replace(demand, window=WindowState(), panic=None)
    if known is not None:
        # Else each one's idle time would count as ended by a request.
        known = KeepState(levels=known.levels)
    late = memory.lateness
    if late is not None:
        late = LatenessState(seen=late.seen, power=late.power)
    return EndpointState(demand=demand, forecast=memory.forecast, keep=known, lateness=late)


def unasked(memory: EndpointState) -> EndpointState:
    """A memory in which nobody has come of late: who scales down by hand expects no more than usual."""
    season = memory.forecast.season if memory.forecast is not None else SeasonState()
    return msgspec.structs.replace(lasting(memory), forecast=ForecastState(season=season))
