"""`ProcessRuntime`: the contract of `headrace_runtimes.base`, kept by forks of zygotes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from headrace_runtimes.base import Progress, Sandbox
from headrace_runtimes.budget import Budget
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.instance.census import Census
from headrace_runtimes.instance.cgroups import open_cgroups
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.inmemory import make_secrets
from headrace_runtimes.instance.leftovers import RunDir, Undertaker
from headrace_runtimes.instance.logs import LogStore, Stream
from headrace_runtimes.instance.memory import MemoryGuard
from headrace_runtimes.instance.roster import Roster
from headrace_runtimes.instance.uids import Uids
from headrace_runtimes.process.environments import ImageOptions
from headrace_runtimes.process.frame import ProcessFrame
from headrace_runtimes.process.pool import PLAIN, QUIET_S, Claimed, Pool
from headrace_runtimes.process.spawn import Spawner, python_paths, zygote_environment
from headrace_runtimes.process.zygote import Zygote, ZygoteOptions
from headrace_runtimes.spec import (
    CAPABILITIES,
    Assignment,
    Base,
    BaseStatus,
    Capability,
    LogLine,
    Owned,
    RuntimeSettings,
    SandboxSpec,
)
from headrace_runtimes.trees import remove_tree

ZYGOTE_LOG = "headrace/zygotes"
"""The endpoint under which `logs` has what zygotes print (those that load an endpoint: that endpoint)."""


class ProcessRuntime:
    """Sandboxes are processes forked from preloaded zygotes: one trust domain, started in milliseconds.

    The processes die with the one that opened the runtime, also by SIGKILL: each zygote gets its
    death signal from the spawner's thread, and each child from its zygote.
    """

    name: ClassVar[str] = "process"

    def __init__(self, memory: Literal["auto", "poll"] = "auto") -> None:
        self._memory_mode = memory
        self._roster = Roster()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = True
        self._numbers = itertools.count(1)

    async def open(self, settings: RuntimeSettings, on_base: Callable[[BaseStatus], None]) -> None:
        """See `base.Runtime.open`. Raises `PrepareFailed`."""
        self._settings = settings
        self._dir = RunDir(settings.run_dir)
        self._uids = Uids(settings.uid_lock_dir, settings.first_uid, settings.uid_count)
        self._undertaker = Undertaker()
        self._spawner = Spawner()
        env = zygote_environment(os.environ)
        try:
            await asyncio.to_thread(self._dir.open)
            await asyncio.to_thread(self._uids.open)
            paths = await python_paths(settings.python, env)
        except BaseException:
            self._spawner.close()
            self._uids.close()
            self._dir.unlock()
            raise
        self._options = ZygoteOptions(
            settings.python,
            settings.engine_dir,
            env,
            (*paths, settings.engine_dir, settings.run_dir),
            settings.hide,
        )
        self._images = ImageOptions(settings, self._options)
        name = hashlib.sha256(str(settings.run_dir).encode()).hexdigest()[:10]
        cgroups = None if self._memory_mode == "poll" else open_cgroups(settings.cgroup_parent, name)
        if cgroups:
            self._dir.note_cgroup(cgroups.root)
        self._memory = MemoryGuard(cgroups)
        self._census = Census()
        self._logs = settings.logs or LogStore(settings.log_dir, settings.log_bytes)
        self._roster.open()
        self._closed = False
        self._pool = Pool(settings.budget or Budget(settings.zygote_bytes), self, on_base)
        self._pool.open()

    async def close(self) -> None:
        """See `base.Runtime.close`. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        await self._roster.end_claims()
        await self._roster.stop_all()
        await self._pool.close()
        while self._ending:  # the end of a zygote has its own aftermath
            await asyncio.wait(self._ending)
        await self._memory.close()
        await self._images.close()
        if self._settings.logs is None:
            self._logs.close()
        self._spawner.close()
        await asyncio.to_thread(self._dir.remove)
        self._uids.close()

    def capabilities(self) -> Mapping[Capability, str]:
        """See `base.Runtime.capabilities`."""
        no = 'the process runtime is one trust domain of plain processes: use runtime="oci" or "docker"'
        able = {"fork": "", "images": "", "devices": ""}
        return {name: able.get(name, no) for name in CAPABILITIES}

    async def prepare(self, image: Image, progress: Progress | None = None) -> str:
        """See `base.Runtime.prepare`."""
        self._check_open()
        await self._images.prepare(image, progress)
        return image.digest

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """See `base.Runtime.create`."""
        self._check_open()

        async def boot() -> ProcessFrame:
            return self._frame(
                await (
                    self._fresh(spec.base)
                    if spec.fresh or not self._pool.holds(spec.base.image)
                    else self._pool.claim(spec.base)
                )
            )

        return self._roster.new(spec.id, self._logs, boot)

    async def list_owned(self) -> list[Owned]:
        """See `base.Runtime.list_owned`."""
        return await asyncio.to_thread(self._dir.owned)

    async def hold(self, bases: Sequence[tuple[Base, int]]) -> None:
        """See `base.Runtime.hold`."""
        self._check_open()
        self._pool.hold(bases)

    async def claim(self, base: Base, assignment: Assignment) -> Sandbox:
        """See `base.Runtime.claim`."""
        self._check_open()
        return await self._roster.claim(assignment, lambda: self._claim(base, assignment))

    def sandboxes(self) -> list[Sandbox]:
        """See `base.Runtime.sandboxes`."""
        return self._roster.instances()

    def bases(self) -> list[BaseStatus]:
        """See `base.Runtime.bases`."""
        return self._pool.bases()

    async def logs(
        self,
        endpoint: str,
        *,
        sandbox: str | None = None,
        after: int = 0,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> tuple[list[LogLine], int]:
        """See `base.Runtime.logs`."""
        return await self._logs.read(endpoint, sandbox, after, limit, wait_s)

    # What held bases need (`held.Maker`).

    async def zygote(self, base: Base, *, loaded: bool) -> Zygote:
        """Start a zygote for ``base``; for one that runs user code, under a uid of its own."""
        uid = self._uids.take() if loaded else None
        endpoint = base.loaded.endpoint if loaded and base.loaded else ZYGOTE_LOG
        label = f"zygote-{base.key[:12]}"

        def log(stream: str, lines: list[str]) -> None:
            self._logs.write(endpoint, label, cast("Stream", stream), lines)

        try:
            secrets = self._secrets_of(base, uid) if loaded else None
        except PrepareFailed:
            self._uids.give_back(uid)
            raise
        zygote = Zygote(
            base.key,
            self._images.of(base.image),
            uid=uid,
            log=log,
            on_child=self._child_event,
            secrets=secrets,
        )
        zygote.ended.add_done_callback(lambda _: self._later(self._zygote_ended(zygote)))
        try:
            await zygote.start(self._spawner)
        except BaseException:
            if not zygote.pid:
                self._uids.give_back(uid)
                if secrets is not None:
                    await asyncio.to_thread(remove_tree, secrets)
            raise
        self._dir.record(zygote.pid)
        return zygote

    def _secrets_of(self, base: Base, uid: int | None) -> Path | None:
        """Where the secrets lie that ``load`` sees. Raises `PrepareFailed`."""
        if base.loaded is None or not base.loaded.secrets:
            return None
        return make_secrets(self._dir.secrets, f"zygote-{base.key[:12]}-{next(self._numbers)}", uid)

    async def child(self, zygote: Zygote) -> Child:
        """Fork ``zygote``; with a uid of its own where the zygote may still change it."""
        own_uid = zygote.uid is None
        uid = self._uids.take() if own_uid else None
        # A uid whose fork was given up is not used again: a late child might still get it.
        child = await zygote.fork(uid, own_uid=uid is not None)
        if zygote.uid is not None:
            child.uid = zygote.uid
        return child

    async def spare(self, zygote: Zygote) -> Child:
        """Fork ahead of a claim: what takes its time is done now."""
        child = await self.child(zygote)
        await self._memory.adopt(child)
        return child

    async def quiet(self) -> None:
        """Returns when no instance is starting, at the latest after `QUIET_S`."""
        await self._roster.quiet(QUIET_S)

    async def _claim(self, base: Base, assignment: Assignment) -> Sandbox:
        claimed_at = time.monotonic()
        # A zygote of another interpreter is no substitute: without one of its image it gets its own.
        fresh = assignment.fresh or not self._pool.holds(base.image)
        claimed = await (self._fresh(base) if fresh else self._pool.claim(base))
        try:
            return await self._roster.assign(assignment, self._frame(claimed), self._logs, claimed_at)
        finally:
            if claimed.held:
                claimed.held.refill()

    def _frame(self, claimed: Claimed) -> ProcessFrame:
        return ProcessFrame(
            claimed.child,
            claimed.tier,
            self._dir.sandboxes,
            self._dir.sockets,
            memory=self._memory,
            census=self._census,
            bury=self._clean_up,
            secrets=self._dir.secrets,
        )

    async def _fresh(self, base: Base) -> Claimed:
        """A process of its own, that has imported nothing and is not forked a second time."""
        zygote = await self.zygote(replace(PLAIN, image=base.image), loaded=False)
        try:
            child = await self.child(zygote)
        except BaseException:
            await zygote.end()
            raise
        child.exited.add_done_callback(lambda _: self._later(zygote.end()))
        return Claimed(child, "cached", zygote, None)

    def _child_event(self, child: Child, born: bool) -> None:
        if born:
            self._dir.record(child.pid)
            return
        self._dir.erase(child.pid)
        self._pool.child_ended(child)
        if not self._roster.holds(child):
            self._later(self._clean_up(child))

    async def _clean_up(self, child: Child) -> None:
        if child.buried:
            return
        child.buried = True
        uid = child.uid if child.own_uid else None
        gone = await self._undertaker.bury(child.pid, uid, runs_as=child.uid)
        self._memory.forget(child)
        if gone:
            self._uids.give_back(uid)

    async def _zygote_ended(self, zygote: Zygote) -> None:
        self._dir.erase(zygote.pid)
        if zygote.secrets is not None:
            await asyncio.to_thread(remove_tree, zygote.secrets)
        if zygote.uid is not None and await self._undertaker.bury(zygote.pid, zygote.uid):
            self._uids.give_back(zygote.uid)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _check_open(self) -> None:
        if self._closed:
            raise PrepareFailed("The runtime is not open.")
