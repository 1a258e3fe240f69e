"""The parameters of the policy's parts, with their defaults; `spec.Config` holds them."""

from __future__ import annotations

from headrace_autoscaler.values import Value


class DemandConfig(Value, frozen=True, kw_only=True):
    """How demand is read. The windows are Knative's in idea and in length; see `panic`."""

    stable_s: float = 60.0
    """Seconds over which concurrency is averaged, of endpoints that are scaled on tokens; counters are
    remembered for so long."""
    panic_s: float = 6.0
    """Seconds over which a burst is looked for. How large it is sizes only what is scaled on tokens."""
    panic_threshold: float = 2.0
    """A burst: the short window asks for so many times the instances that are ready."""
    panic_hold_s: float = 60.0
    """A burst is over so long after it was last seen. Until then nothing is let go, where starts take longer
    than ``goal_s``."""
    goal_s: float = 10.0
    """Nobody should wait for longer; waiting less is worth nothing."""
    spare_starts: float = 1.7
    """What a start for those who wait costs for each request that it keeps from being late, in times its
    seconds: the chance worth it is ``late_s / (late_s + spare_starts * start_s)`` (newsvendor), with
    `KeepConfig.late_s`. So sure it must be that a queue is served in time without."""
    staff_share: float = 1.12
    """Where starts take longer than anybody should wait, instances are there before they are asked for:
    so many times the level of demand,"""
    staff_root: float = -0.6
    """and the square root of it (square-root staffing: Halfin, Whitt 1981) times this and the quantile of
    the normal distribution for the chance that is worth its cost,"""
    staff_less: float = 0.8
    """less so many instances."""
    spare_s: float = 70.0
    """What a spare costs for each request that it keeps from being late, in its seconds: the chance worth
    its cost is ``late_s / (late_s + spare_s)`` (newsvendor), with `KeepConfig.late_s`."""
    trust: bool = True
    """Whether the level is what the forecast says, where it knows; else what was smoothed."""
    quantile: float = 0.9
    """The range in which a forecast must be sure enough."""
    late_s: float = 2.0
    """A request that waited so long makes every one that is there count, whatever the averages say; of
    endpoints that are scaled on tokens only."""


class ForecastConfig(Value, frozen=True, kw_only=True):
    """How demand is forecast."""

    step_s: float = 10.0
    """It learns once in so many seconds."""
    horizons_s: tuple[float, ...] = (15.0, 90.0, 300.0, 1800.0)
    """Seconds ahead for which it learns, ascending; what is between them is interpolated."""
    gap_s: float = 120.0
    """After so long without a lesson, what was smoothed is begun anew."""
    weekend: tuple[int, ...] = (2, 3)
    """Days of seven, counted from the clock's zero, that have a daily course of their own. Unix time began
    on a Thursday: these are Saturday and Sunday."""
    enough: int = 30
    """Forecasts that must have come due before one is given."""
    widest: float = 3.0
    """A range wider than so many times (value + 1) says nothing."""
    most_outside: float = 0.3
    """A range meant to hold nine of ten, and missed by more than this share of late, isn't to be trusted."""


class KeepConfig(Value, frozen=True, kw_only=True):
    """When idle instances are kept. Seconds of an instance are the unit in which all of it is weighed."""

    restart: float = 0.34
    """How much more a start costs than the part of it that nobody should have to wait for, as the queue
    that it lets grow is dear: that part is taken 1 + ``restart`` * log(1 + ``late_s`` / 40) times."""
    late_s: float = 2000.0
    """What a request that waits for too long costs, to begin with. The knob between cost and waiting: what is
    idle is kept for longer, and more are there ahead of demand, the dearer it is."""
    share: float = 0.992
    """So many of the requests shall not be late: while fewer are in time, a late one costs ever more, up to
    4 times ``late_s``, and while more are, ever less, down to half of it (`lateness`). 0: ``late_s``."""
    least_s: float = 2.0
    """Nothing idle goes sooner, however cheap a start is."""
    prior: float = 20.0
    """How many idle times the assumption made before any was seen weighs as much as."""
    memory: float = 400.0
    """Idle times at which those of a level are halved, to forget."""


class BurstConfig(Value, frozen=True, kw_only=True):
    """How offers are chosen, and left alone after failures."""

    need_s: float = 600.0
    """How long a launched instance is expected to be needed: minimum billing counts in the price by it."""
    boot_s: float = 120.0
    """Taken for the boot of an offer where none was seen yet."""
    patience: float = 1.5
    """At ``balance`` 0.5, spot that boots counts as there for this many of its boot times."""
    hedge: float = 0.5
    """At ``balance`` 0.5, the part of what is wanted that losing one zone must leave."""
    reserve: float = 0.0
    """At ``balance`` 0.5, the part of what is wanted that is on demand while only one zone has spot."""
    saving: float = 0.2
    """Spot that saves less than this part of the cheapest on-demand price is not launched."""
    alarm_s: float = 300.0
    """For so long after spot was taken away only spot that is ready counts."""
    preempted_s: float = 1800.0
    """For so long a zone that took spot away is trusted with one instance only, until that is ready."""
    capacity_base_s: float = 60.0
    """First pause after an offer had no capacity; each failure in a row makes it 1.5 to 2.5 times as long."""
    outage_base_s: float = 30.0
    """The same after an error of the provider, for all that it offers in that region."""
    quota_base_s: float = 300.0
    """The same after a quota, or a request that is refused as such (credentials)."""
    backoff_cap_s: float = 1800.0
    """No pause after failures is longer (the cluster-autoscaler of Kubernetes: 30 min)."""
    quota_cap_s: float = 7200.0
    """The same for quotas, which people change and not minutes."""


class LimitConfig(Value, frozen=True, kw_only=True):
    """Budgets and cool-downs of all endpoints together."""

    budget: float | None = None
    """Dollars per hour that all endpoints together may spend; None: no limit."""
    up_cool_down_s: float = 0.0
    """Seconds after an increase in which there is no further one, unless requests wait."""
    down_cool_down_s: float = 0.0
    """Seconds after any change in which there is no decrease."""


class PoolConfig(Value, frozen=True, kw_only=True):
    """How large warm pools are."""

    wait_cost: float = 10.0
    """Dollars that an hour of a request's waiting is worth: against it stands what a spare costs per hour."""
    enough: int = 20
    """Windows that must have been seen before a size is changed."""
    memory_share: float = 0.25
    """Part of a host's free memory that further spares may take."""
