"""What a trial waits for: hosts, its zygote, room, and its instance."""

from __future__ import annotations

import asyncio
import contextlib

from headrace_runtimes.images.pins import unpinned

from headrace import wire
from headrace.control.images import IMAGE_TIMEOUT_S, image_progress
from headrace.control.model import Endpoint, Host, Instance, World
from headrace.control.probing import start_s
from headrace.control.progress import Deployment, Part
from headrace.control.reconcile import Reconciler
from headrace.errors import HeadraceError
from headrace.sdk.image import definition_of
from headrace.sdk.spec import EndpointSpec

ROOM_TIMEOUT_S = 30.0
"""A trial waits this long for a host with room."""
BASE_TIMEOUT_S = 120.0
"""A trial waits this long for its zygote."""
START_MARGIN_S = 30.0
POLL_S = 0.1
CANCELLED = "it was cancelled"


class TrialFailed(HeadraceError):
    """The new version does not start."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class ImageNotMade(TrialFailed):
    """Its image cannot be pulled or built, on no host."""


def go_on(deployment: Deployment) -> None:
    """Raises `TrialFailed` when the deployment has been cancelled."""
    if deployment.cancelled:
        raise TrialFailed(CANCELLED)


async def host_with_base(
    world: World, endpoint: Endpoint, deployment: Deployment, part: Part, base: wire.BaseSpec
) -> Host:
    """Wait for hosts, and for the zygote on one of them (bounded): the trial prefers that one.

    Hosts without its runtime don't count. Raises `TrialFailed`.
    """
    wanted = base.runtime
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ROOM_TIMEOUT_S):
            while not any(_has(h, wanted) for h in world.hosts.values()):
                go_on(deployment)
                there = any(h.usable for h in world.hosts.values())
                part.detail = f"no host has runtime {wanted}" if there else "no host is connected"
                await asyncio.sleep(POLL_S)
    first = next((h for h in world.hosts.values() if _has(h, wanted)), None)
    if first is None:
        if any(h.usable for h in world.hosts.values()):
            raise TrialFailed(
                f'no host has runtime "{wanted}": `headrace doctor` there says why; or use another runtime.'
            )
        raise TrialFailed(
            f"no host joined within {ROOM_TIMEOUT_S:g} s: `headrace nodes list` shows the nodes."
        )
    part.detail = "its base environment is being prepared"
    loop = asyncio.get_running_loop()
    last = loop.time() + IMAGE_TIMEOUT_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BASE_TIMEOUT_S) as limit:
            while not endpoint.deleting:
                go_on(deployment)
                hosts = [h for h in world.hosts.values() if _has(h, wanted)]
                if preparing := image_progress(hosts, base):
                    # Pulling and building take their time, as long as they go on.
                    part.detail = preparing
                    limit.reschedule(min(last, loop.time() + BASE_TIMEOUT_S))
                for host in hosts:
                    report = host.warm.get(base)
                    if report is not None and report.state == "ready":
                        return host
                done = [h for h in hosts if (r := h.warm.get(base)) is not None and r.state == "failed"]
                if done and len(done) == len(hosts):
                    if all(h.warm[base].unprepared for h in done):
                        raise ImageNotMade(done[0].warm[base].detail)
                    # The runtime says why, and starts instances from the nearest base it has.
                    return done[0]
                await asyncio.sleep(POLL_S / 4)
    return first


def _has(host: Host, runtime: str) -> bool:
    return host.usable and runtime in host.hello.runtimes


async def start(
    world: World, reconciler: Reconciler, endpoint: Endpoint, deployment: Deployment, part: Part
) -> wire.Death | None:
    """Start the trial; None when it became ready. Raises `TrialFailed`."""
    instance: Instance | None = None
    reason = ""
    began = world.now()
    deadline = began + ROOM_TIMEOUT_S
    while not endpoint.deleting and world.now() < deadline:
        go_on(deployment)
        instance, reason = reconciler.trial(endpoint, part.version)
        if instance is not None:
            break
        if "drains first" in reason and reason not in part.notes:
            part.notes.append(reason)
        if endpoint.making_room is not None:
            # An old instance finishes its requests first; its host bounds that.
            deadline = world.now() + ROOM_TIMEOUT_S
        part.detail = reason
        await asyncio.sleep(POLL_S)
    if instance is None:
        waited = world.now() - began
        if endpoint.deleting:
            raise TrialFailed("the endpoint is being deleted.")
        raise TrialFailed(
            f"it could not be started within {waited:.0f} s: {reason or 'no capacity'}: deploy it again "
            "when there is room, `headrace nodes add` may make some."
        )
    endpoint.tried = None
    assert instance.outcome is not None, "the reconciler made it with the instance"
    part.detail = f"instance {instance.id} starts on {instance.host.hello.node}"
    limit = start_s(endpoint.trials[part.version]) + START_MARGIN_S
    until = world.now() + limit
    note = ""
    while not (await asyncio.wait([instance.outcome], timeout=POLL_S))[0]:
        go_on(deployment)
        if instance.report is not None and instance.report.note not in ("", note):
            # Weights take their time, as long as they come.
            part.detail = note = instance.report.note
            until = world.now() + limit
        if world.now() > until:
            break
    if not instance.outcome.done():
        return wire.Death(reason="start-timeout", detail=f"not ready after {limit:g} s")
    death = instance.outcome.result()
    part.detail = ""
    if death is None and instance.report is not None and instance.report.note:
        # Of one that was lost on the way it is how far its weights were.
        part.notes.append(instance.report.note)
    return death


def note(part: Part, report: wire.WarmReport | None) -> None:
    """What its zygote refused, for whoever deploys."""
    if report is None:
        return
    part.notes += [f"{module} is not preloaded: {why}" for module, why in sorted(report.refused.items())]
    if report.detail:
        part.notes.append(report.detail)
    # An instance may have told the same already.
    part.notes[:] = dict.fromkeys(part.notes)


def note_unpinned(world: World, spec: EndpointSpec, part: Part) -> None:
    """Requirements of its image that another host may resolve otherwise, when there is another."""
    loose = unpinned(definition_of(spec.image))
    if loose and sum(_has(host, spec.runtime) for host in world.living_hosts()) > 1:
        told = ", ".join(loose[:5]) + (" and more" if len(loose) > 5 else "")
        part.notes.append(f"image: pip takes {told} as each host finds it when it builds: pin it with ==")
