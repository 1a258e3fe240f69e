"""Where nobody refuses and spot plays no part the short way says what the long one does."""

import msgspec
from headrace_autoscaler import burst
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.spec import InstanceObservation, OfferObservation, ScalingSpec
from headrace_autoscaler.states import BurstState
from hypothesis import given
from hypothesis import strategies as st

OFFERS = st.builds(
    OfferObservation,
    offer=st.sampled_from("abc"),
    provider=st.just("p"),
    region=st.just("r"),
    price=st.sampled_from([1.0, 2.0, 3.0]),
    min_billing_s=st.sampled_from([0.0, 60.0, 3600.0]),
    left=st.sampled_from([None, 0, 1, 5]),
    failures=st.sampled_from([0, 0, 0, 1]),
    failed_at=st.sampled_from([None, 90.0]),
    spot=st.sampled_from([False, False, False, True]),
    gpu=st.sampled_from([None, ("A", 1)]),
)
INSTANCES = st.builds(
    InstanceObservation,
    id=st.uuids().map(str),
    host=st.just("h"),
    version=st.just(1),
    state=st.sampled_from(["starting", "ready", "ready", "draining"]),
    in_flight=st.integers(0, 1),
    started_at=st.sampled_from([10.0, 20.0, 30.0]),
    last_used_at=st.sampled_from([None, 40.0, 50.0]),
    offer=st.sampled_from("abc"),
    price=st.sampled_from([1.0, 2.0]),
    spot=st.sampled_from([False] * 9 + [True]),
    paid_until=st.sampled_from([None, 50.0, 150.0]),
    lost_at=st.sampled_from([None] * 5 + [200.0]),
)
SCALING = st.builds(
    ScalingSpec,
    spot=st.sampled_from(["prefer", "never", "only"]),
    max_price=st.sampled_from([None, 2.0]),
    gpu=st.sampled_from([(), (("A", 1),)]),
    on_demand=st.integers(0, 2),
)


@given(SCALING, st.integers(-1, 6), st.lists(INSTANCES, max_size=6), st.lists(OFFERS, max_size=3))
def test_both_ways_say_the_same(scaling, want, instances, offers) -> None:
    offers = tuple({offer.offer: offer for offer in offers}.values())
    short = burst._plain(100.0, scaling, want, instances, offers, config=BurstConfig())
    if short is not None:
        state = BurstState()
        long = burst._weighed(100.0, scaling, want, instances, offers, state=state, config=BurstConfig())
        assert short == long


def test_the_short_way_is_taken() -> None:
    offer = OfferObservation(offer="a", provider="p", price=1.0)
    found = burst._plain(100.0, ScalingSpec(), 2, (), (offer,), config=BurstConfig())
    assert found is not None
    assert [one.offer for one, _ in found.launches] == ["a", "a"]
    failing = msgspec.structs.replace(offer, failures=1, failed_at=90.0)
    assert burst._plain(100.0, ScalingSpec(), 2, (), (failing,), config=BurstConfig()) is None


def test_the_short_way_is_not_taken_with_an_instance_on_spot() -> None:
    offer = OfferObservation(offer="a", provider="p", price=1.0)
    held = InstanceObservation(id="i", host="h", version=1, state="ready", offer="gone", spot=True)
    assert burst._plain(100.0, ScalingSpec(), 2, (held,), (offer,), config=BurstConfig()) is None
