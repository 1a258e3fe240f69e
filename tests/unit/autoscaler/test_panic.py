"""What demand asks for: two windows, the queue's age, tokens."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler.configs import DemandConfig
from headrace_autoscaler.panic import demand, remember
from headrace_autoscaler.signals import observe
from headrace_autoscaler.spec import EndpointObservation, InstanceObservation, ScalingSpec
from headrace_autoscaler.states import DemandState, PanicState, WindowState
from hypothesis import given
from hypothesis import strategies as st

CONFIG = DemandConfig()
EMPTY = WindowState()


def endpoint(ready=0, scaling=None, **options):
    instances = tuple(
        InstanceObservation(id=f"i{n}", host="h", version=1, state="ready") for n in range(ready)
    )
    return EndpointObservation(
        endpoint="default/e", version=1, scaling=scaling or ScalingSpec(), instances=instances, **options
    )


def steady(*spans):
    """A window read each second through (seconds, concurrency), and when that ends."""
    window, now, total = observe(EMPTY, 0.0, 0.0, 0, 60.0), 0.0, 0.0
    for seconds, concurrency in spans:
        for _ in range(seconds):
            now, total = now + 1.0, total + concurrency
            window = observe(window, now, total, 0, 60.0)
    return window, now


def test_the_long_window_counts():
    window, now = steady((30, 2.0), (30, 4.0))
    found = demand(now, endpoint(ready=4, in_flight=9), window, CONFIG)
    assert found.instances == found.stable == pytest.approx(3.0, rel=0.02)
    assert found.burst == pytest.approx(4.0)
    assert (found.concurrency_now, found.in_panic, found.late, found.tokens) == (9, False, False, None)
    assert "over 60 s" in found.reason


def test_an_instance_takes_its_target_concurrency():
    window, now = steady((60, 6.0))
    found = demand(now, endpoint(ready=4, scaling=ScalingSpec(target_concurrency=4.0)), window, CONFIG)
    assert found.instances == pytest.approx(1.5)


def test_while_windows_are_not_known_what_is_there_counts():
    found = demand(5.0, endpoint(ready=3, in_flight=3, queued=1), EMPTY, CONFIG)
    assert (found.instances, found.stable, found.burst) == (4.0, None, None)
    assert found.reason == "4 requests now"
    assert demand(5.0, endpoint(), EMPTY, CONFIG).instances == 0.0


def test_a_burst_counts_at_once_and_nothing_shrinks_while_it_goes_on():
    window, now = steady((54, 1.0), (6, 4.0))
    found = demand(now, endpoint(ready=2, in_flight=4), window, CONFIG)
    assert found.panic == PanicState(until=now + 60.0, most=4.0)
    assert found.in_panic
    assert found.instances == 4.0
    assert "a burst" in found.reason
    # It is over, and is remembered: until then the most that was asked for stays.
    later, then = steady((60, 1.0))
    now = found.panic.until - 10.0
    held = demand(now, endpoint(ready=4), later, CONFIG, found.panic)
    assert held.panic is found.panic
    assert held.instances == 4.0
    ended = demand(found.panic.until, endpoint(ready=4), later, CONFIG, found.panic)
    assert ended.panic is None
    assert demand(then, endpoint(ready=4), later, CONFIG, None).instances == 1.0


def test_a_burst_that_grows_is_followed_and_one_seen_again_lasts_longer():
    window, now = steady((60, 3.0))
    before = PanicState(until=now + 30.0, most=2.0)
    found = demand(now, endpoint(ready=2), window, CONFIG, before)
    assert found.panic == PanicState(until=now + 30.0, most=3.0), "3 for 2 is no new breach"
    found = demand(now, endpoint(ready=1), window, CONFIG, PanicState(until=now + 30.0, most=9.0))
    assert found.panic == PanicState(until=now + 60.0, most=9.0)


def test_a_burst_of_another_clock_is_forgotten():
    window, now = steady((60, 1.0))
    assert demand(now, endpoint(ready=2), window, CONFIG, PanicState(until=1e9, most=50.0)).panic is None


def test_a_request_that_waited_too_long_makes_all_count():
    window, now = steady((60, 1.0))
    waiting = {"ready": 3, "in_flight": 2, "queued": 3}
    early = demand(now, endpoint(oldest_wait_s=1.9, **waiting), window, CONFIG)
    assert (early.instances, early.late) == (1.0, False)
    late = demand(now, endpoint(oldest_wait_s=2.0, **waiting), window, CONFIG)
    assert (late.instances, late.late) == (5.0, True)
    assert "waits for 2.0 s" in late.reason
    gone = demand(now, endpoint(ready=3, in_flight=2, oldest_wait_s=9.0), window, CONFIG)
    assert not gone.late, "none waits: the age is an old one"


def test_tokens_say_how_many_requests_an_instance_takes():
    window, now = steady((60, 4.0))
    scaling = ScalingSpec(tokens=1000.0, target_concurrency=64.0)
    # 4 in flight hold 6,000 tokens, so the 2 that wait are taken to bring 3,000 more.
    seen = endpoint(ready=6, scaling=scaling, in_flight=4, queued=2, tokens_in_flight=6000.0)
    found = demand(now, seen, window, CONFIG)
    assert found.tokens == 9000.0
    assert found.instances == pytest.approx(6.0), "4 on average, 1,500 tokens each"
    assert "9000 tokens" in found.reason


@pytest.mark.parametrize(("in_flight", "tokens"), [(0, 500.0), (4, None)])
def test_tokens_that_are_not_known_leave_requests_to_count(in_flight, tokens):
    window, now = steady((60, 4.0))
    scaling = ScalingSpec(tokens=1000.0, target_concurrency=2.0)
    seen = endpoint(ready=6, scaling=scaling, in_flight=in_flight, queued=1, tokens_in_flight=tokens)
    found = demand(now, seen, window, CONFIG)
    assert (found.instances, found.tokens) == (2.0, None)
    assert "tokens not known" in found.reason


def test_no_tokens_in_flight_are_no_division_by_zero():
    scaling = ScalingSpec(tokens=1000.0, target_concurrency=2.0)
    found = demand(5.0, endpoint(scaling=scaling, in_flight=2, tokens_in_flight=0.0), EMPTY, CONFIG)
    assert found.instances == 1.0


def test_what_is_seen_is_remembered():
    empty = DemandState()
    assert remember(1.0, endpoint(), empty, CONFIG) is empty, "nothing is known, nothing is new"
    counted = remember(1.0, endpoint(demand_s=4.0, arrived=2), empty, CONFIG)
    assert counted.window.samples == ((1.0, 4.0, 2),)
    panicking = msgspec.structs.replace(counted, panic=PanicState(until=9.0, most=2.0))
    served = remember(1.0, endpoint(demand_s=4.0, arrived=2, served=(3.0,)), panicking, CONFIG)
    assert served.window is counted.window
    assert served.service.total == 1
    assert served.panic is panicking.panic


looks = st.lists(
    st.tuples(st.floats(0.01, 20.0), st.integers(0, 30), st.integers(0, 30), st.integers(0, 9)),
    min_size=1,
    max_size=30,
)


@given(looks, st.sampled_from([None, 100.0, 5000.0]), st.booleans())
def test_more_requests_never_ask_for_less_and_json_changes_nothing(looks, size, counted):
    scaling = ScalingSpec(tokens=size, target_concurrency=2.0)
    low = high = DemandState()
    now = total = more = 0.0
    for gap, in_flight, queued, ready in looks:
        now, total = now + gap, total + gap * (in_flight + queued)
        more += gap * (in_flight + queued + 3)

        def see(waiting, demand_s, in_flight=in_flight, ready=ready, age=gap):
            return endpoint(
                ready=ready,
                scaling=scaling,
                in_flight=in_flight,
                queued=waiting,
                oldest_wait_s=age if waiting else 0.0,
                demand_s=demand_s if counted else None,
                tokens_in_flight=300.0 * in_flight,
            )

        one, other = see(queued, total), see(queued + 3, more)
        low, high = remember(now, one, low, CONFIG), remember(now, other, high, CONFIG)
        again = msgspec.json.decode(msgspec.json.encode(low), type=DemandState)
        few = demand(now, one, low.window, CONFIG, low.panic)
        assert few == demand(now, one, again.window, CONFIG, again.panic)
        many = demand(now, other, high.window, CONFIG, high.panic)
        assert 0 <= few.instances <= many.instances + 1e-6
        assert few.reason
        low = msgspec.structs.replace(low, panic=few.panic)
        high = msgspec.structs.replace(high, panic=many.panic)
