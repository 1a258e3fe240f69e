"""How large pools of spares are: what the autoscaler sees of them, and what hosts are told."""

from __future__ import annotations

from typing import Any

import pytest
from headrace import wire
from headrace.control import deciding, pools
from headrace_autoscaler.history import read
from headrace_autoscaler.spec import Decision, EndpointState, Launch, Observation, Refill, State, WarmNodes
from headrace_autoscaler.states import PoolState


def sizes(host: Any) -> dict[wire.BaseSpec, int]:
    """What the host was told last."""
    return dict(host.warm[-1].bases)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    """A policy of pools: five spares; what it was shown."""
    shown: list[Observation] = []

    def decide(now: float, observation: Observation, state: State, config: Any) -> Decision:
        shown.append(observation)
        refills = [
            Refill(host=pool.host, base=pool.base, count=5, reason="five are enough")
            for pool in observation.pools
        ]
        gone = Refill(host="h-gone", base="x", count=1, reason="for a host that has left")
        nodes = WarmNodes(offer="o", count=1, reason="no provider is there")
        memory = {f"{pool.host}/{pool.base}": PoolState() for pool in observation.pools}
        return Decision(actions=(*refills, gone, nodes), state=State(pools=memory))

    monkeypatch.setattr(pools, "decide", decide)
    return shown


async def test_starts_are_counted_and_hosts_told_what_is_decided(
    platform: Any, decided: list[Observation]
) -> None:
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.of("hello"))
    base = next(base for base in sizes(host) if base.project == "default")
    host.send(
        wire.WarmEvent(
            warm=wire.WarmReport(base=base, state="ready", spares=4, bytes=50 << 20, refill_s=0.25)
        )
    )
    keeper = platform.control.parts.pools
    world = platform.world
    await platform.until(lambda: world.hosts[host.id].warm[base].spares == 4)
    keeper.look()
    (pool,) = decided[-1].pools
    assert (pool.host, pool.ready, pool.claimed, pool.refill_s) == (host.id, 4, 1, 0.25)
    assert pool.missed == 1, "the host of this test forks for each start"
    assert pool.memory == (50 << 20) // 5
    await platform.until(lambda: sizes(host)[base] == 5)
    assert all(count == platform.settings.spares for other, count in sizes(host).items() if other != base)
    told = len(host.warm)
    keeper.look()
    assert len(host.warm) == told, "nothing has changed"
    await platform.control.stop()
    path = platform.settings.data / "history" / "decisions.jsonl"
    recorded = [record for _, record in read(path.read_bytes().splitlines()) if record.lane == ""]
    assert [len(record.observation.pools) for record in recorded] == [1]


async def test_no_pool_is_smaller_than_the_setting(platform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    base = next(base for base in sizes(host) if base.project == "default")

    def decide(now: float, observation: Observation, state: State, config: Any) -> Decision:
        refills = [Refill(host=p.host, base=p.base, count=0, reason="nobody came") for p in observation.pools]
        return Decision(actions=tuple(refills), state=State())

    monkeypatch.setattr(pools, "decide", decide)
    warm, seen = platform.control.parts.warm, platform.world.hosts[host.id]
    warm.resize(seen, base, 9)
    seen.warm[base] = wire.WarmReport(base=base, state="ready", spares=9, bytes=1 << 20)
    platform.control.parts.pools.look()
    assert warm.size(seen, base) == platform.settings.spares > 0
    # What one costs is not known before its host has looked.
    seen.warm[base] = wire.WarmReport(base=base, state="ready", spares=9)
    assert platform.control.parts.pools.seen() == ()


async def test_sizes_go_with_the_host_and_the_base(platform: Any, decided: list[Observation]) -> None:
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    warm = platform.control.parts.warm
    base = warm.bases()[0]
    seen = platform.world.hosts[host.id]
    warm.resize(seen, base, 7)
    assert warm.size(seen, base) == 7
    warm.drop(base)
    warm.tidy()
    assert warm.size(seen, base) == platform.settings.spares
    warm.use(platform.spec(), 1)
    warm.resize(seen, base, 7)
    seen.state = "dead"
    warm.tidy()
    assert warm.size(seen, base) == platform.settings.spares


async def test_an_endpoint_that_cannot_be_decided_for_forgets_and_stands_in_nobodys_way(
    platform: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = deciding.decide

    def decide(now: float, observation: Observation, state: State, config: Any) -> Decision:
        (memory,) = state.endpoints.values()
        if memory.desired == 77:
            raise IndexError("tuple index out of range")
        return original(now, observation, state, config)

    await platform.new_host()
    await platform.gateway.deploy(platform.spec("bad"), platform.spec("good"), verify=False)
    monkeypatch.setattr(deciding, "decide", decide)
    world = platform.world
    world.endpoints["default/bad"].memory = EndpointState(desired=77)
    for name in ("bad", "good"):
        platform.gateway.wake(name)
        await platform.until(lambda name=name: platform.gateway.of(name))
    assert world.endpoints["default/bad"].memory.desired < 77
    said = [record.getMessage() for record in caplog.records if "failed for" in record.getMessage()]
    assert len(said) == 1
    assert "default/bad: what was learnt of it is forgotten" in said[0]


async def test_nodes_that_nobody_can_launch_are_a_reason_to_wait(
    platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = deciding.decide

    def decide(now: float, observation: Observation, state: State, config: Any) -> Decision:
        name = observation.endpoints[0].endpoint
        launch = Launch(endpoint=name, version=1, offer="aws/us-east-1/h100", reason="1 queued asks for 1")
        return Decision(actions=(launch,), state=original(now, observation, state, config).state)

    await platform.gateway.deploy(platform.spec(), verify=False)
    monkeypatch.setattr(deciding, "decide", decide)
    platform.gateway.wake("hello")
    await platform.until(
        lambda: "no provider can launch" in platform.gateway.endpoints["default/hello"].reason
    )
    _, doc = await platform.gateway.api("GET", "/endpoints/hello")
    assert [(d["action"], d["reason"]) for d in doc["decisions"]] == [("launch", "1 queued asks for 1")]
