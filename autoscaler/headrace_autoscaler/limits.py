"""How many instances an endpoint may have: min, max, budgets, cool-downs. Pure.

Why in one place, and in this order: demand asks, then its owner's bounds apply, then money. A budget is
a promise to whoever pays, so it wins over ``min``, and the reason says so. But it bounds *new* instances
only: one that runs is never ended for money, as its requests are paid for already, so after a budget is
lowered what runs leaves as it falls idle. ``max`` is the owner's bound on the endpoint and holds for
everything.

Budgets are rates (dollars per hour), compared with what all instances cost per hour now: with a rate
nothing has to be remembered, a restart forgets nothing, and no month is spent on its first day. What an
instance costs that is not known is taken for the endpoint's dearest known one, else for nothing.

Cool-downs bound how often the count changes, apart from going up for requests that wait: an increase is
held back for `up_cool_down_s` after the last one, a decrease for `down_cool_down_s` after any change. Both
are 0 unless they are set: keeping and releasing are decided by what they cost, and a cool-down is for
those whose instances are slow to settle (Kubernetes calls it a stabilization window).

The budget of all endpoints is shared fairly within one decision (`share`): max-min fairness by dollars, so
that who wants little gets all of it and the greedy ones get equal parts of the rest (Bertsekas and
Gallager, Data Networks, 6.5.2). What does not reach for one more of a dear instance goes to the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from headrace_autoscaler.configs import LimitConfig
from headrace_autoscaler.spec import EndpointObservation, InstanceObservation, OfferObservation, ScalingSpec

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Limited:
    """How many there may be, and what made it so; an empty reason: nothing did."""

    count: int
    reason: str = ""
    money: bool = False
    """A budget is why."""


class Spending(NamedTuple):
    """Dollars per hour that count against budgets."""

    mine: float
    """Of the endpoint's instances that are there, with what drains still."""
    others: float | None
    """Of all other instances, with what other endpoints were granted in this decision; None: not known."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one endpoint asks of the budget of all."""

    count: int
    """Instances more than it has."""
    price: float
    """Dollars per hour of one."""


class Changes(NamedTuple):
    """When the count changed last; None: never, or not known."""

    up_at: float | None = None
    down_at: float | None = None


NO_CHANGES = Changes()


def bound(
    now: float,
    wanted: int,
    scaling: ScalingSpec,
    *,
    have: int,
    price: float | None,
    spending: Spending,
    config: LimitConfig,
    changes: Changes = NO_CHANGES,
    urgent: bool = False,
) -> Limited:
    """How many of the ``wanted`` instances there may be.

    Args:
        now: the caller's clock.
        wanted: what demand asks for.
        scaling: the endpoint's bounds and its budget.
        have: instances that are there or on their way; never fewer are answered because of money.
        price: dollars per hour of one more; None or 0: it costs nothing (a standing home) or is not known.
        spending: dollars per hour as of now.
        config: the budget of all endpoints, cool-downs.
        changes: when the count went up and down last.
        urgent: requests wait; an increase is not held back then.
    """
    count, reason = wanted, ""
    if count < scaling.min:
        count, reason = scaling.min, f"min={scaling.min}"
    if count > scaling.max:
        count, reason = scaling.max, f"{wanted} wanted, max={scaling.max}"
    if held := _cooling(now, count, have, config, changes, urgent=urgent):
        return held
    if count <= have or not price:
        return Limited(count, reason)
    return _within_budgets(Limited(count, reason), scaling, have, price, spending=spending, config=config)


def _cooling(
    now: float, count: int, have: int, config: LimitConfig, changes: Changes, *, urgent: bool
) -> Limited | None:
    if count > have and not urgent and changes.up_at is not None:
        left = changes.up_at + config.up_cool_down_s - now
        if left > 0:
            return Limited(have, f"{count} wanted, cooling down {left:.0f} s more after the last increase")
    if count < have:
        last = max((at for at in changes if at is not None), default=-math.inf)
        left = last + config.down_cool_down_s - now
        if left > 0:
            return Limited(have, f"{count} would do, cooling down {left:.0f} s more after the last change")
    return None


def _within_budgets(
    asked: Limited, scaling: ScalingSpec, have: int, price: float, *, spending: Spending, config: LimitConfig
) -> Limited:
    found = asked
    budgets = [("its budget", scaling.budget, spending.mine)]
    if spending.others is not None:
        budgets.append(("the budget of all endpoints", config.budget, spending.mine + spending.others))
    for name, budget, spent in budgets:
        if budget is None:
            continue
        room = math.floor((budget - spent) / price + _ROUNDING)
        count = have + max(0, room)
        if count < found.count:
            below = f", below min={scaling.min}" if count < scaling.min else ""
            text = f"{name} of {budget:g} $/h has {max(0.0, budget - spent):g} left, one more costs {price:g}"
            found = Limited(count, f"{asked.count} wanted, {text}{below}", money=True)
    return found


def spending_of(instances: Sequence[InstanceObservation]) -> float:
    """Dollars per hour of an endpoint's instances, whatever their state."""
    known = [i.price for i in instances if i.price is not None]
    return sum(known) + max(known, default=0.0) * (len(instances) - len(known))


def share(left: float, claims: Mapping[str, Claim]) -> dict[str, int]:
    """How many of the instances that they claim each endpoint gets of ``left`` dollars per hour.

    One at a time to whoever was granted the least so far, in dollars; what costs nothing is granted whole.
    Ties go to the cheaper and then by name, so that equal arguments give equal shares.
    """
    granted = dict.fromkeys(claims, 0)
    turns = [(0.0, claim.price, name) for name, claim in claims.items() if claim.count > 0]
    heapify(turns)
    while turns:
        spent, price, name = heappop(turns)
        if price <= 0:
            granted[name] = claims[name].count
        elif price <= left + _ROUNDING:
            left -= price
            granted[name] += 1
            if granted[name] < claims[name].count:
                heappush(turns, (spent + price, price, name))
    return granted


def left(endpoint: EndpointObservation, spending: float | None, config: LimitConfig) -> float:
    """Dollars per hour that the endpoint may still spend; ``spending`` is that of all, None: not known."""
    budget = endpoint.scaling.budget
    found = math.inf if budget is None else budget - spending_of(endpoint.instances)
    if config.budget is not None and spending is not None:
        found = min(found, config.budget - spending)
    return found + _ROUNDING


def affordable(
    launches: Sequence[tuple[OfferObservation, str]], room: int, left: float
) -> list[tuple[OfferObservation, str]]:
    """As many launches as ``room`` and the dollars ``left`` allow, in their order, at their real prices.

    `bound` reckons with the cheapest offer; a hedge is more than was wanted, and on-demand dearer.
    """
    found: list[tuple[OfferObservation, str]] = []
    for offer, why in launches:
        if len(found) < room and offer.price <= left:
            left -= offer.price
            found.append((offer, why))
    return found
