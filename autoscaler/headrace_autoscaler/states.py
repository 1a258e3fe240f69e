"""What the policy remembers between decisions, part by part; `spec.State` holds them."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace_autoscaler.values import Value


class WindowState(Value, frozen=True, kw_only=True):
    """What was read of an endpoint's counters lately, see `headrace_autoscaler.signals`."""

    samples: tuple[tuple[float, float, int | None], ...] = ()
    """(when, ``demand_s``, ``arrived``), oldest first; at most `signals.MAX_SAMPLES`."""


class ServiceState(Value, frozen=True, kw_only=True):
    """How long requests take, as a sketch, see `headrace_autoscaler.service`."""

    bins: tuple[tuple[int, int], ...] = ()
    """(number of the bin, requests in it), in order, none empty; at most `service.BINS`."""
    total: int = 0
    """Requests in all of them."""
    seconds: float = 0.0
    """What those took together."""


class PanicState(Value, frozen=True, kw_only=True):
    """A burst that goes on, see `headrace_autoscaler.panic`."""

    until: float = 0.0
    most: float = 0.0
    """The most instances that were asked for since it began."""


class DemandState(Value, frozen=True, kw_only=True):
    """What is remembered of one endpoint's demand."""

    window: WindowState = WindowState()
    service: ServiceState = ServiceState()
    panic: PanicState | None = None
    """None: there is no burst."""


class ForecastState(Value, frozen=True, kw_only=True):
    """What the forecast has learnt of one endpoint."""


class KeepState(Value, frozen=True, kw_only=True):
    """What is known of one endpoint's idle times."""


class Refusal(Value, frozen=True, kw_only=True):
    """A cloud that said no: how often in a row, and until when it is not asked."""

    kind: Literal["capacity", "outage", "quota"]
    failed_at: float
    rounds: int
    """Times that it was asked in vain; launches that fail together are one."""
    until: float


class BurstState(Value, frozen=True, kw_only=True):
    """What bursting remembers of one endpoint."""

    refusals: dict[str, Refusal] = msgspec.field(default_factory=dict)
    """By ``provider/region/kind/spot or on-demand``, an outage by ``provider/region``; only what failed
    last, so never more than there are offers."""


class PoolState(Value, frozen=True, kw_only=True):
    """What is known of the claims on one pool of warm sandboxes."""
