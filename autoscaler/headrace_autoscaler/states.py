"""What the policy remembers between decisions, part by part; `spec.State` holds them."""

from __future__ import annotations

from headrace_autoscaler.values import Value


class ForecastState(Value, frozen=True, kw_only=True):
    """What the forecast has learnt of one endpoint."""


class KeepState(Value, frozen=True, kw_only=True):
    """What is known of one endpoint's idle times."""


class BurstState(Value, frozen=True, kw_only=True):
    """What bursting remembers of one endpoint."""


class PoolState(Value, frozen=True, kw_only=True):
    """What is known of the claims on one pool of warm sandboxes."""
