"""Deployments: a version is stored, tried on a host, and only then made the current one.

The old version stays current until the new one's trial instance is ready; a version whose trial fails
is kept but never current. A deployment that was under way when control ended is taken up by the next.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from headrace.control import failures
from headrace.control.deployments import VERSIONS_KEPT, NewVersion
from headrace.control.model import Endpoint, World
from headrace.control.progress import Deployment, Part
from headrace.control.reconcile import Reconciler
from headrace.control.routes import Routes
from headrace.control.specs import packed, slim
from headrace.control.store import Store
from headrace.control.trial import (
    ImageNotMade,
    TrialFailed,
    go_on,
    host_with_base,
    note,
    note_unpinned,
    start,
)
from headrace.control.warm import Warm
from headrace.errors import Conflict, HeadraceError, NotFound
from headrace.sdk.spec import EndpointSpec
from headrace.sqlite_writer import disk_is_full

log = logging.getLogger("headrace.control")
KEPT = 100
AT_ONCE = 8
"""Trials that run at the same time; the others wait for their turn."""
AGAIN = "control was restarted while it was tried: tried again"
SETTLE_FIRST_S = 1.0
SETTLE_MOST_S = 30.0
"""Between tries to write down how a trial ended."""
TRIES = 3
"""A trial whose host is lost is started again this often in all."""


class _Trial(NamedTuple):
    """One endpoint of a deployment, to be tried."""

    deployment: Deployment
    part: Part
    spec: EndpointSpec
    digest: bytes


class Deployer:
    """Runs deployments and rollbacks, one at a time per endpoint."""

    def __init__(
        self, world: World, store: Store, routes: Routes, reconciler: Reconciler, warm: Warm
    ) -> None:
        self._world = world
        self._store = store
        self._routes = routes
        self._reconciler = reconciler
        self._warm = warm
        self._known: dict[str, Deployment] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._pending: Counter[str] = Counter()
        """Trials that have not ended, by endpoint."""

    async def stop(self) -> None:
        """Cancel what runs."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def get(self, id: str, project: str) -> Deployment:
        """A deployment by its id. Raises `NotFound`."""
        found = self._known.get(id)
        if found is None or found.project != project:
            raise NotFound(
                f"no deployment {id!r}.",
                hint="The last hundred are kept: `headrace describe` shows the versions.",
            )
        return found

    def cancel(self, id: str, project: str) -> Deployment:
        """Give up what of a deployment is not current yet; what is stays. Raises `NotFound`.

        It ends within a moment. Hosts finish the images that they have begun, for whoever needs them next.
        """
        deployment = self.get(id, project)
        deployment.cancelled = True
        return deployment

    async def deploy(self, specs: list[EndpointSpec], project: str, *, verify: bool) -> Deployment:
        """Store what is new. Returns when it is stored; with ``verify`` the trials go on by themselves."""
        for spec in specs:
            present = self._world.endpoints.get(spec.key)
            if present is not None and present.deleting:
                raise Conflict(f"endpoint {spec.name!r} is being deleted.", hint="Try again in a moment.")
        deployment = Deployment(id=_new_id(), project=project)
        fresh: list[_Trial] = []
        back: list[_Trial] = []
        new: dict[str, NewVersion] = {}
        for number, spec in enumerate(specs):
            data, digest = packed(spec)
            present = self._world.endpoints.get(spec.key)
            part = Part(endpoint=spec.name)
            deployment.parts.append(part)
            trial = _Trial(deployment, part, slim(spec), digest)
            if present is not None and present.version is not None and present.digest == digest:
                part.version, part.state = present.version, "unchanged"
                self._forgive(present)
                if spec.key in self._pending:
                    # What was deployed in between would take its place: it has its turn after that.
                    back.append(trial)
            else:
                new[spec.name] = NewVersion(spec.project, spec.name, data, spec.bundle)
                fresh.append(trial)
            if number % 500 == 499:
                await asyncio.sleep(0)
        if not verify:
            same = [(t.spec.project, t.spec.name) for t in back]
            await self._register(fresh, list(new.values()), same)
        elif fresh or back:
            for trial in back:
                trial.part.state = "starting"
            await self._begin(deployment, new, [*back, *fresh])
        self._remember(deployment)
        deployment.update()
        return deployment

    async def rollback(self, endpoint: Endpoint, version: int) -> Deployment:
        """Make an older version the current one, after a trial as ever. Raises `NotFound`."""
        data = await self._store.version_spec(endpoint.project, endpoint.name, version)
        if data is None:
            raise NotFound(f"version {version} of {endpoint.name!r} is not kept.")
        spec = msgspec.json.decode(data, type=EndpointSpec)
        deployment = Deployment(id=_new_id(), project=endpoint.project)
        part = Part(endpoint=endpoint.name, version=version)
        deployment.parts.append(part)
        if version == endpoint.version and endpoint.key not in self._pending:
            part.state = "unchanged"
        else:
            await self._begin(deployment, {}, [_Trial(deployment, part, slim(spec), packed(spec)[1])])
        self._remember(deployment)
        deployment.update()
        return deployment

    async def resume(self) -> None:
        """Go on with what a predecessor had begun, in that order, and know what it had done."""
        for deployment in await self._store.deployments.all():
            self._remember(deployment)
            for part in deployment.parts:
                endpoint = self._world.endpoints.get(f"{deployment.project}/{part.endpoint}")
                if part.state == "starting":
                    await self._resume(deployment, part)
                elif part.state == "failed" and endpoint is not None and endpoint.version is None:
                    endpoint.reason = part.detail or endpoint.reason
            deployment.update()

    async def _resume(self, deployment: Deployment, part: Part) -> None:
        # What has become current, and what a later one has taken the place of, is no longer "starting": the
        # store ends both in the same transaction.
        data = await self._store.version_spec(deployment.project, part.endpoint, part.version)
        if data is None:
            part.state, part.detail = "failed", "its version is not kept any more"
            self._spawn(self._settle(deployment, part))
            return
        spec = msgspec.json.decode(data, type=EndpointSpec)
        if AGAIN not in part.notes:
            part.notes.append(AGAIN)
        self._start_trial(_Trial(deployment, part, slim(spec), packed(spec)[1]))

    async def _begin(
        self, deployment: Deployment, new: Mapping[str, NewVersion], trials: Sequence[_Trial]
    ) -> None:
        await self._store.deployments.begin(deployment, new)
        for trial in trials:
            self._start_trial(trial)

    async def _register(
        self, fresh: Sequence[_Trial], new: Sequence[NewVersion], same: Sequence[tuple[str, str]]
    ) -> None:
        if not fresh and not same:
            return
        numbers = await self._store.deployments.register(new, same)
        changed: list[Endpoint] = []
        for trial, version in zip(fresh, numbers, strict=True):
            trial.part.version, trial.part.state = version, "ready"
            changed.append(self._flip(trial.spec, version, trial.digest))
            if len(changed) % 500 == 499:
                await asyncio.sleep(0)
        self._after_flips(changed)

    async def _settle(self, deployment: Deployment, part: Part) -> None:
        """Write down that a part failed, however long that takes; the next control would try it again."""
        wait = SETTLE_FIRST_S
        while True:
            try:
                await self._store.deployments.settle(deployment, part)
            except (sqlite3.Error, HeadraceError) as error:
                log.warning("the end of deployment %s is not written yet: %s", deployment.id, error)
            else:
                return
            await asyncio.sleep(wait)
            wait = min(SETTLE_MOST_S, wait * 2)

    def _forgive(self, endpoint: Endpoint) -> None:
        """Deployed again unchanged: a crash loop may try again at once (a missing file is there now)."""
        if endpoint.failing is not None:
            endpoint.failing = endpoint.recovering = None
            self._world.touch(endpoint)
            self._reconciler.again(endpoint)

    # -- one trial -------------------------------------------------------------------------

    def _start_trial(self, trial: _Trial) -> None:
        self._pending[trial.spec.key] += 1
        self._spawn(self._try(trial))

    async def _try(self, trial: _Trial) -> None:
        deployment, part, spec = trial.deployment, trial.part, trial.spec
        # It lives as long as somebody holds or awaits it. Trials of one endpoint have their turns in the
        # order in which they began.
        lock = self._locks.setdefault(spec.key, asyncio.Lock())
        endpoint: Endpoint | None = None
        stopped = False
        try:
            async with self._slots, lock:
                present = self._world.endpoints.get(spec.key)
                if present is not None and not present.deleting and present.version == part.version:
                    part.state = "unchanged"
                else:
                    endpoint = self._enter(spec, part.version)
                    await self._verify(endpoint, trial)
        except TrialFailed as error:
            part.state, part.detail, part.traceback = "failed", error.message, error.traceback
        except asyncio.CancelledError:
            # The next control goes on with it: what is kept says that it starts.
            part.state, part.detail = "failed", "control stopped"
            stopped = True
            raise
        except Exception as error:
            if disk_is_full(error):
                detail = "no space is left on the disk of the data directory: free some, then deploy again"
            else:
                log.exception("deployment of %s failed", spec.key)
                detail = f"internal: {type(error).__name__}: {error}"
            part.state, part.detail = "failed", detail
        finally:
            self._pending[spec.key] -= 1
            if not self._pending[spec.key]:
                del self._pending[spec.key]
            if endpoint is not None:
                self._leave(endpoint, part)
            deployment.update()
            if part.state != "ready" and not stopped:
                self._spawn(self._settle(deployment, part))

    def _enter(self, spec: EndpointSpec, version: int) -> Endpoint:
        endpoint = self._world.endpoints.get(spec.key)
        if endpoint is not None and endpoint.deleting:
            raise TrialFailed("the endpoint is being deleted.")
        if endpoint is None:
            endpoint = Endpoint(key=spec.key, spec=spec)
            self._world.endpoints[spec.key] = endpoint
        elif endpoint.version is None:
            endpoint.spec = spec
        endpoint.trials[version] = spec
        if endpoint.version is None:
            endpoint.reason = ""
        self._world.touch(endpoint)
        if not self._routes.refresh(endpoint):
            self._routes.publish([endpoint])
        return endpoint

    def _leave(self, endpoint: Endpoint, part: Part) -> None:
        endpoint.trials.pop(part.version, None)
        endpoint.making_room = endpoint.tried = None
        if part.state == "failed":
            if endpoint.version is None:
                endpoint.reason = part.detail
            endpoint.note("deploy", f"version {part.version} failed: {part.detail}")
            stale = [i for i in endpoint.instances.values() if i.version == part.version and i.alive]
            self._reconciler.release(stale, "its version failed", 0.0)
            self._warm.forget(endpoint.key, endpoint.version)
        if not endpoint.deleting:
            self._world.touch(endpoint)
            self._reconciler.again(endpoint)

    async def _verify(self, endpoint: Endpoint, trial: _Trial) -> None:
        deployment, part, spec = trial.deployment, trial.part, trial.spec
        go_on(deployment)
        # The zygote is asked for before the trial: its forks need it, and what it refuses is told.
        base = self._warm.use(spec, part.version)
        for attempt in range(TRIES):
            try:
                host = await host_with_base(self._world, endpoint, deployment, part, base)
            except ImageNotMade:
                self._warm.drop(base)
                raise
            death = await start(self._world, self._reconciler, endpoint, deployment, part)
            if death is None:
                note(part, host.warm.get(base))
                note_unpinned(self._world, spec, part)
                break
            lost = death.reason in ("host-lost", "stopped")
            if not lost or attempt == TRIES - 1 or endpoint.deleting:
                raise TrialFailed(failures.describe(death), failures.at_length(death))
        part.detail = ""
        why_not = await self._store.deployments.flip(trial.deployment, part)
        if why_not:
            raise TrialFailed(f"{why_not}.")
        # From here on it is current, whatever else happens.
        part.state = "ready"
        endpoint.trials.pop(part.version, None)
        for instance in endpoint.instances.values():
            if instance.version == part.version:
                # Its trial was its first use: it may give way when another endpoint needs the room.
                instance.last_used = self._world.now()
        self._flip(spec, part.version, trial.digest)
        if not endpoint.deleting:
            self._after_flips([endpoint])

    # -- the switch ------------------------------------------------------------------------

    def _flip(self, spec: EndpointSpec, version: int, digest: bytes) -> Endpoint:
        endpoint = self._world.endpoints.get(spec.key)
        if endpoint is None:
            endpoint = Endpoint(key=spec.key, spec=spec)
            self._world.endpoints[spec.key] = endpoint
        before = endpoint.version
        endpoint.spec, endpoint.version, endpoint.digest = spec, version, digest
        newest = max(version, *endpoint.versions, 0)
        known = {*endpoint.versions, version}
        endpoint.versions = tuple(sorted(v for v in known if v > newest - VERSIONS_KEPT or v == version))
        endpoint.failing = endpoint.recovering = None
        endpoint.reason = ""
        endpoint.pins.pop(version, None)
        if before is not None and before != version:
            endpoint.rollout_from = before
            endpoint.note("rollout", f"version {version} replaces {before}")
            if not endpoint.old_instances():
                endpoint.rollout_from = None
        return endpoint

    def _after_flips(self, changed: list[Endpoint]) -> None:
        """Tell gateways, the instances that may serve now with it; then roll over."""
        fresh = [i for e in changed for i in e.instances.values() if i.version == e.version and e.routable(i)]
        # Derived now, so that one message says all of it.
        for endpoint in changed:
            self._routes.derive(endpoint)
        self._routes.publish(changed, instances=fresh)
        recent = changed[-1:]
        for endpoint in recent:
            assert endpoint.version is not None
            self._warm.use(endpoint.spec, endpoint.version)
            self._warm.forget(endpoint.key, endpoint.version)
        for endpoint in changed:
            if endpoint.instances or endpoint.bounds[0] or endpoint.demand:
                self._world.touch(endpoint)
                self._reconciler.again(endpoint)

    def _remember(self, deployment: Deployment) -> None:
        self._known[deployment.id] = deployment
        if len(self._known) > KEPT:
            ended = [id for id, known in self._known.items() if known.state != "running"]
            for id in ended[: len(self._known) - KEPT]:
                del self._known[id]

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a deployment's work failed", exc_info=task.exception())


def _new_id() -> str:
    return f"d{secrets.token_hex(6)}"
