"""What is simulated: requests, where instances may run and what that costs, what fails. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival. Times are seconds from 0; ``durations`` seconds of service."""

    name: str
    arrivals: Floats
    durations: Floats
    endpoints: NDArray[np.int32]
    """Index into ``names``, per request."""
    names: tuple[str, ...] = ("endpoint",)

    @property
    def end(self) -> float:
        """Seconds from 0 to the last arrival."""
        return float(self.arrivals[-1]) if len(self.arrivals) else 0.0


@dataclass(frozen=True)
class Draw:
    """A distribution of seconds: ``median`` spread by ``jitter``, or measured ``samples`` as they are.

    ``jitter`` is the half width of a uniform draw as part of the median (0.1: 90 % to 110 %); with
    ``sigma`` above 0 the draw is log-normal with that standard deviation of its logarithm instead.
    ``samples`` (when there are any) are drawn from with equal chances and scaled to ``median`` unless
    that is 0.
    """

    median: float
    jitter: float = 0.1
    sigma: float = 0.0
    samples: tuple[float, ...] = ()


@dataclass(frozen=True)
class Steps:
    """An availability trace: from ``times[i]`` on it is ``values[i]`` (1: there; 0: not)."""

    times: tuple[float, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Supply:
    """One place that instances come from: home, or one offer of a provider; one instance per node there.

    Home (``owned``) has ``capacity`` instances that are paid for all the time when ``standing`` is set,
    else by use. An offer is paid by the second from launch to end, at least ``min_billing_s``.
    """

    name: str
    price: float
    """Dollars per hour of one instance."""
    boot: Draw
    """Launch to ready, nothing there yet."""
    warm: Draw | None = None
    """Ready from a warm sandbox on a node that is up (home only); None: there are none."""
    cached: Draw | None = None
    """Ready on a node that is up, with image and weights there (home only); None: as ``boot``. They are
    there from an endpoint's first start at this supply on, which takes ``boot``."""
    warm_sandboxes: int = 0
    """How many warm sandboxes home holds; each is made again ``cached`` seconds after its claim."""
    capacity: int | None = None
    owned: bool = False
    standing: bool = False
    provider: str = "cloud"
    region: str = "region"
    kind: str = "gpu"
    spot: bool = False
    min_billing_s: float = 0.0
    availability: Steps | None = None
    """For spot: while 0 nothing can be launched, and what runs is preempted after ``notice_s``."""
    notice_s: float = 120.0
    drain_s: float | None = None
    """After the notice an instance goes on to take requests (when no other is free) until so long before
    its loss; None: it takes none from the notice on."""
    outages: tuple[tuple[float, float], ...] = ()
    """(from, until) in which launches fail, and what runs there is lost at its begin."""
    mtbf_s: float | None = None
    """Mean seconds between failures of one node (exponential); None: nodes do not fail."""
    repair_s: float = 0.0
    """For home: how long a failed node's place is gone."""


@dataclass(frozen=True)
class Wish:
    """How one endpoint scales; the fields are those of `headrace_autoscaler.spec.ScalingSpec`."""

    min: int = 0
    max: int = 1000
    concurrency: int = 1
    target_concurrency: float = 1.0
    idle_timeout_s: float | None = None
    """None: learnt."""
    spot: str = "prefer"
    balance: float = 0.5
    on_demand: int = 0
    budget: float | None = None
    max_price: float | None = None


@dataclass(frozen=True)
class Scenario:
    """Everything that a run is told; with a seed it decides the outcome entirely."""

    trace: Trace
    supplies: tuple[Supply, ...]
    wishes: tuple[Wish, ...] = (Wish(),)
    """Per endpoint; one does for all."""
    timeout_s: float | None = None
    """A request that waited so long leaves with an error; None: it waits for ever."""
    queue_cap: int | None = None
    """Requests that may wait per endpoint; who finds it full gets an error."""
    retries: int = 2
    """How often a request whose instance was lost is run again (from its beginning, at the queue's head)."""
    warm_up_s: float = 0.0
    """Requests that arrive before are simulated and not counted, nor is what is spent."""
    tail_s: float = 900.0
    """How long it goes on after the last arrival. What is spent until then counts, and nothing later."""


@dataclass(frozen=True)
class Cost:
    """Dollars, by what the time was used for. They add up to the whole."""

    busy: float = 0.0
    idle: float = 0.0
    starting: float = 0.0
    sunk: float = 0.0
    """Paid for and not used: minimum billing after an instance's end, and standing capacity without one."""
    preempted: float = 0.0
    """Work that was lost and run again, and starts that were lost."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.busy + self.idle + self.starting + self.sunk + self.preempted


@dataclass(frozen=True)
class Result:
    """What one policy did in one run."""

    policy: str
    seed: int
    cost: Cost
    waits: Floats
    """Arrival to start of service (of the attempt that succeeded), per counted request that succeeded."""
    arrivals: Floats
    """When those arrived, same order."""
    cold: NDArray[np.bool_]
    """Whether it waited for an instance that was started (not for one that was busy), same order."""
    errors: dict[str, int]
    """By reason: ``timeout``, ``queue-full``, ``lost`` (run as often as ``retries`` allows, and its instance
    was lost each time), ``unserved`` (it still waited at the end)."""
    failed_at: Floats
    """When those that failed had arrived."""
    starts: int
    by_supply: dict[str, float]
    """Dollars, per supply."""
    decisions: int
    seconds: float
    """Of simulation on this machine; 0 when not measured."""
    first_waits: Floats | None = None
    """As ``waits``, but to the first start: less than those for who was run again. None: not told."""
    timeline: dict[str, Floats] = field(default_factory=dict)
    """Series for plots, sampled each ``timeline["t"]``: ``demand``, ``queued``, ``busy:<supply>``,
    ``idle:<supply>``, ``starting:<supply>``, ``dollars:<supply>`` (spent until then) and ``tier:<tier>``
    (instances that were started ``warm``, ``cached``, ``boot``); empty when not asked for."""
