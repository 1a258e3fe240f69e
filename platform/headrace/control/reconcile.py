"""The loop: observe an endpoint, let the autoscaler decide, act; at once on a wake, else every tick.

Only endpoints with something going on are looked at: an idle one costs nothing. After control's start
it adopts what hosts report, and neither fills up minimums nor releases anything until that is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from headrace_autoscaler.policy import wanted
from headrace_autoscaler.spec import (
    Action,
    Config,
    Decision,
    EndpointState,
    Launch,
    Pause,
    Release,
    Resume,
    Start,
    Wait,
    WarmNodes,
)

from headrace import wire
from headrace.control import failures, observe, rollout
from headrace.control.claims import Claims, base_of
from headrace.control.deciding import Deciding
from headrace.control.images import IMAGE_TIMEOUT_S, image_progress
from headrace.control.leaving import Leaving
from headrace.control.looks import Looks
from headrace.control.memory import unasked
from headrace.control.model import Ended, Endpoint, Instance, Shrink, World
from headrace.control.parking import Parking, stranded
from headrace.control.probing import start_s
from headrace.control.recorder import Recorder
from headrace.control.routes import Routes
from headrace.control.shortage import Shortage

log = logging.getLogger("headrace.control")
PIN_QUEUE_VALID_S = 30.0
TURN_S = 0.005
"""Of ticks, before others have theirs."""
START_MARGIN_S = 60.0
"""A start may take this much longer than the endpoint's ``load_timeout``."""


class Reconciler:
    """Decides for endpoints and carries the decisions out."""

    def __init__(
        self,
        world: World,
        claims: Claims,
        routes: Routes,
        recorder: Recorder,
        *,
        config: Config,
        grace_s: float,
    ) -> None:
        self._world = world
        self._claims = claims
        self._routes = routes
        self._recorder = recorder
        self._deciding = Deciding(config)
        self._grace_s = grace_s
        self.shortage = Shortage(world, routes, self.again)
        self._looks = Looks(world, self.again)
        self._leaving = Leaving(claims, routes)
        self.parking = Parking(world, claims, routes, self.release)
        self.adopting = False
        self.on_start: Callable[[Endpoint, int], None] = lambda endpoint, version: None
        """Told of every version that is being started (its zygote is wanted)."""
        self.wake_seconds: list[float] = []
        """Durations from a wake to its commands sent, the last thousand."""

    # -- when ------------------------------------------------------------------------------

    def stop(self) -> None:
        """Nothing is decided any more by itself."""
        self.shortage.stop()
        self._looks.stop()

    def wake(self, endpoint: Endpoint, version: int | None, received: float) -> None:
        """Decide for one endpoint now. ``received``: when the wake came in."""
        if endpoint.deleting or endpoint.version is None:
            # A trial runs (its requests wait for it), or the route says already why it failed.
            return
        self.shortage.settle()
        if version is not None and version != endpoint.version:
            if version in endpoint.pins:
                self._pinned(endpoint, version, received)
        else:
            self._main(endpoint, received)
        self.wake_seconds.append(self._world.now() - received)
        del self.wake_seconds[:-1000]

    def again(self, endpoint: Endpoint) -> None:
        """Something about the endpoint changed: decide now, drop it from the ticks when it is quiet."""
        if endpoint.deleting:
            return
        if endpoint.making_room is not None:
            # Before anything else gets the room that was made for it.
            self.trial(endpoint, endpoint.making_room)
        if endpoint.version is not None and (not self.adopting or endpoint.demand):
            self._main(endpoint, None)
            for version in list(endpoint.pins):
                self._pinned(endpoint, version, None)
        if endpoint.rollout_from is not None and not self.adopting:
            self._rollout(endpoint)
        if endpoint.shrink is not None and not self.adopting:
            self._shrink(endpoint, endpoint.shrink)
        self._routes.refresh(endpoint)
        if self._quiet(endpoint):
            self._world.active.pop(endpoint.key, None)

    async def tick(self) -> None:
        """Decide for all endpoints with something going on, first for those that wait for room.

        Whoever wakes meanwhile has their turn after some milliseconds of it.
        """
        self.shortage.tick()
        turn = time.monotonic()
        for endpoint in list(self._world.active.values()):
            if time.monotonic() - turn > TURN_S:
                await asyncio.sleep(0)
                turn = time.monotonic()
                if self._world.active.get(endpoint.key) is not endpoint:
                    continue
            try:
                self._overdue(endpoint)
                self.again(endpoint)
            except Exception:
                # One bad endpoint must not stop the others.
                log.exception("deciding for %s failed; the next tick tries again", endpoint.key)

    def scale_to(self, endpoint: Endpoint, count: int) -> None:
        """Start up to ``count`` instances now, or release down to it: idle ones now, those that are busy
        when they become idle within the drain grace. Never below the endpoint's min.
        """
        self._world.touch(endpoint)
        now = self._world.now()
        self._decide(endpoint, observe.main_lane(endpoint, now, least=count), None)
        there = (
            i.id
            for i in endpoint.instances.values()
            if i.version == endpoint.version or (not count and i.version in endpoint.pins)
        )
        # Whoever scales by hand wants no more than there is to be.
        paused = [i for i in endpoint.instances.values() if i.state == "paused" and i.resuming is None]
        self.release(paused, f"scaled to {count}")
        if count < len(endpoint.instances):
            endpoint.memory = unasked(endpoint.memory)
        endpoint.shrink = Shrink(max(count, endpoint.bounds[0]), frozenset(there), now + self._grace_s)
        self._shrink(endpoint, endpoint.shrink)
        self._routes.refresh(endpoint)

    def _shrink(self, endpoint: Endpoint, shrink: Shrink) -> None:
        now = self._world.now()
        mine = [
            i for i in endpoint.instances.values() if i.id in shrink.ids and i.state in ("starting", "ready")
        ]
        surplus = len(mine) - shrink.count
        idle = [i for i in mine if i.state == "ready" and not i.in_flight]
        if endpoint.seen(now)[1]:
            # Requests wait: what is idle is about to get them.
            idle = []
        idle.sort(key=lambda i: i.last_used or i.started)
        going = idle[: max(0, surplus)]
        if len(going) >= surplus or now >= shrink.until:
            endpoint.shrink = None
        self.release(going, f"scaled to {shrink.count}")

    # -- lanes -----------------------------------------------------------------------------

    def _main(self, endpoint: Endpoint, woken: float | None) -> None:
        lane = observe.main_lane(endpoint, self._world.now(), served=endpoint.signals.take_served())
        decision = self._decide(endpoint, lane, woken, memory=endpoint.memory)
        endpoint.memory = decision.state.endpoints[lane.key]
        self._looks.at(endpoint, decision.look_again_at)
        self._waits(endpoint, lane, decision)
        self._explain(endpoint, lane, decision)

    def _pinned(self, endpoint: Endpoint, version: int, woken: float | None) -> None:
        pin = endpoint.pins[version]
        now = self._world.now()
        mine = [i for i in endpoint.instances.values() if i.version == version and i.alive]
        # The wake's queue counts until an instance is there that takes it (or for so long that nobody can be
        # waiting), then what gateways report.
        if any(i.state == "ready" for i in mine) or now - pin.queued_at > PIN_QUEUE_VALID_S:
            pin.queued = endpoint.named(version, now)
        if not mine and not pin.queued:
            del endpoint.pins[version]
            return
        lane = observe.pinned_lane(endpoint, version)
        decision = self._decide(endpoint, lane, woken, memory=pin.memory)
        pin.memory = decision.state.endpoints[lane.key]
        self._waits(endpoint, lane, decision)

    def trial(self, endpoint: Endpoint, version: int) -> tuple[Instance | None, str]:
        """Try to start the instance of a version on trial: (it, "") or (None, why it must wait)."""
        if endpoint.tried is not None:
            return endpoint.tried, ""
        lane = observe.trial_lane(endpoint, version)
        decision = self._decide(endpoint, lane, None)
        reason = next((a.reason for a in decision.actions if isinstance(a, Wait)), "")
        if any(isinstance(a, Wait) and a.no_room for a in decision.actions):
            # The deployer asks again soon.
            self.shortage.ask()
        found = next((i for i in endpoint.instances.values() if i.version == version and i.alive), None)
        drains = endpoint.making_room == version and any(
            i.state == "draining" and i.version != version for i in endpoint.instances.values()
        )
        made = any(isinstance(a, Release) and a.endpoint == lane.key for a in decision.actions)
        endpoint.making_room = version if found is None and (made or drains) else None
        if found is not None:
            # Known from its start on, since it may end before the deployer asks again.
            endpoint.tried = found
            found.outcome = asyncio.get_running_loop().create_future()
            if found.state == "ready":
                found.outcome.set_result(None)
        return found, reason

    def _rollout(self, endpoint: Endpoint) -> None:
        old = endpoint.old_instances()
        if not old:
            endpoint.rollout_from = None
            return
        new = [i for i in endpoint.instances.values() if i.version == endpoint.version]
        lane = observe.main_lane(endpoint, self._world.now())
        want = max(endpoint.memory.desired, wanted(observe.plain(lane)))
        seen = [rollout.Old(i.id, i.state == "ready", i.in_flight) for i in old]
        ids = set(rollout.to_drain(sum(1 for i in new if endpoint.routable(i)), seen, want))
        self.release([i for i in old if i.id in ids], f"version {endpoint.version} has taken over")
        if not endpoint.old_instances():
            endpoint.rollout_from = None

    # -- decide and act --------------------------------------------------------------------

    def _decide(
        self,
        endpoint: Endpoint,
        lane: observe.Lane,
        woken: float | None,
        *,
        memory: EndpointState | None = None,
    ) -> Decision:
        now = self._world.now()
        observation = observe.observe(self._world, endpoint, lane)
        record, again = self._deciding.ask(now, observation, lane.key, memory or EndpointState())
        for action in record.decision.actions:
            self._act(endpoint, lane, action, woken)
        if again:
            self._recorder.note(endpoint, lane.key, record)
        return record.decision

    def _act(self, endpoint: Endpoint, lane: observe.Lane, action: Action, woken: float | None) -> None:
        if isinstance(action, Start):
            host = self._world.hosts.get(action.host)
            if host is not None and host.usable:
                self._claims.start(endpoint, action.version, host, woken=woken, after=action.after)
                self.on_start(endpoint, action.version)
        elif isinstance(action, Release) and not self.adopting:
            instance = self._world.instances.get(action.instance)
            if instance is not None:
                if instance.endpoint is not endpoint:
                    instance.endpoint.note("release", action.reason)
                self.release([instance], action.reason)
        elif isinstance(action, Resume):
            instance = self._world.instances.get(action.instance)
            if instance is not None and instance.state == "paused" and instance.resuming is None:
                self._claims.resume(instance, action.after)
        elif isinstance(action, Launch | WarmNodes):
            log.warning("%s: no provider can launch nodes yet: %s", endpoint.key, action.reason)
        elif isinstance(action, Pause) and not self.adopting:
            instance = self._world.instances.get(action.instance)
            if instance is not None and instance.state == "ready":
                instance.endpoint.note("pause", action.reason)
                self.parking.pause(instance, action.reason)

    def release(self, instances: list[Instance], reason: str, grace_s: float | None = None) -> None:
        """Drain instances: gateways hear of it first, then their hosts.

        Requests that run may finish: the grace is the endpoint's own timeout when that is longer.
        """
        going = [i for i in instances if i.state in ("starting", "ready", "paused")]
        if not going:
            return
        self._routes.publish(removed=[i.id for i in going])
        for instance in going:
            spec = instance.endpoint.spec_of(instance.version) or instance.endpoint.spec
            self._claims.stop(
                instance, reason, max(self._grace_s, spec.timeout) if grace_s is None else grace_s
            )
            self._world.touch(instance.endpoint)
            if instance.outcome is not None and not instance.outcome.done():
                instance.outcome.set_result(wire.Death(reason="stopped", detail=reason))
        self._leaving.watch(going)
        for endpoint in {id(i.endpoint): i.endpoint for i in going}.values():
            self._routes.refresh(endpoint)

    def _waits(self, endpoint: Endpoint, lane: observe.Lane, decision: Decision) -> None:
        waits = any(isinstance(a, Wait) and a.no_room for a in decision.actions)
        self.shortage.note(lane.key, endpoint, waits)

    def _explain(self, endpoint: Endpoint, lane: observe.Lane, decision: Decision) -> None:
        """Why requests wait (or the endpoint failed), for the route and for people."""
        wait = next((a.reason for a in decision.actions if isinstance(a, Wait)), "")
        nodes = next((a for a in decision.actions if isinstance(a, Launch)), None)
        if nodes is not None and not wait:
            wait = f"needs a node ({nodes.offer}), and no provider can launch one yet: add one"
        failing = endpoint.failing
        if failing is not None and failing.version == endpoint.version:
            endpoint.reason = failing.reason
        elif endpoint.version is not None:
            endpoint.reason = wait or self._preparing(endpoint) or observe.unready(endpoint)
        self._routes.refresh(endpoint)

    def _preparing(self, endpoint: Endpoint) -> str:
        """How far the image or the weights are that instances wait for; empty when they don't."""
        if any(i.state == "ready" for i in endpoint.instances.values()):
            return ""
        for instance in endpoint.instances.values():
            if instance.state == "starting" and instance.report is not None and instance.report.note:
                return instance.report.note
        if not endpoint.spec.image.digest or endpoint.version is None:
            return ""
        hosts = (i.host for i in endpoint.instances.values() if i.state == "starting")
        return image_progress(hosts, base_of(endpoint.spec, endpoint.version))

    # -- what hosts report -----------------------------------------------------------------

    def ready(self, instance: Instance) -> None:
        """An instance became ready: gateways get it at once."""
        endpoint = instance.endpoint
        now = self._world.now()
        instance.ready_since = instance.ready_since or now
        if instance.outcome is not None and not instance.outcome.done():
            instance.outcome.set_result(None)
        if endpoint.failing is not None and endpoint.failing.version == instance.version:
            endpoint.recovering, endpoint.failing = endpoint.failing, None
            endpoint.reason = ""
        if endpoint.routable(instance):
            self._routes.publish(instances=[instance])
            self._routes.refresh(endpoint)
        self._world.touch(endpoint)
        if endpoint.rollout_from is not None:
            self.again(endpoint)

    def readiness(self, instance: Instance) -> None:
        """An instance that is ready takes new requests no more, or again: gateways hear of it at once."""
        endpoint = instance.endpoint
        if endpoint.routable(instance):
            self._routes.publish(instances=[instance])
            endpoint.note("ready", f"{instance.id} takes requests again")
        else:
            self._routes.publish(removed=[instance.id])
            endpoint.note("unready", f"{instance.id}: {instance.unready}")
        self._world.touch(endpoint)
        self.again(endpoint)
        self._routes.refresh(endpoint)

    def ended(self, instance: Instance, death: wire.Death, *, told: bool = False) -> None:
        """An instance ended: by our word, or by itself (then it is replaced when it is needed).

        ``told``: gateways know already.
        """
        endpoint = instance.endpoint
        now = self._world.now()
        # The host drains what it finds unhealthy as well: that is not our word.
        ours = instance.state == "draining" and death.reason != "unhealthy"
        ready_for = None if instance.ready_since is None else now - instance.ready_since
        instance.state = "stopped" if death.reason == "stopped" else "failed"
        self._world.remove(instance)
        if instance.outcome is not None and not instance.outcome.done():
            instance.outcome.set_result(death)
        if not told:
            self._routes.publish(dead={instance.id: failures.describe(death)})
        if not ours:
            endpoint.note("died", f"{failures.describe(death)} ({instance.id})")
            runtime = instance.report.runtime if instance.report else endpoint.spec.runtime
            endpoint.last_death = Ended(time.time(), instance.id, runtime, death)
            log.info("instance %s of %s ended: %s", instance.id, endpoint.key, failures.describe(death))
        if not failures.counts(death, ready_for):
            if ready_for is not None and ready_for >= failures.FRESH_S:
                endpoint.recovering = None
        elif not ours and instance.version not in endpoint.trials:
            self._failed(endpoint, instance.version, death, was_ready=ready_for is not None)
        self._world.touch(endpoint)
        self.again(endpoint)
        self.shortage.changed()

    def _overdue(self, endpoint: Endpoint) -> None:
        """A start that its host never finished: the host bounds it by itself, this is the last resort."""
        now = self._world.now()
        for instance in list(endpoint.instances.values()):
            if stranded(instance):
                endpoint.note("resume", f"a request waits in {instance.id}, which is paused")
                self._claims.resume(instance)
            spec = endpoint.spec_of(instance.version) or endpoint.spec
            limit = start_s(spec) + START_MARGIN_S
            if spec.image.digest and image_progress([instance.host], base_of(spec, instance.version)):
                limit += IMAGE_TIMEOUT_S
            late = instance.state == "starting" and now - instance.started > limit
            if late or (instance.resuming is not None and now - instance.resuming > limit):
                self._claims.stop_id(instance.host, instance.id, "it never became ready", 0.0)
                self.ended(
                    instance, wire.Death(reason="start-timeout", detail=f"not ready after {limit:g} s")
                )

    def _failed(self, endpoint: Endpoint, version: int, death: wire.Death, *, was_ready: bool) -> None:
        now = self._world.now()
        before = endpoint.failing or endpoint.recovering
        failing = failures.another(before, version, death, now, was_ready=was_ready)
        if failing.until > now:
            endpoint.failing, endpoint.recovering = failing, None
            endpoint.reason = failing.reason
        else:
            endpoint.recovering = failing

    def _quiet(self, endpoint: Endpoint) -> bool:
        now = self._world.now()
        if endpoint.instances or endpoint.trials or endpoint.pins or endpoint.rollout_from is not None:
            return False
        if endpoint.failing is not None and now < endpoint.failing.until:
            return False
        if endpoint.version is not None and endpoint.bounds[0] > 0:
            return False
        in_flight, queued, _ = endpoint.seen(now)
        return not in_flight and not queued
