"""Deployments: a version is stored, tried on a host, and only then made the current one.

The old version stays current until the new one's trial instance is ready; a version whose trial fails
is kept but never current. A deployment that was under way when control ended is taken up by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from headrace import wire
from headrace.control import failures
from headrace.control.model import Endpoint, Host, Instance, World
from headrace.control.progress import Deployment, Part
from headrace.control.reconcile import Reconciler
from headrace.control.routes import Routes
from headrace.control.specs import packed, slim
from headrace.control.store import VERSIONS_KEPT, NewVersion, Store
from headrace.control.warm import Warm
from headrace.errors import Conflict, HeadraceError, NotFound
from headrace.sdk.spec import EndpointSpec

log = logging.getLogger("headrace.control")
KEPT = 100
AT_ONCE = 8
"""Trials that run at the same time; the others wait for their turn."""
ROOM_TIMEOUT_S = 30.0
"""A trial waits this long for a host with room."""
BASE_TIMEOUT_S = 120.0
"""A trial waits this long for its zygote."""
START_MARGIN_S = 30.0
POLL_S = 0.1
TRIES = 3
"""A trial whose host is lost is started again this often in all."""


class TrialFailed(HeadraceError):
    """The new version does not start."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


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
        self._known: OrderedDict[str, Deployment] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(AT_ONCE)

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

    async def deploy(self, specs: list[EndpointSpec], project: str, *, verify: bool) -> Deployment:
        """Store what is new. Returns when it is stored; with ``verify`` the trials go on by themselves."""
        for spec in specs:
            present = self._world.endpoints.get(spec.key)
            if present is not None and present.deleting:
                raise Conflict(f"endpoint {spec.name!r} is being deleted.", hint="Try again in a moment.")
        deployment = self._new(project)
        fresh: list[tuple[EndpointSpec, bytes, bytes, Part]] = []
        for number, spec in enumerate(specs):
            data, digest = packed(spec)
            present = self._world.endpoints.get(spec.key)
            part = Part(endpoint=spec.name)
            deployment.parts.append(part)
            if present is not None and present.version is not None and present.digest == digest:
                part.version, part.state = present.version, "unchanged"
                self._forgive(present)
            else:
                fresh.append((spec, data, digest, part))
            if number % 500 == 499:
                await asyncio.sleep(0)
        new = [NewVersion(s.project, s.name, data, s.bundle) for s, data, _, _ in fresh]
        await self._number(new, [part for *_, part in fresh], flip=not verify)
        if verify and fresh:
            await self._keep(deployment)
        changed: list[Endpoint] = []
        for spec, _, digest, part in fresh:
            if verify:
                self._spawn(self._try(deployment, part, slim(spec), digest))
            else:
                changed.append(self._flip(slim(spec), part.version, digest))
                part.state = "ready"
            if len(changed) % 500 == 499:
                await asyncio.sleep(0)
        if changed:
            self._after_flips(changed)
        deployment.update()
        return deployment

    async def rollback(self, endpoint: Endpoint, version: int) -> Deployment:
        """Make an older version the current one, after a trial as ever. Raises `NotFound`."""
        data = await self._store.version_spec(endpoint.project, endpoint.name, version)
        if data is None:
            raise NotFound(f"version {version} of {endpoint.name!r} is not kept.")
        spec = msgspec.json.decode(data, type=EndpointSpec)
        deployment = self._new(endpoint.project)
        part = Part(endpoint=endpoint.name, version=version)
        deployment.parts.append(part)
        if version == endpoint.version:
            part.state = "unchanged"
        else:
            await self._keep(deployment)
            self._spawn(self._try(deployment, part, slim(spec), packed(spec)[1]))
        deployment.update()
        return deployment

    async def resume(self) -> None:
        """Go on with what a predecessor had begun, and know what it had done."""
        for id, project, parts in await self._store.deployments():
            deployment = self._known[id] = Deployment.load(id, project, parts)
            for part in deployment.parts:
                if part.state == "starting":
                    await self._resume(deployment, part)
            deployment.update()

    async def _resume(self, deployment: Deployment, part: Part) -> None:
        endpoint = self._world.endpoints.get(f"{deployment.project}/{part.endpoint}")
        data = await self._store.version_spec(deployment.project, part.endpoint, part.version)
        if endpoint is None or data is None:
            part.state, part.detail = "failed", "it is not kept any more"
        elif endpoint.version == part.version:
            part.state, part.detail = "ready", ""
        else:
            spec = msgspec.json.decode(data, type=EndpointSpec)
            part.notes.append("control was restarted while it was tried: tried again")
            self._spawn(self._try(deployment, part, slim(spec), packed(spec)[1]))

    async def _number(self, new: list[NewVersion], parts: list[Part], *, flip: bool) -> None:
        numbers = await self._store.add_versions(new, flip=flip) if new else []
        for part, version in zip(parts, numbers, strict=True):
            part.version = version

    async def _keep(self, deployment: Deployment) -> None:
        await self._store.put_deployment(deployment.id, deployment.project, deployment.dump())

    def _forgive(self, endpoint: Endpoint) -> None:
        """Deployed again unchanged: a crash loop may try again at once (a missing file is there now)."""
        if endpoint.failing is not None:
            endpoint.failing = endpoint.recovering = None
            self._world.touch(endpoint)
            self._reconciler.again(endpoint)

    # -- one trial -------------------------------------------------------------------------

    async def _try(self, deployment: Deployment, part: Part, spec: EndpointSpec, digest: bytes) -> None:
        # It lives as long as somebody holds or awaits it.
        lock = self._locks.setdefault(spec.key, asyncio.Lock())
        endpoint: Endpoint | None = None
        stopped = False
        try:
            async with self._slots, lock:
                endpoint = self._enter(spec, part.version)
                await self._verify(endpoint, part, spec, digest)
        except TrialFailed as error:
            part.state, part.detail, part.traceback = "failed", error.message, error.traceback
        except asyncio.CancelledError:
            # The next control goes on with it: what is kept says that it starts.
            part.state, part.detail = "failed", "control stopped"
            stopped = True
            raise
        except Exception as error:
            log.exception("deployment of %s failed", spec.key)
            part.state, part.detail = "failed", f"internal: {type(error).__name__}: {error}"
        finally:
            if endpoint is not None:
                self._leave(endpoint, part)
            deployment.update()
            if deployment.state != "running" and not stopped:
                self._spawn(self._keep(deployment))

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

    async def _verify(self, endpoint: Endpoint, part: Part, spec: EndpointSpec, digest: bytes) -> None:
        # The zygote is asked for before the trial: its forks need it, and what it refuses is told.
        base = self._warm.use(spec, part.version)
        for attempt in range(TRIES):
            host = await self._host_with_base(endpoint, part, base)
            death = await self._start(endpoint, part, spec)
            if death is None:
                _note(part, host.warm.get(base))
                break
            lost = death.reason in ("host-lost", "stopped")
            if not lost or attempt == TRIES - 1 or endpoint.deleting:
                raise TrialFailed(failures.describe(death), death.traceback)
        await self._store.flip(endpoint.project, endpoint.name, part.version)
        if endpoint.deleting:
            raise TrialFailed("the endpoint is being deleted.")
        endpoint.trials.pop(part.version, None)
        for instance in endpoint.instances.values():
            if instance.version == part.version:
                # Its trial was its first use: it may give way when another endpoint needs the room.
                instance.last_used = self._world.now()
        self._flip(spec, part.version, digest)
        self._after_flips([endpoint])
        part.state = "ready"

    async def _host_with_base(self, endpoint: Endpoint, part: Part, base: wire.BaseSpec) -> Host:
        """Wait for hosts, and for the zygote on one of them (bounded): the trial prefers that one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOM_TIMEOUT_S):
                while not any(h.usable for h in self._world.hosts.values()):
                    part.detail = "no host is connected"
                    await asyncio.sleep(POLL_S)
        first = next((h for h in self._world.hosts.values() if h.usable), None)
        if first is None:
            raise TrialFailed(
                f"no host joined within {ROOM_TIMEOUT_S:g} s: `headrace nodes list` shows the nodes."
            )
        part.detail = "its base environment is being prepared"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BASE_TIMEOUT_S):
                while not endpoint.deleting:
                    hosts = [h for h in self._world.hosts.values() if h.usable]
                    for host in hosts:
                        report = host.warm.get(base)
                        if report is not None and report.state == "ready":
                            return host
                    done = [h for h in hosts if (r := h.warm.get(base)) is not None and r.state == "failed"]
                    if done and len(done) == len(hosts):
                        # The runtime says why, and starts instances from the nearest base it has.
                        return done[0]
                    await asyncio.sleep(POLL_S / 4)
        return first

    async def _start(self, endpoint: Endpoint, part: Part, spec: EndpointSpec) -> wire.Death | None:
        """Start the trial; None when it became ready."""
        instance: Instance | None = None
        reason = ""
        began = self._world.now()
        deadline = began + ROOM_TIMEOUT_S
        while not endpoint.deleting and self._world.now() < deadline:
            instance, reason = self._reconciler.trial(endpoint, part.version)
            if instance is not None:
                break
            if "drains first" in reason and reason not in part.notes:
                part.notes.append(reason)
            if endpoint.making_room is not None:
                # An old instance finishes its requests first; its host bounds that.
                deadline = self._world.now() + ROOM_TIMEOUT_S
            part.detail = reason
            await asyncio.sleep(POLL_S)
        if instance is None:
            waited = self._world.now() - began
            raise TrialFailed(f"it could not be started within {waited:.0f} s: {reason or 'no capacity'}.")
        endpoint.tried = None
        assert instance.outcome is not None, "the reconciler made it with the instance"
        part.detail = f"instance {instance.id} starts on {instance.host.hello.node}"
        limit = spec.load_timeout + START_MARGIN_S
        try:
            async with asyncio.timeout(limit):
                death = await instance.outcome
        except TimeoutError:
            return wire.Death(reason="start-timeout", detail=f"not ready after {limit:g} s")
        part.detail = ""
        if instance.report is not None and instance.report.note:
            part.notes.append(instance.report.note)
        return death

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

    def _new(self, project: str) -> Deployment:
        deployment = Deployment(id=f"d{secrets.token_hex(6)}", project=project)
        self._known[deployment.id] = deployment
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return deployment

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _note(part: Part, report: wire.WarmReport | None) -> None:
    """What its zygote refused, for whoever deploys."""
    if report is None:
        return
    part.notes += [f"{module} is not preloaded: {why}" for module, why in sorted(report.refused.items())]
    if report.detail:
        part.notes.append(report.detail)
    # An instance may have told the same already.
    part.notes[:] = dict.fromkeys(part.notes)
