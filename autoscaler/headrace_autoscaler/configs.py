"""The parameters of the policy's parts, with their defaults; `spec.Config` holds them."""

from __future__ import annotations

from headrace_autoscaler.values import Value


class DemandConfig(Value, frozen=True, kw_only=True):
    """How demand is read. The windows are Knative's in idea and in length."""

    stable_s: float = 60.0
    """Seconds over which concurrency is averaged."""
    panic_s: float = 6.0
    """Seconds over which a burst is looked for."""
    panic_threshold: float = 2.0
    """A burst: the short window asks for so many times the instances that are ready."""
    panic_hold_s: float = 60.0
    """A burst is over so long after it was last seen; until then nothing shrinks."""
    late_s: float = 2.0
    """A request that waited so long makes every one that is there count, whatever the averages say."""


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
