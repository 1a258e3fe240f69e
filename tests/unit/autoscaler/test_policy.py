"""The policy: properties over random traces, and each rule by itself."""

from __future__ import annotations

import math

import msgspec
from headrace_autoscaler.policy import decide, wanted
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    Release,
    ScalingSpec,
    Start,
    State,
    Wait,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = Config(tick_s=0.5, scale_down_delay_s=5.0)
HOST = HostObservation(host="h1", cpu_free=64.0, memory_free=1 << 40)


def ready(id="a", host="h1", version=1, in_flight=0, started=0.0, used=None, state="ready", **size):
    return InstanceObservation(
        **size,
        id=id,
        host=host,
        version=version,
        state=state,
        in_flight=in_flight,
        started_at=started,
        last_used_at=used,
    )


def see(scaling=None, hosts=(HOST,), donors=(), **options):
    values = {"endpoint": "default/e", "version": 1, "scaling": scaling or ScalingSpec()} | options
    return Observation(
        endpoints=(EndpointObservation(**values),), hosts=tuple(hosts), idle_elsewhere=tuple(donors)
    )


def do(observation, now=100.0, state=None):
    decision = decide(now, observation, state or State(), CONFIG)
    for action in decision.actions:
        assert action.reason
    return decision


def starts(decision):
    return [a for a in decision.actions if isinstance(a, Start)]


def releases(decision):
    return [a for a in decision.actions if isinstance(a, Release)]


def waits(decision):
    return [a for a in decision.actions if isinstance(a, Wait)]


# -- properties over a simulated endpoint ----------------------------------------------------


class Sim:
    """An endpoint on one host whose starts take one tick."""

    def __init__(self, scaling, cpu=64.0):
        self.scaling, self.cpu = scaling, cpu
        self.now, self.state = 1000.0, State()
        self.instances = {}
        self.number = 0
        self.decisions = []

    def tick(self, demand):
        self.now += CONFIG.tick_s
        for id, i in self.instances.items():
            if i.state == "starting":
                self.instances[id] = msgspec.structs.replace(i, state="ready")
        able = [id for id, i in self.instances.items() if i.state == "ready"]
        load = dict.fromkeys(able, 0)
        for n in range(min(demand, len(able) * self.scaling.concurrency)):
            load[able[n % len(able)]] += 1
        for id in able:
            used = self.now if load[id] else self.instances[id].last_used_at
            self.instances[id] = msgspec.structs.replace(
                self.instances[id], in_flight=load[id], last_used_at=used
            )
        served = sum(load.values())
        left = self.cpu - self.scaling.cpu * len(self.instances)
        observation = see(
            self.scaling,
            [msgspec.structs.replace(HOST, cpu_free=left)],
            in_flight=served,
            queued=demand - served,
            instances=tuple(self.instances.values()),
        )
        decision = do(observation, self.now, self.state)
        assert decide(self.now, observation, self.state, CONFIG) == decision
        self.state = decision.state
        for action in decision.actions:
            if isinstance(action, Start):
                self.number += 1
                id = f"i{self.number}"
                self.instances[id] = ready(id, started=self.now, state="starting")
            elif isinstance(action, Release):
                gone = self.instances.pop(action.instance)
                assert gone.in_flight == 0
                idle = self.now - (gone.started_at if gone.last_used_at is None else gone.last_used_at)
                assert gone.last_used_at is not None or idle >= self.scaling.idle_timeout_s
        self.decisions.append(decision)
        return decision


scalings = st.builds(
    lambda low, span, target, timeout, warm, concurrency: ScalingSpec(
        min=low,
        max=max(1, low + span),
        target_concurrency=target,
        idle_timeout_s=timeout,
        warm=warm,
        concurrency=concurrency,
        cpu=1.0,
    ),
    st.integers(0, 3),
    st.integers(0, 5),
    st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    st.sampled_from([0.0, 1.0, 10.0]),
    st.integers(0, 2),
    st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(scalings, st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0.0, 10.0))
def test_it_stays_between_min_and_max_and_releases_nobody_busy(scaling, demands, cpu):
    sim = Sim(scaling, cpu)
    for demand in demands:
        sim.tick(demand)
        assert len(sim.instances) <= scaling.max
        assert len(sim.instances) >= min(scaling.min, int(cpu))


@settings(max_examples=40, deadline=None)
@given(scalings, st.integers(0, 20), st.lists(st.integers(0, 20), max_size=10))
def test_constant_demand_does_not_flap(scaling, demand, before):
    sim = Sim(scaling)
    for d in before:
        sim.tick(d)
    settle = int((CONFIG.scale_down_delay_s + scaling.idle_timeout_s) / CONFIG.tick_s) + 4
    for _ in range(settle):
        sim.tick(demand)
    first = set(sim.instances)
    for _ in range(30):
        assert not sim.tick(demand).actions
    assert set(sim.instances) == first


@settings(max_examples=40, deadline=None)
@given(scalings, st.lists(st.integers(0, 20), max_size=10))
def test_when_nothing_arrives_it_goes_to_min(scaling, before):
    sim = Sim(scaling)
    for demand in before:
        sim.tick(demand)
    for _ in range(int(scaling.idle_timeout_s / CONFIG.tick_s) + 4):
        sim.tick(0)
    assert len(sim.instances) == scaling.min


@given(scalings, st.integers(0, 50), st.integers(0, 50), st.integers(0, 5))
def test_more_demand_never_wants_or_starts_less(scaling, one, other, existing):
    less, more = sorted((one, other))
    there = tuple(ready(f"i{n}") for n in range(existing))
    low = see(scaling, in_flight=less, instances=there)
    high = see(scaling, in_flight=more, instances=there)
    assert wanted(low.endpoints[0]) <= wanted(high.endpoints[0])
    assert len(starts(do(low))) <= len(starts(do(high)))


@given(
    scalings, st.integers(0, 20), st.integers(0, 6), st.integers(0, 6), st.integers(0, 4), st.floats(0.0, 8.0)
)
def test_a_rollout_exceeds_max_by_one_at_most(scaling, demand, new, old, loaded, cpu):
    new, old = min(new, scaling.max), min(old, scaling.max)
    there = [ready(f"n{n}", version=2) for n in range(new)]
    there += [ready(f"o{n}", in_flight=n < loaded) for n in range(old)]
    host = msgspec.structs.replace(HOST, cpu_free=cpu)
    observation = see(scaling, [host], version=2, rollout_from=1, queued=demand, instances=tuple(there))
    decision = do(observation)
    if starts(decision):
        assert len(there) + len(starts(decision)) <= scaling.max + 1
    if old:
        assert len(releases(decision)) <= 1
        assert all(a.instance.startswith("o") for a in releases(decision))


# -- rules -------------------------------------------------------------------------------------


def test_a_burst_starts_all_that_it_wants_at_once():
    decision = do(see(ScalingSpec(max=4), queued=200))
    assert len(starts(decision)) == 4
    assert starts(decision)[0].reason == "0 in flight and 200 queued are more than max=4 serve"


def test_claims_in_flight_are_capacity():
    assert not do(
        see(ScalingSpec(max=4), queued=2, instances=(ready("a", state="starting"), ready("b")))
    ).actions


def test_warm_spares_come_with_demand_only():
    scaling = ScalingSpec(max=9, warm=2)
    assert len(starts(do(see(scaling, queued=1)))) == 3
    assert not do(see(scaling)).actions


def test_min_without_demand():
    assert len(starts(do(see(ScalingSpec(min=2))))) == 2


def test_an_unused_instance_waits_for_its_idle_timeout():
    scaling = ScalingSpec(idle_timeout_s=60.0)
    one = see(scaling, instances=(ready(started=50.0),))
    assert not do(one, 109.9).actions
    assert releases(do(one, 110.0))


def test_surplus_goes_after_the_delay_and_only_idle_ones():
    scaling = ScalingSpec(max=9)
    there = (ready("a", used=99.0), ready("b", used=98.0), ready("c", in_flight=1, used=10.0), ready("d"))
    busy = see(scaling, in_flight=4, instances=there)
    quiet = see(scaling, in_flight=1, instances=there)
    state = do(busy, 100.0).state
    first = do(quiet, 101.0, state)
    assert not first.actions
    assert not do(quiet, 105.9, first.state).actions
    late = do(quiet, 106.0, first.state)
    # d was never used and is younger than its idle timeout only when it started late.
    assert {a.instance for a in releases(late)} == {"a", "b", "d"}
    fresh = msgspec.structs.replace(there[3], started_at=105.0)
    late = do(see(scaling, in_flight=1, instances=(*there[:3], fresh)), 106.0, first.state)
    assert {a.instance for a in releases(late)} == {"a", "b"}


def test_a_suspect_hosts_instances_are_left_alone():
    suspect = msgspec.structs.replace(HOST, state="suspect")
    decision = do(see(hosts=[suspect], instances=(ready(used=1.0),)), 1000.0)
    assert not decision.actions


def test_backed_off_starts_wait_with_the_reason():
    (wait,) = do(see(queued=3, blocked_until=104.0)).actions
    assert (wait.wanted, wait.reason) == (3, "starts fail: tries again in 4.0 s")


def test_without_room_the_longest_idle_elsewhere_gives_way():
    full = msgspec.structs.replace(HOST, cpu_free=0.5)
    other = ScalingSpec(cpu=1.0)
    donors = [
        ("default/x", ready("x1", used=80.0), other),
        ("default/y", ready("y1", used=20.0), other),
        ("default/z", ready("z1", used=1.0, in_flight=1), other),
        ("default/u", ready("u1", started=90.0), other),
    ]
    decision = do(see(ScalingSpec(cpu=1.0), [full], donors, queued=1))
    assert [(type(a).__name__, getattr(a, "instance", "")) for a in decision.actions] == [
        ("Release", "y1"),
        ("Start", ""),
    ]
    assert "gives way to default/e" in decision.actions[0].reason


def test_when_giving_way_would_not_help_nobody_is_released():
    full = msgspec.structs.replace(HOST, cpu_free=0.5)
    donors = [("default/x", ready("x1", used=80.0), ScalingSpec(cpu=0.25))]
    (wait,) = do(see(ScalingSpec(cpu=1.0, memory=256 << 20), [full], donors, queued=1)).actions
    assert wait.reason == "no host has room for cpu=1 memory=256MiB"


def test_a_rollout_without_room_drains_one_old_and_says_so():
    full = msgspec.structs.replace(HOST, cpu_free=0.0)
    scaling = ScalingSpec(max=2, cpu=1.0)
    there = (ready("o1", in_flight=2, cpu=1.0), ready("o2", in_flight=1, cpu=1.0))
    decision = do(see(scaling, [full], version=2, rollout_from=1, queued=1, instances=there))
    assert [a.instance for a in releases(decision)] == ["o2"]
    assert "drains first" in waits(decision)[0].reason
    there = (there[0], msgspec.structs.replace(there[1], state="draining"))
    decision = do(see(scaling, [full], version=2, rollout_from=1, queued=1, instances=there))
    assert not releases(decision)
    assert waits(decision)


def test_an_unused_instance_gives_way_only_when_its_first_request_has_had_time_to_come():
    full = HostObservation(host="h1", cpu_free=0.0, memory_free=1 << 30)
    scaling = ScalingSpec(cpu=1.0, idle_timeout_s=600.0)

    def donors(started):
        return [("default/x", ready("x1", started=started), scaling)]

    young = see(ScalingSpec(cpu=1.0), [full], donors(100.0 - CONFIG.unused_hold_s / 2), queued=1)
    (wait,) = do(young).actions
    assert isinstance(wait, Wait)
    old = see(ScalingSpec(cpu=1.0), [full], donors(100.0 - CONFIG.unused_hold_s), queued=1)
    assert [r.instance for r in releases(do(old))] == ["x1"]


def test_a_wait_says_whether_room_is_what_is_missing():
    full = HostObservation(host="h1", cpu_free=0.0, memory_free=1 << 30)

    def no_room(hosts, **scaling):
        (wait,) = do(see(ScalingSpec(**scaling), hosts, queued=1)).actions
        return wait.no_room

    assert no_room([full])
    assert not no_room([])
    assert not no_room([full], regions=("mars",))
    assert not no_room([full], gpu=(("H100", 1),))
    assert no_room([msgspec.structs.replace(full, gpu_free={"H100": 0})], gpu=(("H100", 1),))


def test_a_rollout_drains_nothing_where_that_cannot_help():
    full = msgspec.structs.replace(HOST, cpu_free=0.5, gpu_free={"L4": 0})
    other = msgspec.structs.replace(full, host="h2", cpu_free=0.0)
    small = (ready("o1", cpu=0.25), ready("o2", host="h2", cpu=0.25))
    held = (ready("o1", cpu=0.25, gpu=(("L4", 1),)), ready("o2", host="h2", cpu=0.25))
    for scaling, there in (
        (ScalingSpec(max=2, gpu=(("H100", 1),)), small),
        (ScalingSpec(max=2, gpu=(("L4", 1),)), small),
        (ScalingSpec(max=2, cpu=1.0), small),
        (ScalingSpec(max=2, providers=("elsewhere",)), small),
    ):
        decision = do(see(scaling, [full, other], version=2, rollout_from=1, queued=1, instances=there))
        assert not releases(decision)
        assert waits(decision)
        assert "drains first" not in waits(decision)[0].reason
    # The one whose end helps goes, whatever else is less busy.
    for scaling, there in (
        (ScalingSpec(max=2, gpu=(("L4", 1),)), held),
        (ScalingSpec(max=2, cpu=0.75), small),
    ):
        decision = do(see(scaling, [full, other], version=2, rollout_from=1, queued=1, instances=there))
        assert [a.instance for a in releases(decision)] == ["o1"]


def test_equal_input_gives_equal_output_and_survives_json():
    observation = see(ScalingSpec(max=3), queued=2)
    again = msgspec.json.decode(msgspec.json.encode(observation), type=Observation)
    assert do(again) == do(observation)


def test_fractions_of_the_target_round_up():
    scaling = ScalingSpec(max=99, target_concurrency=3.0)
    for demand in range(20):
        assert wanted(see(scaling, in_flight=demand).endpoints[0]) == math.ceil(demand / 3)


def test_one_that_nobody_used_yet_is_surplus_only_after_its_idle_time_out():
    scaling = ScalingSpec(idle_timeout_s=60.0)
    there = (ready("a", in_flight=1, used=99.0), ready("b", started=50.0), ready("c", started=30.0))
    busy = see(scaling, in_flight=1, instances=there)
    # Two are too many: c has been there for 70 s; b may still be somebody's whose request is on its way.
    decision = do(busy, 100.0)
    assert [(a.instance, a.reason) for a in releases(decision)] == [("c", "3 instances, 1 do for 1 requests")]


def test_without_room_one_that_is_idle_makes_place_once_only():
    full = msgspec.structs.replace(HOST, cpu_free=0.0)
    donors = [("default/x", ready("x1", used=80.0, cpu=1.0), ScalingSpec(cpu=1.0))]
    decision = do(see(ScalingSpec(cpu=1.0), [full], donors, queued=2))
    assert [a.instance for a in releases(decision)] == ["x1"]
    (start,) = starts(decision)
    assert start.after == ("x1",)
    assert [w.wanted for w in waits(decision)] == [1]


def test_no_more_go_than_are_too_many():
    there = (ready("a", used=10.0), ready("b", used=20.0), ready("c", used=30.0))
    decision = do(see(ScalingSpec(min=2, idle_timeout_s=5.0), instances=there))
    assert [(a.instance, a.reason) for a in releases(decision)] == [("a", "idle for 90.0 s (idle_timeout=5)")]
