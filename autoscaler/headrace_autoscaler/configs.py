"""The parameters of the policy's parts, with their defaults; `spec.Config` holds them."""

from __future__ import annotations

from headrace_autoscaler.values import Value


class DemandConfig(Value, frozen=True, kw_only=True):
    """How demand is read."""


class ForecastConfig(Value, frozen=True, kw_only=True):
    """How demand is forecast."""


class KeepConfig(Value, frozen=True, kw_only=True):
    """When idle instances are kept."""


class BurstConfig(Value, frozen=True, kw_only=True):
    """How offers are chosen, and left alone after failures."""


class LimitConfig(Value, frozen=True, kw_only=True):
    """Budgets and cool-downs of all endpoints together."""

    budget: float | None = None
    """Dollars per hour that all endpoints together may spend; None: no limit."""


class PoolConfig(Value, frozen=True, kw_only=True):
    """How large warm pools are."""
