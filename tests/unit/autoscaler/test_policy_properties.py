"""The whole policy in a small closed loop: what holds whatever comes.

The loop is not the simulator's: it is plain, moves in ticks, and knows nothing of the policy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
import pytest
from headrace_autoscaler.configs import LimitConfig
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    Pause,
    Release,
    Resume,
    ScalingSpec,
    Start,
    State,
    Wait,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = Config()
SPOT = OfferObservation(offer="spot", provider="p", region="r1", spot=True, price=1.0, boot_s=40.0)
ON_DEMAND = OfferObservation(offer="on-demand", provider="p", region="r2", price=3.0, boot_s=30.0)
OFFERS = (SPOT, ON_DEMAND)
CAPACITY_CHANGES = Start | Launch | Release | Pause | Resume
ROUNDING = 1e-9


@dataclass
class Instance:
    """One that starts, waits or runs requests (their ends)."""

    id: str
    ready_at: float
    started_at: float
    offer: OfferObservation | None = None
    running: list[float] = field(default_factory=list)
    used: float | None = None


class World:
    """One endpoint at home and at two offers. Requests take ``service_s``; the queue is first come, first
    served, and the instance that was used last is used next."""

    name = "default/e"
    json = False
    config = CONFIG

    def __init__(self, scaling, *, home=8, offers=(), start_s=3.0, service_s=10.0):
        self.scaling, self.home, self.offers = scaling, home, offers
        self.start_s, self.service_s = start_s, service_s
        self.now, self.state = 1_000_000.0, State()
        self.instances: dict[str, Instance] = {}
        self.queue: deque[float] = deque()
        self.arrived, self.demand_s, self.served, self.number = 0, 0.0, [], 0

    def __repr__(self):
        offers = [offer.offer for offer in self.offers]
        return f"World({self.scaling}, {self.home=}, {offers=}, {self.start_s=}, {self.service_s=})"

    def tick(self, seconds=1.0, arrivals=0, hold=None):
        """Let time pass and requests come, and decide."""
        self.advance(seconds, arrivals, hold)
        observation = self.see()
        decision = decide(self.now, observation, self.state, self.config)
        if self.json:
            assert decide(self.now, observation, self.state, self.config) == decision, "pure"
            line = msgspec.json.encode((observation, self.state, self.config))
            again = msgspec.json.decode(line, type=tuple[Observation, State, Config])
            assert decide(self.now, *again) == decision
            decision = msgspec.json.decode(msgspec.json.encode(decision), type=type(decision))
        self.state = decision.state
        self.carry_out(decision)
        return decision

    def advance(self, seconds, arrivals=0, hold=None):
        """Let time pass and requests come; with ``hold``: as many as keep so many there."""
        self.served = []
        self.demand_s += (self._running() + len(self.queue)) * seconds
        self.now += seconds
        for one in self.instances.values():
            ended = [end for end in one.running if end <= self.now]
            if ended:
                one.running = [end for end in one.running if end > self.now]
                one.used = self.now
                self.served += [self.service_s] * len(ended)
        if hold is not None:
            arrivals = max(0, hold - self._running() - len(self.queue))
        self.arrived += arrivals
        self.queue.extend([self.now] * arrivals)
        self._hand_out()

    def _running(self):
        return sum(len(one.running) for one in self.instances.values())

    def _hand_out(self):
        able = [one for one in self.instances.values() if one.ready_at <= self.now]
        able.sort(key=lambda one: (one.used or one.started_at, one.id), reverse=True)
        for one in able:
            while self.queue and len(one.running) < self.scaling.concurrency:
                self.queue.popleft()
                one.running.append(self.now + self.service_s)
                one.used = self.now

    def see(self, more=0):
        """What is observed, with ``more`` requests in the queue."""
        at_home = sum(one.offer is None for one in self.instances.values())
        oldest = self.now - self.queue[0] if self.queue else 0.0
        endpoint = EndpointObservation(
            endpoint=self.name,
            version=1,
            scaling=self.scaling,
            in_flight=self._running(),
            queued=len(self.queue) + more,
            oldest_wait_s=oldest,
            instances=tuple(self._shown(one) for one in self.instances.values()),
            arrived=self.arrived + more,
            demand_s=self.demand_s,
            served=tuple(self.served[-256:]),
            start_s=self.start_s,
        )
        host = HostObservation(
            host="h1",
            cpu_free=(self.home - at_home) * self.scaling.cpu,
            memory_free=1 << 40,
        )
        spending = sum(one.offer.price for one in self.instances.values() if one.offer)
        return Observation(endpoints=(endpoint,), hosts=(host,), offers=self.offers, spending=spending)

    def _shown(self, one):
        return InstanceObservation(
            id=one.id,
            host="h1" if one.offer is None else one.id,
            version=1,
            state="ready" if one.ready_at <= self.now else "starting",
            in_flight=len(one.running),
            started_at=one.started_at,
            last_used_at=one.used,
            cpu=self.scaling.cpu,
            ready_at=one.ready_at if one.ready_at <= self.now else None,
            offer=one.offer.offer if one.offer else "",
            spot=one.offer.spot if one.offer else False,
            price=one.offer.price if one.offer else 0.0,
        )

    def carry_out(self, decision):
        for action in decision.actions:
            if getattr(action, "endpoint", None) != self.name:
                continue
            assert action.reason
            if isinstance(action, Start):
                self._add(self.start_s, None)
            elif isinstance(action, Launch):
                offer = next(offer for offer in self.offers if offer.offer == action.offer)
                self._add(offer.boot_s, offer)
            elif isinstance(action, Release):
                gone = self.instances.pop(action.instance)
                # Busy on-demand drains when spot has taken its place; all else that is busy stays.
                assert not gone.running or (gone.offer is not None and not gone.offer.spot)
                self.queue.extendleft([self.now] * len(gone.running))
            else:
                assert isinstance(action, Wait)

    def _add(self, seconds, offer):
        self.number += 1
        name = f"{self.name}/{self.number:04d}"
        self.instances[name] = Instance(name, self.now + seconds, self.now, offer)

    @property
    def spending(self):
        return sum(one.offer.price for one in self.instances.values() if one.offer)


def changes(decision):
    return [action for action in decision.actions if isinstance(action, CAPACITY_CHANGES)]


def gained(decision):
    return sum(isinstance(action, Start | Launch | Resume) for action in decision.actions)


def lost(decision):
    return sum(isinstance(action, Release | Pause) for action in decision.actions)


scalings = st.builds(
    lambda low, span, concurrency, learn_idle, timeout, balance: ScalingSpec(
        min=low,
        max=max(1, low + span),
        concurrency=concurrency,
        target_concurrency=float(concurrency),
        learn_idle=learn_idle,
        idle_timeout_s=timeout,
        balance=balance,
        cpu=1.0,
    ),
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([1, 1, 4]),
    st.booleans(),
    st.sampled_from([0.0, 5.0, 30.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
worlds = st.builds(
    World,
    scalings,
    home=st.sampled_from([0, 3, 20]),
    offers=st.sampled_from([(), OFFERS, (SPOT,), (ON_DEMAND,)]),
    start_s=st.sampled_from([0.0, 3.0, 12.0, 90.0]),
    service_s=st.sampled_from([2.0, 10.0, 60.0]),
)
histories = st.lists(
    st.tuples(st.sampled_from([0.2, 1.0, 7.0]), st.integers(0, 12), st.integers(1, 12)), max_size=8
).map(lambda parts: [(seconds, arrivals) for seconds, arrivals, times in parts for _ in range(times)])


def room(world):
    return world.scaling.max if world.offers else min(world.home, world.scaling.max)


def drain(world):
    """Until nobody waits: each tick serves one at least, once there is an instance."""
    for _ in range(len(world.queue) + 9):
        if world.queue:
            world.tick(60.0)


def settle(world, hold=None):
    """Longer than anything idle is kept, `keep.EDGES_S`."""
    for seconds, times in ((2.0, 45), (10.0, 240)):
        for _ in range(times):
            world.tick(seconds, hold=hold)


@settings(max_examples=60, deadline=None)
@given(worlds, histories)
def test_never_above_max_and_never_below_min(world, history):
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
        assert len(world.instances) <= world.scaling.max
        assert len(world.instances) >= min(world.scaling.min, room(world))


@settings(max_examples=80, deadline=None)
@given(worlds, histories, st.sampled_from([0.0, 1.0, 2.0, 4.0, 7.0]), st.booleans())
def test_never_above_a_budget(world, history, budget, of_all):
    if of_all:
        world.config = Config(limits=LimitConfig(budget=budget))
    else:
        world.scaling = msgspec.structs.replace(world.scaling, budget=budget)
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
        assert world.spending <= budget + ROUNDING


@settings(max_examples=40, deadline=None)
@given(worlds, worlds, histories, st.sampled_from([0.0, 1.0, 2.0, 5.5, 9.0]))
def test_two_endpoints_share_a_budget_and_a_host(one, other, history, budget):
    """They decide together: home holds what ``one`` says, offers are those of both."""
    other.name = "default/f"
    config, state = Config(limits=LimitConfig(budget=budget)), State()
    both = {offer.offer: offer for world in (one, other) for offer in world.offers}
    one.offers = other.offers = tuple(both.values())
    for seconds, arrivals in history:
        one.advance(seconds, arrivals)
        other.advance(seconds, 12 - arrivals)
        at_home = sum(i.offer is None for world in (one, other) for i in world.instances.values())
        first, second = one.see(), other.see()
        host = msgspec.structs.replace(first.hosts[0], cpu_free=float(one.home - at_home))
        seen = msgspec.structs.replace(
            first,
            endpoints=first.endpoints + second.endpoints,
            hosts=(host,),
            spending=one.spending + other.spending,
        )
        decision = decide(one.now, seen, state, config)
        state = decision.state
        one.carry_out(decision)
        other.carry_out(decision)
        assert one.spending + other.spending <= budget + ROUNDING
        assert sum(i.offer is None for world in (one, other) for i in world.instances.values()) <= one.home
        assert all(len(world.instances) <= world.scaling.max for world in (one, other))


@settings(max_examples=20, deadline=None)
@given(worlds, histories, st.integers(0, 14))
def test_constant_demand_does_not_flap(world, history, demand):
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
    drain(world)
    settle(world, hold=demand)
    before = set(world.instances)
    for _ in range(60):
        assert not changes(world.tick(1.0, hold=demand))
    assert set(world.instances) == before
    assert len(before) >= min(room(world), world.scaling.min)


@settings(max_examples=20, deadline=None)
@given(worlds, histories)
def test_when_nothing_arrives_it_goes_to_min(world, history):
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
    drain(world)
    settle(world)
    assert not world.queue or not room(world)
    assert len(world.instances) == min(world.scaling.min, room(world))


@settings(max_examples=100, deadline=None)
@given(worlds, histories, st.integers(1, 30))
def test_more_that_waits_never_gets_less(world, history, more):
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
    world.now += 1.0
    world.demand_s += world._running() + len(world.queue)
    few, many = (decide(world.now, world.see(n), world.state, world.config) for n in (0, more))
    assert gained(few) <= gained(many)
    assert lost(many) <= lost(few)


@settings(max_examples=25, deadline=None)
@given(worlds, histories)
def test_state_and_observation_survive_json(world, history):
    world.json = True
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)


@settings(max_examples=25, deadline=None)
@given(worlds, histories)
def test_it_says_when_to_look_again_only_in_the_future(world, history):
    for seconds, arrivals in history:
        decision = world.tick(seconds, arrivals)
        assert decision.look_again_at is None or decision.look_again_at > world.now - 2 * ROUNDING


@settings(max_examples=25, deadline=None)
@given(worlds, histories, st.integers(1, 4))
def test_who_waits_gets_an_instance_where_there_is_room(world, history, waiting):
    for seconds, arrivals in history:
        world.tick(seconds, arrivals)
    world.tick(1.0, waiting)
    drain(world)
    assert not world.queue or not room(world)


@pytest.mark.parametrize("counted", [True, False])
def test_readings_that_are_missing_stop_nothing(counted):
    world = World(ScalingSpec(cpu=1.0, learn_idle=True, idle_timeout_s=30.0), home=4)
    see = world.see

    def blind(more=0):
        seen = see(more)
        one = msgspec.structs.replace(
            seen.endpoints[0], arrived=None, demand_s=None, served=(), start_s=3.0 if counted else None
        )
        return msgspec.structs.replace(seen, endpoints=(one,), spending=None)

    world.see = blind
    world.tick(1.0, 3)
    assert len(world.instances) == 3
    settle(world)
    assert not world.instances
