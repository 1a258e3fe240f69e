"""Bounds what endpoints want by what it may cost and by how often it may change; see `limits`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace_autoscaler import limits, offers
from headrace_autoscaler.cases import Case, Round
from headrace_autoscaler.wants import Surplus


def limit(this: Round, cases: Sequence[Case]) -> None:
    """Bound what costs money by budgets, and changes by cool-downs."""
    config = this.config.limits
    slow = config.up_cool_down_s > 0 or config.down_cool_down_s > 0
    budget = config.budget
    asking: dict[str, tuple[Case, limits.Claim]] = {}
    for case in cases:
        scaling, have = case.endpoint.scaling, len(case.crew.mine)
        if not slow and ((scaling.budget is None and budget is None) or case.target <= have):
            continue
        each = price(this, case)
        mine = limits.spending_of(case.endpoint.instances)
        limited = limits.bound(
            this.now,
            case.target,
            scaling,
            have=have,
            price=each,
            spending=limits.Spending(mine, None if this.spending is None else this.spending - mine),
            config=config,
            changes=limits.Changes(case.before.up_at, case.before.down_at),
            urgent=case.endpoint.queued > 0,
        )
        _held_to(case, limited.count, limited.reason, money=limited.money)
        if slow and case.target != have:
            _changed(this.now, case, up=case.target > have)
        if budget is not None and each and case.target > have:
            asking[case.endpoint.endpoint] = case, limits.Claim(case.target - have, each)
    if budget is not None and this.spending is not None and len(asking) > 1:
        claims = {name: claim for name, (_, claim) in asking.items()}
        for name, count in limits.share(budget - this.spending, claims).items():
            case, claim = asking[name]
            if count < claim.count:
                text = (
                    f"the budget of all endpoints of {budget:g} $/h is shared: {count} of {claim.count} more"
                )
                _held_to(case, len(case.crew.mine) + count, text, money=True)


def _held_to(case: Case, count: int, why: str, *, money: bool) -> None:
    if count == case.target:
        return
    if count < case.target:
        case.limit, case.broke = why, money
    else:
        # Fewer would do, and it is too early for that.
        case.surplus = Surplus()
    case.target = count


def _changed(now: float, case: Case, *, up: bool) -> None:
    times = {"up_at": now} if up else {"down_at": now}
    case.after = msgspec.structs.replace(case.after, **times)


def price(this: Round, case: Case) -> float | None:
    """Dollars per hour of one more: at home where it fits there, else the cheapest offer; None: not known.

    Where nobody said what home costs, it is what the dearest of its instances does.
    """
    scaling = case.endpoint.scaling
    home = this.book.cheapest(scaling)
    if home:
        return home
    found = [o.price for o in this.offers if offers.fits(o, scaling) and not offers.dear(o, scaling)]
    if home is None and found:
        return min(found)
    known = [i.price for i in case.crew.mine if i.price is not None and not (found and i.offer)]
    return max(known, default=None)
