"""An endpoint's probes as hosts get them, and how long a start may take because of them. Pure."""

from __future__ import annotations

from headrace import wire
from headrace.sdk.probes import Probe, Probes
from headrace.sdk.spec import EndpointSpec


def probes_of(probes: Probes) -> wire.Probes:
    """What a host asks; without a liveness probe of its own an endpoint has the lenient default."""
    default = wire.Probes().liveness
    return wire.Probes(
        startup=probe_of(probes.startup),
        readiness=probe_of(probes.readiness),
        liveness=probe_of(probes.liveness) or default,
    )


def probe_of(probe: Probe | None) -> wire.Probe | None:
    """One of them."""
    if probe is None:
        return None
    return wire.Probe(
        kind="http" if probe.http else "tcp" if probe.tcp else "exec" if probe.exec else "health",
        path=probe.http,
        argv=probe.exec,
        period_s=probe.period,
        timeout_s=probe.timeout,
        failure_threshold=probe.failure_threshold,
        success_threshold=probe.success_threshold,
        initial_delay_s=probe.initial_delay,
        jitter=probe.jitter,
    )


def start_s(spec: EndpointSpec) -> float:
    """Seconds that load and probes of a start may take together; its host holds each to its own bound."""
    startup, readiness = spec.probes.startup, spec.probes.readiness
    return spec.load_timeout * (1 if readiness is None else 2) + (startup.patience if startup else 0.0)
