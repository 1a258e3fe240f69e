"""How many spares hosts keep of each base: looked at now and then, decided by the autoscaler, told to hosts.

Hosts make spares one after the other and never while an instance starts, so no request waits for one.
"""

from __future__ import annotations

import hashlib
import logging

import msgspec
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import Config, Observation, PoolObservation, Record, Refill, State
from headrace_autoscaler.states import PoolState

from headrace import wire
from headrace.control.claims import base_of
from headrace.control.history import History
from headrace.control.model import Host, Instance, World
from headrace.control.observe import host_seen
from headrace.control.warm import Warm

log = logging.getLogger("headrace.control")
LOOK_EVERY_S = 2.0
MAX_POOLS = 2000
"""Looked at in one go; the bases wanted most come first."""
MAX_BASES = 256
"""Bases of one host whose starts are counted; of more, those asked for longest ago are forgotten."""
MAX_SPARES = 64
WARM: wire.Tier = "warm"
_canonical = msgspec.msgpack.Encoder(order="deterministic")


class Pools:
    """Of all hosts."""

    def __init__(self, world: World, warm: Warm, history: History, *, config: Config) -> None:
        self._world = world
        self._warm = warm
        self._history = history
        self._config = config
        self._memory: dict[str, PoolState] = {}
        self._names: dict[wire.BaseSpec, str] = {}
        self._look_at = world.now() + LOOK_EVERY_S

    def claimed(self, instance: Instance, tier: wire.Tier) -> None:
        """An instance has become ready, from a spare or without one."""
        spec = instance.endpoint.spec_of(instance.version)
        if spec is None or spec.snapshot == "none":
            return
        base = base_of(spec, instance.version, self._world.secrets_of(spec))
        counts = instance.host.claims
        claimed, missed = counts.pop(base, (0, 0))
        if len(counts) >= MAX_BASES:
            del counts[next(iter(counts))]
        counts[base] = claimed + 1, missed + (tier != WARM)

    def tick(self) -> None:
        """Look, when it is time."""
        if self._world.now() >= self._look_at:
            self._look_at = self._world.now() + LOOK_EVERY_S
            self.look()

    def look(self) -> None:
        """Decide how large the pools are, and tell the hosts what has changed."""
        self._warm.tidy()
        bases = self._warm.bases()
        self._names = {base: self._names.get(base) or name_of(base) for base in bases}
        pools = self.seen()
        if not pools:
            return
        now = self._world.now()
        hosts = (host_seen(host, "", wire.BaseSpec(), now) for host in self._world.living_hosts())
        shown = (msgspec.structs.replace(host, warm=()) for host in hosts if host is not None)
        observation = Observation(endpoints=(), hosts=tuple(shown), pools=pools)
        before = State(pools=self._memory)
        decision = decide(now, observation, before, self._config)
        self._memory = decision.state.pools
        named = {name: base for base, name in self._names.items()}
        changed = False
        for action in decision.actions:
            host = self._world.hosts.get(action.host) if isinstance(action, Refill) else None
            base = named.get(action.base) if isinstance(action, Refill) else None
            if not isinstance(action, Refill) or host is None or base is None or not host.usable:
                continue
            # The setting is what is kept where nobody has come yet: a pool is never smaller.
            count = max(self._warm.spares, min(MAX_SPARES, action.count))
            if count != self._warm.size(host, base):
                self._warm.resize(host, base, count)
                log.info("host %s: %d spares of %s: %s", host.id, count, action.base, action.reason)
                changed = True
        if changed:
            record = Record(
                now=now, observation=observation, state=before, config=self._config, decision=decision
            )
            self._history.record(record)

    def seen(self) -> tuple[PoolObservation, ...]:
        """The pools of all hosts, as the autoscaler sees them."""
        found: list[PoolObservation] = []
        for base, name in self._names.items():
            for host in self._world.living_hosts():
                if len(found) >= MAX_POOLS:
                    return tuple(found)
                report = host.warm.get(base)
                # What it costs is not known before the host has looked; that is not nothing.
                if host.usable and report is not None and report.state != "failed" and report.bytes:
                    found.append(self._pool(host, base, name, report))
        return tuple(found)

    def _pool(self, host: Host, base: wire.BaseSpec, name: str, report: wire.WarmReport) -> PoolObservation:
        claimed, missed = host.claims.get(base, (0, 0))
        # A zygote beside its spares is about as large as one of them.
        holders = report.spares + 1 if base.runtime == "process" and not base.image else report.spares
        memory = report.bytes // max(1, holders)
        whole = host.hello.resources.memory
        # A host without a price is taken for one at a dollar per hour: what waits there takes from others.
        return PoolObservation(
            host=host.id,
            base=name,
            ready=report.spares,
            making=max(0, self._warm.size(host, base) - report.spares),
            claimed=claimed,
            missed=missed,
            cost=(host.hello.price or 1.0) * memory / whole if whole else 0.0,
            memory=memory,
            refill_s=report.refill_s,
        )


def name_of(base: wire.BaseSpec) -> str:
    """A base's name in pools: what it is for people, and a digest that tells it from all others."""
    what = base.loaded.endpoint if base.loaded is not None else base.image[:12] or base.project
    return f"{base.runtime}:{what}:{hashlib.sha256(_canonical.encode(base)).hexdigest()[:12]}"
