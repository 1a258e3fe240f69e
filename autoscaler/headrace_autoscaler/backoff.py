"""Which clouds said no, and until when they are not asked again. Pure.

Why: a loop that asks a full cloud at every tick is throttled, then blocked, and hides the other offers
behind the one that fails. So a refusal closes the offer for a while, each further one for 1.5 to 2.5
times as long, to a cap: exponential backoff whose next pause hangs on the one before ("decorrelated", as
the AWS Architecture Blog's "Exponential Backoff and Jitter" has it), which here never shrinks. The jitter
comes from a hash of the name and the number of refusals, so that equal arguments give equal pauses and
different offers do not come back at the same moment. After the pause one launch at a time asks again.

What a refusal closes hangs on its kind. No capacity: the offer, so that kind of node of that provider in
that region (or zone), spot and on-demand apart. A quota, or a request that is refused as such: all offers
of that kind there, for longer, since people change it and not minutes. Anything else is taken for an
outage: all of the provider in that region.
Launches that are refused together (before the pause of the first is over) are one refusal.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.spec import OfferObservation
from headrace_autoscaler.states import Refusal

Kind = Literal["capacity", "outage", "quota"]

_CAPACITY_WORDS = (
    "capacity", "insufficient", "no spot", "sold out", "out of stock", "resource pool", "resource_pool",
)  # fmt: skip
_QUOTA_WORDS = ("quota", "limit", "credential", "auth", "permission", "denied", "invalid")
_LEAST_GROWTH, _MORE_GROWTH = 1.5, 1.0
_JITTER = 0.25
"""The part of a pause that may be taken off it; keeps pauses at the cap apart."""


def kind_of(reason: str) -> Kind:
    """What a failed launch's ``reason`` speaks of; what no word in it tells is an outage."""
    low = reason.lower()
    if any(word in low for word in _QUOTA_WORDS):
        return "quota"
    return "capacity" if any(word in low for word in _CAPACITY_WORDS) else "outage"


def zone_of(offer: OfferObservation) -> str:
    """What fails together: ``provider/region``."""
    return f"{offer.provider}/{offer.region}"


def _names(offer: OfferObservation) -> dict[Kind, str]:
    """What each kind of refusal closes."""
    zone = zone_of(offer)
    line = f"{zone}/{offer.kind}/{'spot' if offer.spot else 'on-demand'}"
    return {"outage": zone, "quota": line, "capacity": f"{line}/{offer.offer}"}


def pause_s(name: str, kind: Kind, rounds: int, config: BurstConfig) -> float:
    """Seconds without a launch at ``name`` after ``rounds`` refusals in a row (from 1)."""
    base, cap = {
        "capacity": (config.capacity_base_s, config.backoff_cap_s),
        "outage": (config.outage_base_s, config.backoff_cap_s),
        "quota": (config.quota_base_s, config.quota_cap_s),
    }[kind]
    pause = base
    for number in range(2, rounds + 1):
        if pause >= cap:
            break
        pause *= _LEAST_GROWTH + _MORE_GROWTH * _uniform(f"{name}#{number}")
    return min(pause, cap) * (1 - _JITTER * _uniform(f"{name}:{rounds}"))


def _uniform(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


def learn(
    before: Mapping[str, Refusal], offers: Sequence[OfferObservation], config: BurstConfig
) -> dict[str, Refusal]:
    """The refusals after these observations. What launched again is forgotten, as is what no offer says."""
    after: dict[str, Refusal] = {}
    for offer in offers:
        if not offer.failures or offer.failed_at is None:
            continue
        kind = kind_of(offer.reason)
        name = _names(offer)[kind]
        known = after.get(name, before.get(name))
        if known is not None and known.kind == kind and offer.failed_at <= known.failed_at:
            after[name] = known
            continue
        if known is None or known.kind != kind:
            # How many of these were asked together is not known: neither each for itself nor all as one.
            rounds = offer.failures.bit_length()
        else:
            rounds = known.rounds + (offer.failed_at >= known.until)
        until = offer.failed_at + pause_s(name, kind, rounds, config)
        after[name] = Refusal(kind=kind, failed_at=offer.failed_at, rounds=rounds, until=until)
    return after


def refusal_of(offer: OfferObservation, refusals: Mapping[str, Refusal]) -> Refusal | None:
    """What keeps this offer closed or on trial, the one that lasts longest; None: nothing."""
    if not refusals:
        return None
    found = [r for name in _names(offer).values() if (r := refusals.get(name)) is not None]
    return max(found, key=lambda r: r.until, default=None)
