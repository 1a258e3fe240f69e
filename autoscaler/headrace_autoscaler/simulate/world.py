"""The world of a simulation as a TOML file says it: supplies of several providers, wishes, time-outs.

timeout_s = 60

[[supply]]
name = "home"
home = true
capacity = 4
price = 1.5
start_s = 12

[[supply]]
name = "cloud-spot"
provider = "cloud"
price = 1.1
start_s = 90
spot = true
availability = "zone-a.json"
outages_h = [[36, 38]]

[endpoint]
idle_timeout_s = 60
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from headrace_autoscaler.simulate.generators import DAY_S, HOUR_S
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Steps, Supply, Wish
from headrace_autoscaler.simulate.traces import between

DEFAULT_JITTER = 0.1
DEFAULT_NOTICE_S = 120.0
HOME_ONLY = ("cached_s", "warm_s", "warm_sandboxes")
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Part = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: a name that is not known is an error, as it would be ignored otherwise."""


class SupplyTable(_Table, frozen=True, kw_only=True):
    """One ``[[supply]]``; `Supply` says what the fields mean. Seconds end in ``_s``, hours in ``_h``."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    price: NotNegative
    start_s: Positive
    """Launch to ready, its median."""
    start_jitter: Part = DEFAULT_JITTER
    start_sigma: NotNegative = 0.0
    home: bool = False
    standing: bool = True
    """For home: it is paid for all the time."""
    capacity: Count | None = None
    cached_s: Positive | None = None
    """With the next two only for home: a node of an offer is launched for one instance, and boots."""
    warm_s: Positive | None = None
    warm_sandboxes: Count = 0
    provider: str = ""
    region: str = "region"
    kind: str = "gpu"
    spot: bool = False
    min_billing_s: NotNegative = 0.0
    availability: str = ""
    """A file, beside this one unless its path is absolute."""
    notice_s: NotNegative = DEFAULT_NOTICE_S
    outages_h: tuple[tuple[NotNegative, Positive], ...] = ()
    """(from, until), hours after the beginning of the first day that counts."""
    mtbf_h: Positive | None = None
    repair_s: NotNegative = 0.0


class WishTable(_Table, frozen=True, kw_only=True):
    """``[endpoint]`` for all, or ``[endpoints.NAME]`` for one; `Wish` says what the fields mean."""

    min: Count = 0
    max: Annotated[int, msgspec.Meta(ge=1)] = Wish.max
    concurrency: Annotated[int, msgspec.Meta(ge=1)] = 1
    target_concurrency: Positive = 1.0
    idle_timeout_s: NotNegative | None = None
    spot: Literal["prefer", "never", "only"] = "prefer"
    balance: Part = 0.5
    on_demand: Count = 0
    budget: NotNegative | None = None
    max_price: NotNegative | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` when min and max contradict each other."""
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, which is more than max, {self.max}")


class World(_Table, frozen=True, kw_only=True):
    """The whole file."""

    supply: Annotated[tuple[SupplyTable, ...], msgspec.Meta(min_length=1)]
    endpoint: WishTable = WishTable()
    endpoints: dict[str, WishTable] = msgspec.field(default_factory=dict)
    timeout_s: Positive | None = None
    queue_cap: Count | None = None
    retries: Count = 2


def read_world(path: Path) -> World:
    """The world of a file. Raises ``OSError``, or ``ValueError`` that says where it is wrong."""
    try:
        document = tomllib.loads(path.read_bytes().decode())
        _refuse_infinite(document, "")
        world = msgspec.convert(document, World)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names = [supply.name for supply in world.supply]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: there are two supplies called {twice!r}: give each a name of its own")
    if wrong := [s.name for s in world.supply if s.home and s.capacity is None]:
        raise ValueError(f"{path}: supply {wrong[0]!r} is home: say how many instances it has (capacity = N)")
    for supply in world.supply:
        _check_supply(path, supply)
    return world


def _check_supply(path: Path, supply: SupplyTable) -> None:
    tiers = [name for name in HOME_ONLY if getattr(supply, name)]
    if tiers and not supply.home:
        raise ValueError(
            f"{path}: supply {supply.name!r} has {', '.join(tiers)}, and is not home: a launched node always "
            "takes start_s, so leave out what only home has, or say home = true and its capacity"
        )
    if supply.home and supply.availability:
        raise ValueError(f"{path}: supply {supply.name!r} is home: only offers have an availability")
    for since, until in supply.outages_h:
        if until <= since:
            raise ValueError(
                f"{path}: supply {supply.name!r} has an outage from hour {since:g} until hour {until:g}: "
                "write when it begins, then when it ends (outages_h = [[36, 38]])"
            )


def _refuse_infinite(value: Any, where: str) -> None:
    """TOML has nan and inf, and no number here may be either. Raises ``ValueError`` that says which is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_infinite(inner, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_infinite(inner, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: write a finite number")


def supplies_of(
    world: World, availability: Callable[[str], Steps], *, begin_s: float = 0.0
) -> tuple[Supply, ...]:
    """Its supplies; ``availability`` reads the file that it is given by name.

    ``begin_s``: when, on the simulation's clock, the first day that counts begins. Outages and availability
    are told from then on, so that what is played before does not change them; before it holds what holds at
    the beginning of the file.
    """
    return tuple(
        _supply(
            table, _since(begin_s, availability(table.availability)) if table.availability else None, begin_s
        )
        for table in world.supply
    )


def _since(begin_s: float, steps: Steps) -> Steps:
    """These steps, begun so much later."""
    times = [begin_s + at if at > 0 else 0.0 for at in steps.times]
    return Steps(tuple(times), steps.values)


def _supply(table: SupplyTable, availability: Steps | None, begin_s: float) -> Supply:
    def draw(median: float) -> Draw:
        return Draw(median, jitter=table.start_jitter, sigma=table.start_sigma)

    return Supply(
        name=table.name,
        price=table.price,
        boot=draw(table.start_s),
        cached=None if table.cached_s is None else draw(table.cached_s),
        warm=None if table.warm_s is None else draw(table.warm_s),
        warm_sandboxes=table.warm_sandboxes,
        capacity=table.capacity,
        owned=table.home,
        standing=table.home and table.standing,
        provider=table.provider or ("home" if table.home else table.name),
        region=table.region,
        kind=table.kind,
        spot=table.spot,
        min_billing_s=table.min_billing_s,
        availability=availability,
        notice_s=table.notice_s,
        outages=tuple(
            (begin_s + since * HOUR_S, begin_s + until * HOUR_S) for since, until in table.outages_h
        ),
        mtbf_s=None if table.mtbf_h is None else table.mtbf_h * HOUR_S,
        repair_s=table.repair_s,
    )


def wishes_of(world: World, names: tuple[str, ...]) -> tuple[Wish, ...]:
    """What the endpoints of a trace wish: their own table, else that of all.

    Raises ``ValueError`` for a table of an endpoint that the trace does not have.
    """
    if unknown := sorted(set(world.endpoints) - set(names)):
        raise ValueError(f"there is no endpoint {unknown[0]!r} in the trace; it has {', '.join(names[:10])}")
    if not world.endpoints:
        return (_wish(world.endpoint),)
    return tuple(_wish(world.endpoints.get(name, world.endpoint)) for name in names)


def _wish(table: WishTable) -> Wish:
    return Wish(**msgspec.structs.asdict(table))


def without_warm_up(scenario: Scenario) -> Scenario:
    """The same from the first request that counts on: what a lower bound is about."""
    if scenario.warm_up_s <= 0:
        return scenario
    begin = scenario.warm_up_s
    return replace(
        scenario,
        trace=between(scenario.trace, begin / DAY_S),
        supplies=tuple(_later(supply, begin) for supply in scenario.supplies),
        warm_up_s=0.0,
    )


def _later(supply: Supply, begin: float) -> Supply:
    steps = supply.availability
    if steps is not None:
        # What held last before the beginning holds at it.
        kept = [(at - begin, on) for at, on in zip(steps.times, steps.values, strict=True)]
        first = max((i for i, (at, _) in enumerate(kept) if at <= 0), default=0)
        kept = kept[first:]
        steps = Steps(tuple(max(0.0, at) for at, _ in kept), tuple(on for _, on in kept))
    outages = tuple((max(0.0, a - begin), b - begin) for a, b in supply.outages if b > begin)
    return replace(supply, availability=steps, outages=outages)
