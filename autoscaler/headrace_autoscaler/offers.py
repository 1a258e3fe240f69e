"""Which offers an endpoint may be launched on, and what they cost it. Pure.

Why a price of its own: a node that bills an hour at least and is needed for ten minutes costs six times
what its list says. Offers are compared by what they cost per hour that they are *needed*
(`BurstConfig.need_s`), while `max_price` bounds what the list says, as its owner reads it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from headrace_autoscaler.spec import OfferObservation, ScalingSpec

_EPSILON = 1e-9


def gpu_rank(offer: OfferObservation, scaling: ScalingSpec) -> int | None:
    """Which of the endpoint's preferences the offer has (0: the first, or none is asked); None: none."""
    if not scaling.gpu:
        return 0
    if offer.gpu is not None:
        for rank, (name, count) in enumerate(scaling.gpu):
            if offer.gpu[0] == name and offer.gpu[1] >= count:
                return rank
    return None


def rank_of(offer: OfferObservation, scaling: ScalingSpec) -> int | None:
    """`gpu_rank` where the endpoint can and may run there, apart from its price; None: it may not."""
    if (
        scaling.runtime not in offer.runtimes
        or (scaling.providers and offer.provider not in scaling.providers)
        or (scaling.regions and offer.region not in scaling.regions)
        or (scaling.spot != "prefer" and offer.spot != (scaling.spot == "only"))
        or (offer.cpu and offer.cpu + _EPSILON < scaling.cpu)
        or (offer.memory and offer.memory < scaling.memory)
    ):
        return None
    return gpu_rank(offer, scaling)


def fits(offer: OfferObservation, scaling: ScalingSpec) -> bool:
    """Whether the endpoint can and may run there, apart from its price."""
    return rank_of(offer, scaling) is not None


def dear(offer: OfferObservation, scaling: ScalingSpec) -> bool:
    """Whether it costs more than the endpoint may cost."""
    return scaling.max_price is not None and offer.price > scaling.max_price + _EPSILON


def price_of(offer: OfferObservation, need_s: float) -> float:
    """Dollars per hour that it is needed, when it is needed for ``need_s`` seconds."""
    return offer.price * max(1.0, offer.min_billing_s / need_s)


def taken(offers: Sequence[OfferObservation], names: Iterable[str]) -> tuple[OfferObservation, ...]:
    """The offers after launches at ``names``: what one endpoint took is gone for the next one.

    For several endpoints in one decision, so that together they stay within quotas and send one
    launch at most where one has to try first.
    """
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    if not counts:
        return tuple(offers)
    return tuple(_less(offer, counts[offer.offer]) if offer.offer in counts else offer for offer in offers)


def _less(offer: OfferObservation, count: int) -> OfferObservation:
    left = None if offer.left is None else max(0, offer.left - count)
    return msgspec.structs.replace(offer, left=left, launching=(offer.launching or 0) + count)
