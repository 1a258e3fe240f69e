"""What control measures of an endpoint, when it looks again, and what its history leaves out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from headrace import wire
from headrace.control.history import History
from headrace.control.looks import SOONEST_S, Looks
from headrace.control.model import Endpoint, World
from headrace.control.recorder import DEMAND_EVERY_S, Recorder
from headrace.control.signals import AWAY_S, UNCOUNTED_S, Signals
from headrace.sdk.spec import EndpointSpec
from headrace_autoscaler.policy import decide
from headrace_autoscaler.replay import replay_file
from headrace_autoscaler.spec import (
    MAX_SERVED,
    Config,
    EndpointObservation,
    EndpointState,
    HostObservation,
    InstanceObservation,
    Observation,
    Record,
    ScalingSpec,
    State,
)


def said(arrived: int | None, demand_s: float | None = 0.0, **members: object) -> wire.EndpointDemand:
    return wire.EndpointDemand(endpoint="p/e", arrived=arrived, demand_s=demand_s, **members)  # type: ignore[arg-type]


def test_counters_of_gateways_add_up_and_never_go_back() -> None:
    signals = Signals()
    assert not signals.known(0.0), "nobody has said anything"
    signals.heard("a", said(5, 2.0), 1.0)
    signals.heard("b", said(3, 1.0), 1.0)
    signals.heard("a", said(9, 2.5), 2.0)
    assert (signals.arrived, signals.demand_s, signals.known(2.0)) == (12, 3.5, True)
    # The same gateway began anew: all that it says is new.
    signals.heard("a", said(2, 0.25), 3.0)
    assert (signals.arrived, signals.demand_s) == (14, 3.75)


def test_a_gateway_that_does_not_count_makes_it_unknown_for_a_while() -> None:
    signals = Signals()
    signals.heard("a", said(5), 1.0)
    signals.heard("old", said(None, None), 2.0)
    assert not signals.known(2.0 + UNCOUNTED_S)
    assert signals.known(2.1 + UNCOUNTED_S)


def test_a_busy_gateway_that_is_away_makes_it_unknown_until_it_is_back_or_has_ended() -> None:
    signals = Signals()
    signals.heard("a", said(5), 1.0)
    signals.lost("a", 2.0)
    assert not signals.known(3.0)
    signals.heard("a", said(8), 4.0)
    assert signals.known(4.0)
    assert signals.arrived == 8, "what came meanwhile is in its counters"
    signals.lost("a", 5.0)
    assert not signals.known(5.0 + AWAY_S)
    assert signals.known(5.1 + AWAY_S)


def test_jobs_in_the_store_are_demand() -> None:
    signals = Signals()
    signals.stored(4, 10.0)
    signals.stored(0, 12.5)
    signals.stored(0, 20.0)
    assert signals.demand_s == 10.0


def test_service_times_are_taken_once_and_bounded() -> None:
    signals = Signals()
    for number in range(100):
        signals.heard("a", said(number, served=(float(number),) * 10), 1.0)
    found = signals.take_served()
    assert len(found) == MAX_SERVED
    assert found[-1] == 99.0
    assert signals.take_served() == ()


def test_a_start_takes_what_starts_like_it_took() -> None:
    signals = Signals()
    assert signals.start_s(warm=True) is None
    signals.started("cold", 30.0)
    assert signals.start_s(warm=True) == 30.0, "no other was seen"
    for seconds in (0.1, 0.3, 0.2):
        signals.started("warm", seconds)
    assert signals.start_s(warm=True) == 0.2
    assert signals.start_s(warm=False) == 30.0


def endpoint(world: World) -> Endpoint:
    spec = EndpointSpec(name="e", project="p", entry="m:f", handler="function")
    made = Endpoint(key="p/e", spec=spec, version=1)
    world.endpoints[made.key] = made
    return made


async def test_a_look_comes_when_it_is_due_and_only_the_newest() -> None:
    world = World()
    looked: list[Endpoint] = []
    looks = Looks(world, looked.append)
    one = endpoint(world)
    looks.at(one, world.now() + 3600.0)
    looks.at(one, world.now() - 5.0)
    assert not looked, "never at once"
    await asyncio.sleep(3 * SOONEST_S)
    assert looked == [one]
    assert world.active == {"p/e": one}, "ticks look at it again, too"
    for when in (world.now(), None):
        looks.at(one, when)
    looks.at(one, world.now())
    looks.stop()
    await asyncio.sleep(2 * SOONEST_S)
    assert looked == [one]
    looks.at(one, world.now())
    one.deleting = True
    looks.at(one, world.now())
    await asyncio.sleep(2 * SOONEST_S)
    assert looked == [one]


def record(now: float, state: State, *, queued: int = 1, arrived: int | None = None) -> Record:
    observation = Observation(
        endpoints=(
            EndpointObservation(
                endpoint="p/e", version=1, scaling=ScalingSpec(), queued=queued, arrived=arrived,
                demand_s=0.1 + 0.2, served=(1 / 3,),
            ),
        ),
        hosts=(HostObservation(host="h", cpu_free=4.0, memory_free=1 << 30, price=0.1),),
    )  # fmt: skip
    decision = decide(now, observation, state, Config())
    return Record(now=now, observation=observation, state=state, config=Config(), decision=decision)


async def test_each_file_is_replayed_by_itself(tmp_path: Path) -> None:
    history = History(tmp_path, max_bytes=2_000)
    history.start()
    state = State(endpoints={"p/e": EndpointState(desired=0)})
    for number in range(60):
        one = record(float(number), state)
        state = one.decision.state
        history.record(one)
        await asyncio.sleep(0.001)
    await history.stop()
    files = sorted(tmp_path.iterdir())
    assert tmp_path / "decisions.1.jsonl" in files
    assert all(replay_file(path) == [] for path in files)


async def test_demand_is_recorded_now_and_then_although_nothing_is_done(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.start()
    recorder = Recorder(history)
    one = endpoint(World())
    busy = InstanceObservation(id="i", host="h", version=1, state="ready", in_flight=1)
    for number in range(6):
        made = record(number * DEMAND_EVERY_S / 2, State(), queued=0, arrived=min(number, 3))
        seen = msgspec.structs.replace(made.observation.endpoints[0], instances=(busy,), in_flight=1)
        observation = msgspec.structs.replace(made.observation, endpoints=(seen,))
        decision = decide(made.now, observation, State(), Config())
        assert not decision.actions
        made = msgspec.structs.replace(made, observation=observation, decision=decision)
        recorder.note(one, "p/e", made)
    await history.stop()
    lines = [msgspec.json.decode(x) for x in (tmp_path / "decisions.jsonl").read_bytes().splitlines()]
    # Every second look; after the fourth nothing came any more.
    assert [line["observation"]["endpoints"][0]["arrived"] for line in lines] == [0, 2, 3]
    assert one.notes is None
