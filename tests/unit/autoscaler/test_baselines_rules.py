"""Baselines that go by averages and histograms, on cases worked out by hand from their descriptions."""

from __future__ import annotations

import pytest
from headrace_autoscaler.baselines import hpa, hybrid_histogram, knative, ray_serve
from headrace_autoscaler.baselines.base import fleet_of
from headrace_autoscaler.baselines.hpa import HpaConfig, HpaState
from headrace_autoscaler.baselines.hybrid_histogram import (
    Histogram,
    HybridHistogramConfig,
    HybridHistogramState,
)
from headrace_autoscaler.baselines.knative import KnativeConfig, KnativeState
from headrace_autoscaler.baselines.ray_serve import RayServeConfig, RayServeState
from headrace_autoscaler.baselines.windows import average, push
from headrace_autoscaler.spec import EndpointObservation, InstanceObservation, ScalingSpec
from hypothesis import given
from hypothesis import strategies as st


def fleet(ready=0, starting=0):
    def one(id, state):
        return InstanceObservation(id=id, host=id, version=1, state=state, ready_at=0.0)

    return tuple(one(f"r{n}", "ready") for n in range(ready)) + tuple(
        one(f"s{n}", "starting") for n in range(starting)
    )


def judged(module, now, memory, config, scaling=None, **more):
    seen = EndpointObservation(endpoint="e", version=1, scaling=scaling or ScalingSpec(max=1000), **more)
    return module.judge(now, seen, fleet_of(seen), memory, config)


# --- averages


def test_an_average_is_exact_at_irregular_looks():
    samples = ()
    for now, counter in ((0.0, 0.0), (3.0, 6.0), (7.0, 6.0), (7.5, 6.0), (20.0, 31.0)):
        samples = push(samples, now, counter, 10.0)
    # 3 s of 2, 4 s of none, 13 s of 25/13; what is closer than a second is not kept, nor what is too old.
    assert samples == ((7.0, 6.0), (20.0, 31.0))
    assert average(samples, 20.0, 31.0, 10.0) == pytest.approx(25 / 13)
    assert average(samples, 20.0, 31.0, 13.0) == pytest.approx(25 / 13)
    # Younger than the window: since the first sample.
    assert average(samples, 20.0, 31.0, 99.0) == pytest.approx(25 / 13)
    # After the last sample.
    assert average(samples, 40.0, 71.0, 10.0) == pytest.approx(2.0)
    assert average((), 1.0, 1.0, 10.0) is None
    assert average(((0.5, 0.0),), 1.0, 1.0, 10.0) is None


def test_a_counter_that_went_back_begins_again():
    assert push(((0.0, 5.0), (2.0, 9.0)), 4.0, 1.0, 60.0) == ((4.0, 1.0),)


# --- Knative

KPA = KnativeConfig()


def kpa(*, stable, panic, ready, now=100.0, demand=1, starting=0, config=KPA, scaling=None, **memory):
    """A look with these averages over 60 s and 6 s."""
    counter = 60.0 * stable
    samples = ((now - 60.0, 0.0), (now - 6.0, counter - 6.0 * panic))
    before = KnativeState(**({"samples": samples, "target": ready + starting, "active_at": 0.0} | memory))
    return judged(
        knative,
        now,
        before,
        config,
        scaling,
        in_flight=demand,
        demand_s=counter,
        instances=fleet(ready, starting),
    )


def test_kpa_one_request_at_zero_asks_for_two_in_panic():
    # The first bucket's average is 1; ceil(1 / 0.7) = 2, and 2 over "1 ready" is the panic threshold.
    verdict = judged(knative, 100.0, KnativeState(), KPA, queued=1, demand_s=0.0)
    assert verdict.start == 2
    assert verdict.memory.panic_at == 100.0
    assert verdict.memory.panic_pods == 2
    assert verdict.why[0] % verdict.why[1:] == (
        "panic: 1.00 on average over 60 s, 1.00 over 6 s, ask for 2 of 0.7 each"
    )


def test_kpa_at_zero_nothing_changes_and_history_is_dropped():
    before = KnativeState()
    assert judged(knative, 100.0, before, KPA, demand_s=5.0).memory is before
    assert judged(knative, 100.0, KnativeState(samples=((1.0, 5.0),)), KPA, demand_s=5.0).memory == before


def test_kpa_stable_wants_the_average_over_the_target():
    verdict = kpa(stable=7.1, panic=7.1, ready=10)
    assert (verdict.start, verdict.memory.target) == (1, 11)
    wide = kpa(stable=71.0, panic=71.0, ready=10, scaling=ScalingSpec(max=99, concurrency=10))
    assert (wide.start, wide.memory.target) == (1, 11)


@pytest.mark.parametrize(("panic", "panics", "target"), [(13.2, False, 10), (13.4, True, 20)])
def test_kpa_panics_when_the_panic_window_wants_twice_what_is_ready(panic, panics, target):
    # 13.2 / 0.7 = 18.9: 19 of 10; 13.4 / 0.7 = 19.1: 20 of 10.
    verdict = kpa(stable=7.0, panic=panic, ready=10)
    assert verdict.memory.target == target
    assert (verdict.memory.panic_at == 100.0) is panics


@pytest.mark.parametrize(
    ("panic_at", "target", "left"), [(40.0, 20, 40.0), (39.9, 10, None)], ids=["still", "over"]
)
def test_kpa_stays_in_panic_a_stable_window_beyond_the_last_breach_and_does_not_shrink(
    panic_at, target, left
):
    verdict = kpa(stable=2.0, panic=2.0, ready=20, panic_at=panic_at, panic_pods=20)
    assert verdict.memory.panic_at == left
    # Out of panic it wants 3, and may go down to half at once.
    assert verdict.memory.target == target
    assert len(verdict.release) == 20 - target
    assert verdict.memory.panic_pods == (20 if left else 0)


def test_kpa_a_further_breach_extends_the_panic_and_the_stable_window_counts_in_it():
    verdict = kpa(stable=5.0, panic=3.0, ready=2, panic_at=41.0, panic_pods=2)
    assert verdict.memory.panic_at == 100.0
    assert verdict.memory.target == 8


def test_kpa_grows_by_the_largest_rate_at_most():
    config = KnativeConfig(max_scale_up=1.5, panic_threshold=100.0)
    assert kpa(stable=14.0, panic=14.0, ready=3, config=config).memory.target == 5


def test_kpa_halves_at_most():
    assert kpa(stable=0.1, panic=0.0, ready=9).memory.target == 4
    assert len(kpa(stable=0.1, panic=0.0, ready=9, demand=0).release) == 5


def test_kpa_the_last_one_stays_for_the_grace_period():
    verdict = kpa(stable=0.0, panic=0.0, ready=1, demand=0)
    assert verdict.release == ()
    assert verdict.memory.zero_at == 100.0
    for now, gone in ((129.9, 0), (130.0, 1)):
        later = kpa(stable=0.0, panic=0.0, ready=1, demand=0, now=now, zero_at=100.0)
        assert len(later.release) == gone
    again = kpa(stable=0.1, panic=0.0, ready=1, now=120.0, zero_at=100.0)
    assert again.memory.zero_at is None


def test_kpa_the_last_one_is_active_for_a_stable_window():
    verdict = kpa(stable=0.0, panic=0.0, ready=1, demand=0, active_at=41.0)
    assert (verdict.memory.target, verdict.memory.zero_at) == (1, None)
    assert kpa(stable=0.0, panic=0.0, ready=1, demand=0, active_at=40.0).memory.zero_at == 100.0


def test_kpa_what_is_being_activated_stays():
    verdict = kpa(stable=0.0, panic=0.0, ready=0, starting=2, demand=0, active_at=None)
    assert verdict.release == ()
    assert verdict.memory.target == 2
    assert kpa(stable=0.1, panic=0.1, ready=1, active_at=None).memory.active_at == 100.0
    assert kpa(stable=0.0, panic=0.0, ready=0, demand=1).memory.active_at is None


def test_kpa_without_data_stays_within_min_and_max():
    before = KnativeState(target=3)
    assert judged(knative, 100.0, before, KPA).start == 3
    assert judged(knative, 100.0, before, KPA).memory is before
    assert judged(knative, 100.0, before, KPA, ScalingSpec(max=2)).memory.target == 2


def test_kpa_cancels_what_starts_first_and_drains_busy_ones_last():
    verdict = kpa(stable=2.0, panic=2.0, ready=4, starting=3)
    assert [i.id for i in verdict.release] == ["s2", "s1", "s0", "r0"]


# --- Ray Serve

SERVE = RayServeConfig()


def serve(now, mean, *, ready, memory=None, config=SERVE, starting=0, **more):
    """A look with this average over the last 30 s."""
    counter = mean * now
    before = RayServeState(**({"samples": ((now - 30.0, mean * (now - 30.0)),)} | (memory or {})))
    return judged(ray_serve, now, before, config, demand_s=counter, instances=fleet(ready, starting), **more)


def test_serve_goes_from_zero_to_one_at_once_and_no_further_until_it_runs():
    verdict = judged(ray_serve, 100.0, RayServeState(), SERVE, queued=9, demand_s=0.0)
    assert (verdict.start, verdict.memory.target) == (1, 1)
    verdict = serve(110.0, 9.0, ready=0, starting=1, memory={"target": 1}, queued=9)
    assert (verdict.start, verdict.memory.target) == (0, 1)
    # A target that is there is kept.
    assert serve(110.0, 9.0, ready=0, memory={"target": 3}, queued=1).start == 3
    assert serve(110.0, 0.0, ready=0, starting=1, memory={"target": 0}).memory.target == 0
    # What came and left within the window still counts.
    assert serve(110.0, 0.1, ready=0, starting=1).memory.target == 1


@pytest.mark.parametrize(("now", "target"), [(129.9, 3), (130.0, 5)])
def test_serve_scales_up_when_it_was_wanted_for_30_seconds(now, target):
    first = serve(100.0, 9.5, ready=3, memory={"target": 3})
    assert (first.memory.since, first.memory.up, first.memory.target) == (100.0, True, 3)
    then = serve(now, 9.5, ready=3, memory={"target": 3, "since": 100.0, "up": True})
    assert then.memory.target == target
    assert then.start == target - 3
    assert then.memory.since == (None if target == 5 else 100.0)


@pytest.mark.parametrize(("now", "target"), [(699.9, 5), (700.0, 2)])
def test_serve_scales_down_when_it_was_wanted_for_ten_minutes(now, target):
    then = serve(now, 3.0, ready=5, memory={"target": 5, "since": 100.0})
    assert then.memory.target == target
    assert len(then.release) == 5 - target


def test_serve_a_break_or_another_direction_begins_the_delay_again():
    assert serve(125.0, 6.0, ready=3, memory={"target": 3, "since": 100.0, "up": True}).memory.since is None
    turned = serve(125.0, 1.0, ready=3, memory={"target": 3, "since": 100.0, "up": True})
    assert (turned.memory.since, turned.memory.up) == (125.0, False)


def test_serve_goes_to_zero_from_one_only():
    memory = {"target": 5, "since": 100.0}
    assert serve(700.0, 0.0, ready=5, memory=memory).memory.target == 1
    verdict = serve(700.0, 0.0, ready=1, memory=memory | {"target": 1})
    assert verdict.memory.target == 0
    assert len(verdict.release) == 1


def test_serve_with_another_target_and_without_data():
    config = RayServeConfig(target=1.0)
    memory = {"target": 3, "since": 100.0, "up": True}
    assert serve(130.0, 9.5, ready=3, memory=memory, config=config).memory.target == 10
    before = RayServeState(target=2)
    verdict = judged(ray_serve, 100.0, before, SERVE, instances=fleet(1))
    assert (verdict.start, verdict.memory is before) == (1, True)
    assert judged(ray_serve, 100.0, RayServeState(), SERVE, demand_s=1.0).memory == RayServeState()
    assert judged(ray_serve, 9.0, RayServeState(since=1.0), SERVE, demand_s=1.0).memory == RayServeState()


# --- HPA

HPA = HpaConfig()


def synced(mean, *, pods, now=1000.0, scaling=None, recommended=(), target=None, **config):
    """A sync with this average since the last, 15 s ago."""
    before = HpaState(
        target=pods if target is None else target,
        synced_at=now - 15.0,
        counter=100.0,
        recommended=recommended,
    )
    verdict = judged(
        hpa,
        now,
        before,
        HpaConfig(**config),
        scaling,
        demand_s=100.0 + 15.0 * mean,
        instances=fleet(pods),
    )
    return verdict.memory.target


def test_hpa_begins_with_one_and_looks_every_15_seconds():
    verdict = judged(hpa, 0.0, HpaState(), HPA, demand_s=0.0)
    assert verdict.start == 1
    assert verdict.memory.recommended == ((0.0, 1),)
    between = judged(hpa, 14.9, verdict.memory, HPA, demand_s=99.0, queued=9, instances=fleet(1))
    assert between.memory is verdict.memory
    assert between.start == 0
    at = judged(hpa, 15.0, verdict.memory, HPA, demand_s=30.0, queued=9, instances=fleet(1))
    # 2 on average over 0.8 each.
    assert at.start == 2


@pytest.mark.parametrize(("mean", "target"), [(8.79, 10), (8.9, 12), (7.21, 10)])
def test_hpa_stays_within_the_tolerance(mean, target):
    assert synced(mean, pods=10) == target


@pytest.mark.parametrize(("pods", "target"), [(1, 5), (4, 8), (10, 20)])
def test_hpa_grows_by_four_or_to_twice(pods, target):
    assert synced(80.0, pods=pods) == target


def test_hpa_goes_down_to_the_highest_of_five_minutes():
    old, young = (700.0, 9), (700.1, 7)
    assert synced(1.0, pods=10, recommended=(old,)) == 2
    assert synced(1.0, pods=10, recommended=(old, young)) == 7
    # The present number is no reason to go up again.
    assert synced(1.0, pods=5, recommended=(young,)) == 5


def test_hpa_keeps_one_and_the_endpoints_bounds():
    assert synced(0.0, pods=1) == 1
    assert synced(0.0, pods=3, scaling=ScalingSpec(min=2, max=9)) == 2
    assert synced(9.0, pods=3, scaling=ScalingSpec(max=4)) == 4
    assert judged(hpa, 0.0, HpaState(), HPA, ScalingSpec(max=0), demand_s=0.0).start == 0
    # None is there: no ratio, so no tolerance.
    assert synced(8.0, pods=0, target=5) == 10


@pytest.mark.parametrize("counter", [None, 99.0])
def test_hpa_without_a_metric_stays(counter):
    before = HpaState(target=4, synced_at=0.0, counter=100.0, recommended=((0.0, 4),))
    verdict = judged(hpa, 15.0, before, HPA, demand_s=counter, instances=fleet(4))
    assert (verdict.memory.target, verdict.memory.counter) == (4, counter)
    assert verdict.memory.recommended == ((0.0, 4),)
    assert judged(hpa, 30.0, verdict.memory, HPA, demand_s=500.0, instances=fleet(4)).memory.target >= 4


# --- hybrid histogram

HYBRID = HybridHistogramConfig()


def histogram(counts, beyond=0):
    counts = (*counts, *[0] * (60 - len(counts)))
    return Histogram(counts=counts, total=sum(counts), squares=sum(c * c for c in counts), beyond=beyond)


@pytest.mark.parametrize(
    ("known", "windows"),
    [
        # Nothing known, flat, half of it (but not more) beyond the range, more than half.
        (histogram([]), (0.0, 3600.0)),
        (histogram([1] * 60), (0.0, 3600.0)),
        (histogram([0, 0, 0, 100], 100), (162.0, 264.0)),
        (histogram([0, 0, 0, 100], 101), (0.0, 3600.0)),
        # 5 % are reached in bin 1, 99 % in bin 3: 1 min less 10 %, 4 min and 10 %.
        (histogram([4, 1, 93, 1, 1]), (54.0, 264.0)),
        # Never unloaded, since 5 % come back within the first minute.
        (histogram([95, 3, 1, 1]), (0.0, 198.0)),
    ],
)
def test_hybrid_windows_of_a_histogram(known, windows):
    assert known.windows(HYBRID) == pytest.approx(windows)


@pytest.mark.parametrize(("counts", "representative"), [([4] * 12, True), ([4] * 13, False)])
def test_hybrid_a_histogram_is_representative_from_a_variation_of_2(counts, representative):
    # k equal bins of 60: variance / mean^2 = 60 / k - 1, which is 4 for k = 12.
    assert (histogram(counts).windows(HYBRID)[1] < 3600.0) is representative


@given(st.lists(st.tuples(st.lists(st.floats(0, 5000), max_size=5), st.integers(0, 5)), max_size=6))
def test_hybrid_sums_are_those_of_the_counts(additions):
    known = histogram([])
    for gaps, first in additions:
        known = known.add(gaps, first, 60.0)
    assert known == histogram(known.counts, known.beyond)
    assert known.total + known.beyond == sum(len(gaps) + first for gaps, first in additions)


def look(now, memory, demand, arrived, ready=0, scaling=None):
    return judged(
        hybrid_histogram,
        now,
        memory,
        HYBRID,
        scaling,
        in_flight=demand,
        arrived=arrived,
        instances=fleet(ready),
    )


def test_hybrid_learns_the_idle_times_of_levels():
    verdict = look(0.0, HybridHistogramState(), 2, 2)
    assert verdict.start == 2
    # Level 2 is idle from 10, level 1 from 20.
    verdict = look(10.0, verdict.memory, 1, 2, ready=2)
    verdict = look(20.0, verdict.memory, 0, 2, ready=2)
    assert verdict.memory.idle == (20.0, 10.0)
    assert verdict.memory.histogram.total == 0
    # Nothing known yet: all are kept for the range of one hour.
    assert verdict.release == ()
    assert verdict.look_again_at == 3610.0
    # Both come back after 80 s and 90 s (bin 1), a third for the first time, and two were not seen.
    verdict = look(100.0, verdict.memory, 3, 7, ready=2)
    assert verdict.memory.histogram.counts[:3] == (2, 2, 0)
    assert verdict.memory.idle == (20.0, 10.0, 100.0)
    assert verdict.start == 1
    verdict = look(102.0, verdict.memory, 0, 7, ready=3)
    verdict = look(4000.0, verdict.memory, 1, 8, ready=3)
    assert verdict.memory.histogram.beyond == 1
    assert look(4001.0, verdict.memory, 1, None, ready=1).memory.histogram.total == 4


def test_hybrid_unloads_pre_warms_and_keeps_by_its_windows():
    known = histogram([0, 0, 0, 100])
    memory = HybridHistogramState(
        histogram=known, level=2, idle=(0.0, 0.0), arrived=9, pre_warm_s=162.0, keep_s=264.0, desired=2
    )
    # Level 2 becomes idle at 1000: unloaded at once, loaded again from 1162 on, until 1264.
    gone = look(1000.0, memory, 1, 9, ready=2)
    assert len(gone.release) == 1
    assert gone.look_again_at == 1162.0
    same = look(1100.0, gone.memory, 1, 9, ready=1)
    assert same.memory is gone.memory
    warm = look(1162.0, gone.memory, 1, 9, ready=1)
    assert warm.start == 1
    assert warm.look_again_at == 1264.0
    assert warm.why[0] % warm.why[1:] == "1 in use, and 1 idle for 162 to 264 s"
    over = look(1264.0, warm.memory, 1, 9, ready=2)
    assert len(over.release) == 1
    assert over.look_again_at is None
    # One that was lost is started again.
    assert look(1300.0, over.memory, 1, 9).start == 1


def test_hybrid_levels_go_by_concurrency_and_stop_at_max():
    scaling = ScalingSpec(max=2, concurrency=4)
    assert look(0.0, HybridHistogramState(), 5, 5, scaling=scaling).memory.level == 2
    assert look(0.0, HybridHistogramState(), 99, 99, scaling=scaling).memory.level == 2
