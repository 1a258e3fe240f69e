"""Claims: from a decision to a `StartInstance` or `StopInstance` on a host. No fsync, no waiting."""

from __future__ import annotations

import hashlib
import logging
import secrets

import msgspec
from headrace_autoscaler.placement import pick_gpu

from headrace import wire
from headrace.control.model import Endpoint, Host, Instance, World, gpu_pairs
from headrace.control.probing import probes_of
from headrace.control.vault import Vault
from headrace.errors import LinkClosed
from headrace.sdk.spec import EndpointSpec

log = logging.getLogger("headrace.control")


def base_of(spec: EndpointSpec, version: int, secrets: tuple[wire.SecretRef, ...] = ()) -> wire.BaseSpec:
    """The zygote that instances of this version come from; equal for all endpoints that can share one.

    ``secrets``: those of the endpoint (`World.secrets_of`): a base that has loaded it has seen them.
    """
    loaded = None
    if spec.snapshot == "loaded":
        env = tuple(sorted(spec.env.items()))
        loaded = wire.LoadedBase(
            endpoint=spec.key,
            version=version,
            bundle=spec.bundle,
            entry=spec.entry,
            env_hash=hashlib.sha256(msgspec.json.encode(env)).hexdigest(),
            handler=spec.handler,
            env=env,
            load_timeout_s=spec.load_timeout,
            secrets=secrets,
        )
    return wire.BaseSpec(
        project=spec.project,
        runtime=spec.runtime,
        image=spec.image.digest,
        context=spec.image.context,
        preload=spec.preload,
        imports=spec.imports,
        loaded=loaded,
        network=spec.network.mode if spec.network is not None else "",
        allow=spec.network.allow if spec.network is not None else (),
    )


def instance_spec(
    spec: EndpointSpec,
    version: int,
    gpu: tuple[str, int] | None,
    secrets: tuple[wire.SecretRef, ...] = (),
) -> wire.InstanceSpec:
    """All that a host needs; ``gpu`` is the one of the preferences that was chosen."""
    batch = spec.batch
    return wire.InstanceSpec(
        endpoint=spec.key,
        version=version,
        base=base_of(spec, version, secrets),
        bundle=spec.bundle,
        entry=spec.entry,
        handler=spec.handler,
        snapshot=spec.snapshot,
        env=spec.env,
        concurrency=spec.concurrency,
        batch_max_size=batch.max_size if batch else 0,
        batch_max_wait_ms=batch.max_wait_ms if batch else 0.0,
        timeout_s=spec.timeout,
        load_timeout_s=spec.load_timeout,
        cpu=spec.cpu,
        memory=spec.memory,
        memory_limit=spec.memory_limit,
        cpu_limit=spec.cpu_limit,
        gpu=(gpu,) if gpu else (),
        max_body=spec.max_body,
        secrets=secrets,
        probes=probes_of(spec.probes),
        weights=tuple(
            wire.WeightsSpec(source=w.source, name=w.name, sha256=w.sha256 or "") for w in spec.weights
        ),
    )


class Claims:
    """Sends the commands and keeps the tables in step."""

    def __init__(self, world: World, epoch: int, vault: Vault) -> None:
        self._world = world
        self._epoch = epoch
        self._vault = vault

    def start(
        self,
        endpoint: Endpoint,
        version: int,
        host: Host,
        *,
        woken: float | None = None,
        after: tuple[str, ...] = (),
    ) -> Instance | None:
        """Claim one instance on ``host``; ``woken``: when the wake came. None when the host just went."""
        spec = endpoint.spec_of(version)
        assert spec is not None, "only versions that control holds are started"
        free = host.free()[2]
        for id in after:
            # What those have who give way is free when it begins; until then they are booked, too.
            leaving = self._world.instances.get(id)
            if leaving is not None and leaving.gpu is not None and leaving.state == "draining":
                free[leaving.gpu[0]] = free.get(leaving.gpu[0], 0) + leaving.gpu[1]
        found = pick_gpu(free, gpu_pairs(spec.gpu))
        gpu = found[1] if found else None
        now = self._world.now()
        instance = Instance(
            id=f"i{secrets.token_hex(6)}",
            endpoint=endpoint,
            version=version,
            host=host,
            cpu=spec.cpu,
            memory=spec.memory,
            gpu=gpu,
            started=now,
        )
        claim = now - woken if woken is not None else 0.0
        values, why_not = self._vault.given(spec)
        message = wire.StartInstance(
            epoch=self._epoch,
            id=instance.id,
            spec=instance_spec(spec, version, gpu, self._world.secrets_of(spec)),
            claim_s=claim,
            after=after,
            secrets=values,
            refused=why_not,
        )
        if not self._send(host, message):
            return None
        self._world.add(instance)
        return instance

    def pause(self, instance: Instance, reason: str, grace_s: float) -> None:
        """Freeze an instance. Gateways must have been told before, and have nothing running there."""
        message = wire.PauseInstance(epoch=self._epoch, id=instance.id, grace_s=grace_s, reason=reason)
        self._send(instance.host, message)

    def resume(self, instance: Instance, after: tuple[str, ...] = ()) -> None:
        """Let a paused instance go on."""
        self._world.turn(instance, "paused", resuming=True)
        message = wire.ResumeInstance(epoch=self._epoch, id=instance.id, after=after)
        self._send(instance.host, message)

    def stop(self, instance: Instance, reason: str, grace_s: float) -> None:
        """Drain and end an instance. Gateways must have been told before."""
        instance.state = "draining"
        if not instance.in_flight and not instance.parked:
            instance.host.leaving[instance] = self._world.now()
        self.stop_id(instance.host, instance.id, reason, grace_s)

    def stop_id(self, host: Host, id: str, reason: str, grace_s: float) -> None:
        """The same for one that control does not know (any more)."""
        self._send(host, wire.StopInstance(epoch=self._epoch, id=id, grace_s=grace_s, reason=reason))

    def warm(self, host: Host, bases: tuple[tuple[wire.BaseSpec, int], ...]) -> None:
        """Tell a host which zygotes to hold, when that changed."""
        if host.asked != bases:
            values = self._vault.of_bases(base for base, _ in bases)
            if self._send(host, wire.SetWarm(epoch=self._epoch, bases=list(bases), secrets=values)):
                host.asked = bases

    def hurry(self, instance: Instance) -> None:
        """One that was told to stop need not wait for requests on their way: all gateways have left it."""
        self._send(instance.host, wire.InstanceLeft(epoch=self._epoch, id=instance.id))

    def drain_host(self, host: Host, grace_s: float) -> None:
        """Let a host take nothing new and end what it has."""
        self._send(host, wire.DrainHost(epoch=self._epoch, grace_s=grace_s))

    def _send(self, host: Host, message: wire.AnyMessage) -> bool:
        if host.link is None:
            return False
        try:
            host.link.send(message)
        except LinkClosed:
            log.info("host %s is gone; %s was not sent", host.id, type(message).__name__)
            return False
        return True
