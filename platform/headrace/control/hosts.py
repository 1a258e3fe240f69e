"""Hosts: who is there, what they run, who is late, who is dead.

A host says `HostHello` with its whole inventory on every link: that is the truth, and control's tables
follow it. It is suspect when it was silent for 1.5 s or its link ended (nothing new goes there), dead
after 3 s, and at once when another incarnation of the same node says hello.
"""

from __future__ import annotations

import logging

import msgspec

from headrace import wire
from headrace.control import state
from headrace.control.claims import Claims
from headrace.control.model import BEAT_COUNTS_AFTER_S, Endpoint, Host, Instance, World
from headrace.control.parking import heard
from headrace.control.pools import Pools
from headrace.control.reconcile import Reconciler
from headrace.control.routes import Routes
from headrace.control.warm import Warm
from headrace.link import Link

log = logging.getLogger("headrace.control")
FORGET_DEAD_S = 60.0
"""Dead hosts are shown this long."""
STOP_AGAIN_GRACE_S = 30.0
CHECK_STALL_S = 1.0
"""When checks are further apart than this, control itself stood still: heartbeats wait unread."""


class Hosts:
    """Keeps the tables of hosts and instances in step with what hosts say."""

    def __init__(
        self,
        world: World,
        claims: Claims,
        routes: Routes,
        reconciler: Reconciler,
        warm: Warm,
        *,
        pools: Pools,
    ) -> None:
        self._world = world
        self._claims = claims
        self._routes = routes
        self._reconciler = reconciler
        self._warm = warm
        self._pools = pools
        self._checked = world.now()

    # -- messages --------------------------------------------------------------------------

    def hello(self, link: Link, message: wire.HostHello) -> Host:
        """A host connected (again): take over its inventory."""
        for other in list(self._world.hosts.values()):
            if other.hello.node == message.node and other.id != message.host and other.state != "dead":
                self._die(other, f"a new host took over node {message.node}")
        host = self._world.hosts.get(message.host)
        if host is None:
            host = Host(hello=message, link=link)
            self._world.hosts[host.id] = host
        elif host.link is not None and host.link is not link:
            host.link.close("the host connected again")
        host.hello, host.link, host.asked = message, link, ()
        host.last_seen = self._world.now()
        if host.state != "draining":
            self._move(host, "ready")
        host.warm = {report.base: report for report in message.warm}
        self._inventory(host, message.instances)
        self._warm.push_to(host)
        for endpoint in list(self._world.active.values()):
            self._reconciler.again(endpoint)
        return host

    def heartbeat(self, host: Host, message: wire.Heartbeat) -> None:
        """A sign of life, with the load of its instances."""
        now = self._world.now()
        host.last_seen = now
        host.checkpoints = message.checkpoints
        if message.capabilities:
            self._found_out(host, message)
        if host.state == "suspect":
            self._move(host, "ready")
            self._mark(host)
        for instance in host.instances.values():
            known = now - instance.told < BEAT_COUNTS_AFTER_S
            instance.beating = 0 if known else message.in_flight.get(instance.id, 0)
            if instance.beating:
                instance.last_used = now
            if (use := message.use.get(instance.id)) is not None:
                instance.use = use

    def _found_out(self, host: Host, message: wire.Heartbeat) -> None:
        """What its runtimes can do has changed, or it has one more."""
        able, before = message.capabilities, host.hello
        host.hello = msgspec.structs.replace(
            before, capabilities=able, pauses=message.pauses, runtimes=tuple(able),
            missing={name: why for name, why in before.missing.items() if name not in able},
        )  # fmt: skip
        if set(able).difference(before.runtimes):
            self._warm.push_to(host)
            for endpoint in list(self._world.active.values()):
                self._reconciler.again(endpoint)

    def event(self, host: Host, report: wire.InstanceReport) -> None:
        """An instance changed state."""
        host.last_seen = self._world.now()
        instance = self._world.instances.get(report.id)
        if instance is None or instance.host is not host:
            if report.state not in ("stopped", "failed"):
                self._adopt(host, report)
            return
        before = instance.report.state if instance.report is not None else None
        resuming = instance.resuming is not None
        turned = heard(instance.state, report.state, before=before, resuming=resuming)
        if report.state in ("stopped", "failed"):
            instance.report = report
            fallback: wire.Death = wire.Death(
                reason="stopped" if report.state == "stopped" else "exited",
                detail=f"the host says {report.state}",
            )
            self._reconciler.ended(instance, report.death or fallback)
        elif not state.allowed(state.INSTANCE, instance.state, report.state):
            log.debug("instance %s: %s after %s is stale", report.id, report.state, instance.state)
        elif report.state == "ready" and instance.state == "starting":
            instance.report, instance.state = report, "ready"
            took = max(host.last_seen - instance.started, report.timings.total_s)
            instance.endpoint.signals.started(report.tier, took)
            self._pools.claimed(instance, report.tier)
            self._reconciler.ready(instance)
        elif turned in ("paused", "seen"):
            instance.report = report
            if turned == "paused":
                self._world.turn(instance, "paused")
                self._routes.publish(removed=[instance.id])
            self._reconciler.again(instance.endpoint)
            self._reconciler.shortage.changed()
        elif turned == "ready":
            self._world.turn(instance, "ready")
            # Held for those who called it, as a new one is.
            instance.report, instance.ready_since, instance.last_used = report, None, None
            self._reconciler.ready(instance)
        elif report.state == "starting" and report.note:
            # It waits for its weights, and they come.
            instance.report, instance.started = report, self._world.now()
            self._reconciler.again(instance.endpoint)
        elif report.state == "draining" and instance.state != "draining":
            instance.report, instance.state = report, "draining"
            self._routes.publish(removed=[instance.id])
            self._reconciler.again(instance.endpoint)
        elif report.unready != instance.unready and instance.state == "ready":
            instance.report = report
            self._reconciler.readiness(instance)
        else:
            instance.report = report

    def warm_event(self, host: Host, report: wire.WarmReport) -> None:
        """A zygote changed state."""
        host.last_seen = self._world.now()
        host.warm[report.base] = report
        wanted = {base for base, _ in host.asked}
        for base in [b for b, r in host.warm.items() if r.state == "failed" and b not in wanted]:
            del host.warm[base]

    def closed(self, host: Host, link: Link) -> None:
        """A host's link ended: nothing new goes there; what runs there goes on."""
        if host.link is not link:
            return
        host.link = None
        if host.state == "ready":
            self._move(host, "suspect")
            self._mark(host)

    # -- time ------------------------------------------------------------------------------

    def check(self) -> None:
        """Find hosts that are late or dead."""
        now = self._world.now()
        stalled = now - self._checked > CHECK_STALL_S
        self._checked = now
        if stalled:
            return
        for host in list(self._world.hosts.values()):
            silent = now - host.last_seen
            if host.state == "dead":
                if now - host.died > FORGET_DEAD_S:
                    del self._world.hosts[host.id]
            elif silent > wire.DEAD_AFTER_S:
                self._die(host, f"host {host.id} was silent for {silent:.1f} s")
            elif silent > wire.SUSPECT_AFTER_S and host.state == "ready":
                self._move(host, "suspect")
                self._mark(host)

    def drain(self, host: Host, grace_s: float) -> None:
        """Take a host out of service: its instances leave the routes, then it ends them."""
        self._move(host, "draining")
        going = [i for i in host.instances.values() if i.alive]
        self._routes.publish(removed=[i.id for i in going])
        for instance in going:
            instance.state = "draining"
        self._claims.drain_host(host, grace_s)
        for endpoint in {i.endpoint.key: i.endpoint for i in going}.values():
            self._reconciler.again(endpoint)

    # -- inside ----------------------------------------------------------------------------

    def _inventory(self, host: Host, reports: list[wire.InstanceReport]) -> None:
        known = {report.id for report in reports}
        for instance in list(host.instances.values()):
            if instance.id not in known:
                # The command or the news of its end was lost with the link.
                ours = instance.state == "draining"
                reason = "stopped" if ours else "host-lost"
                death = wire.Death(reason=reason, detail="the host does not have it any more")  # type: ignore[arg-type]
                self._reconciler.ended(instance, death)
        for report in reports:
            known_here = host.instances.get(report.id)
            if known_here is not None:
                if known_here.state == "draining" and report.state in ("starting", "ready"):
                    self._claims.stop_id(host, report.id, "the stop before may be lost", STOP_AGAIN_GRACE_S)
                elif known_here.state == "paused":
                    # The command before may be lost; twice it does no harm.
                    if known_here.resuming is not None:
                        going = ("draining", "paused")
                        after = tuple(i.id for i in host.instances.values() if i.gpu and i.state in going)
                        self._claims.resume(known_here, after)
                    elif report.state == "ready":
                        self._reconciler.parking.pause(known_here, "the pause before may be lost")
                        continue
                self.event(host, report)
            elif report.state not in ("stopped", "failed"):
                self._adopt(host, report)
        self._mark(host)

    def _adopt(self, host: Host, report: wire.InstanceReport) -> None:
        endpoint = self._world.endpoints.get(report.endpoint)
        other = self._world.instances.get(report.id)
        if other is not None:
            self._world.remove(other)
        if endpoint is None or not _adoptable(endpoint, report.version):
            reason = "its endpoint is gone" if endpoint is None else f"version {report.version} is not kept"
            self._claims.stop_id(host, report.id, reason, 0.0)
            return
        now = self._world.now()
        spec = endpoint.spec_of(report.version) or endpoint.spec
        ready = report.state == "ready"
        instance = Instance(
            id=report.id,
            endpoint=endpoint,
            version=report.version,
            host=host,
            cpu=spec.cpu,
            memory=spec.memory,
            gpu=report.gpu[0] if report.gpu else None,
            state=report.state,
            report=report,
            started=now,
            ready_since=now if ready else None,
            parked=report.state == "paused",
        )
        self._world.add(instance)
        log.info("instance %s of %s on %s is adopted", instance.id, endpoint.key, host.id)
        if report.version != endpoint.version and report.version not in endpoint.pins:
            # A rollout that control's predecessor did not finish.
            endpoint.rollout_from = report.version
        if ready and endpoint.routable(instance):
            self._routes.publish(instances=[instance])
        self._routes.refresh(endpoint)

    def _die(self, host: Host, why: str) -> None:
        log.warning("host %s is dead: %s", host.id, why)
        self._move(host, "dead")
        host.died = self._world.now()
        if host.link is not None:
            link, host.link = host.link, None
            link.close(why)
        gone = list(host.instances.values())
        if gone:
            # In one message, before anything is started anew: gateways fail over at once.
            self._routes.publish(dead={i.id: f"host-lost: {why}" for i in gone})
        for instance in gone:
            self._reconciler.ended(instance, wire.Death(reason="host-lost", detail=why), told=True)

    def _mark(self, host: Host) -> None:
        """Tell gateways whether this host's instances are suspect."""
        shown = [i for i in host.instances.values() if i.endpoint.routable(i)]
        if shown:
            self._routes.publish(instances=shown)

    def _move(self, host: Host, new: wire.HostState) -> None:
        if host.state != new:
            state.check(state.HOST, host.state, new)
            log.info("host %s (node %s): %s -> %s", host.id, host.hello.node, host.state, new)
            host.state = new


def _adoptable(endpoint: Endpoint, version: int) -> bool:
    """Whether an instance of this version may stay: it was current once (a trial's was not)."""
    return not endpoint.deleting and (version == endpoint.version or version in endpoint.versions)
