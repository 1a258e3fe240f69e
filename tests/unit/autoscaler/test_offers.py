"""Which offers may be used, what they cost for what is needed, and what others have taken."""

from __future__ import annotations

import pytest
from headrace_autoscaler.offers import dear, fits, gpu_rank, price_of, rank_of, taken
from headrace_autoscaler.spec import OfferObservation, ScalingSpec


def offer(**changes):
    base = {"offer": "o", "provider": "p", "region": "r", "gpu": ("H100", 2), "price": 3.0}
    return OfferObservation(**(base | changes))


@pytest.mark.parametrize(
    ("there", "wish", "fit"),
    [
        ({}, {}, True),
        ({}, {"providers": ("p", "q")}, True),
        ({}, {"providers": ("q",)}, False),
        ({}, {"regions": ("r",)}, True),
        ({}, {"regions": ("s",)}, False),
        ({"spot": True}, {"spot": "prefer"}, True),
        ({"spot": True}, {"spot": "never"}, False),
        ({"spot": False}, {"spot": "only"}, False),
        ({"spot": True}, {"spot": "only"}, True),
        ({"runtimes": ("oci",)}, {}, False),
        ({}, {"gpu": (("L4", 1), ("H100", 2))}, True),
        ({}, {"gpu": (("H100", 3),)}, False),
        ({"gpu": None}, {"gpu": (("H100", 1),)}, False),
        ({"gpu": None}, {}, True),
        ({"cpu": 4.0}, {"cpu": 4.0}, True),
        ({"cpu": 4.0}, {"cpu": 4.5}, False),
        ({"memory": 100}, {"memory": 101}, False),
        ({"memory": 100}, {"memory": 100}, True),
    ],
)
def test_what_rules_an_offer_out(there, wish, fit):
    assert fits(offer(**there), ScalingSpec(**wish)) is fit
    assert (rank_of(offer(**there), ScalingSpec(**wish)) is not None) is fit


def test_the_gpu_list_is_an_order_of_preference():
    wish = ScalingSpec(gpu=(("B200", 1), ("H100", 1)))
    assert gpu_rank(offer(), wish) == 1
    assert gpu_rank(offer(gpu=("B200", 8)), wish) == 0
    assert gpu_rank(offer(gpu=("L4", 8)), wish) is None
    assert gpu_rank(offer(), ScalingSpec()) == 0


def test_minimum_billing_counts_in_the_price_of_a_short_need_and_max_price_bounds_the_list():
    hourly = offer(min_billing_s=3600.0)
    assert price_of(hourly, 600.0) == 18.0
    assert price_of(hourly, 7200.0) == 3.0
    assert not dear(hourly, ScalingSpec(max_price=3.0))
    assert dear(hourly, ScalingSpec(max_price=2.99))
    assert not dear(hourly, ScalingSpec())


def test_what_one_endpoint_took_is_gone_for_the_next():
    offers = (offer(offer="a", left=2), offer(offer="b", launching=1), offer(offer="c", left=1))
    after = taken(offers, ["a", "b", "a", "a"])
    assert [(o.left, o.launching) for o in after] == [(0, 3), (None, 2), (1, None)]
    assert taken(offers, []) == offers
