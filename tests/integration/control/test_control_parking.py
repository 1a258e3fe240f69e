"""Control's half of pausing: what it books and tells when commands, links and control itself are lost."""

from __future__ import annotations

from typing import Any

import pytest
from headrace import wire
from headrace.control.parking import Heard, heard
from headrace.sdk.spec import Gpu, Scaling

from tests.integration.control.conftest import FakeHost, Platform, until

TABLE: list[tuple[wire.InstanceState, bool, wire.InstanceState | None, wire.InstanceState, Heard]] = [
    # state in the tables, told to go on, said before; said now: what follows
    ("ready", False, "ready", "paused", "paused"),
    ("paused", False, "ready", "paused", "seen"),
    ("paused", False, "paused", "paused", "seen"),
    ("paused", True, "paused", "paused", "seen"),
    ("paused", False, "ready", "ready", "none"),
    ("paused", False, None, "ready", "none"),
    ("paused", False, "paused", "ready", "ready"),
    ("paused", True, "paused", "ready", "ready"),
    ("paused", True, "ready", "ready", "ready"),
    ("paused", True, "paused", "draining", "none"),
    ("draining", False, "paused", "paused", "none"),
    ("draining", False, "paused", "ready", "none"),
    ("starting", False, "starting", "ready", "none"),
    ("ready", False, "ready", "ready", "none"),
]


@pytest.mark.parametrize(("state", "resuming", "before", "said", "follows"), TABLE)
def test_what_follows_from_a_word_of_the_host(
    state: wire.InstanceState,
    resuming: bool,
    before: wire.InstanceState | None,
    said: wire.InstanceState,
    follows: Heard,
) -> None:
    assert heard(state, said, before=before, resuming=resuming) == follows


async def one_and_two(platform: Platform) -> tuple[FakeHost, str]:
    """A host with one accelerator, two endpoints that want it, and the instance of the first."""
    host = await platform.new_host(
        gpu={"X1": 1}, runtimes=("oci",), pauses=("oci",), pauses_gpu=True, paused_bytes=8 << 30
    )
    for name in ("one", "two"):
        done = await platform.gateway.deploy(
            platform.spec(
                name, gpu=(Gpu(name="X1", count=1),), runtime="oci", scaling=Scaling(idle_timeout=30.0, max=1)
            ),
            verify=False,
        )
        assert done["state"] == "succeeded", done
    platform.gateway.wake("one")
    await until(lambda: platform.gateway.of("one"))
    platform.gateway.demand("one")
    return host, platform.gateway.of("one")[0].id


def known(platform: Platform, id: str) -> Any:
    return platform.world.instances.get(id)


async def paused(platform: Platform) -> tuple[FakeHost, str]:
    """The second has the accelerator, the first is paused."""
    host, first = await one_and_two(platform)
    await until(lambda: known(platform, first).last_used is None or not known(platform, first).in_flight)
    platform.gateway.wake("two")
    await until(lambda: platform.gateway.of("two"))
    platform.gateway.demand("two")
    await until(lambda: host.instances[first].state == "paused")
    return host, first


async def test_control_that_comes_back_books_a_paused_one_with_its_memory_only(platform: Platform) -> None:
    host, first = await paused(platform)
    before = platform.world.hosts[host.id].free()
    await platform.restart()
    await host.connect()
    await platform.gateway.connect()
    await until(lambda: known(platform, first) is not None)
    now = platform.world.hosts[host.id]
    assert known(platform, first).parked
    assert now.free() == before
    assert now.used_paused == known(platform, first).memory
    # And it goes on for the next request.
    platform.gateway.wake("one")
    await until(lambda: [i.id for i in platform.gateway.of("one")] == [first])
    assert [start.spec.endpoint for start in host.started] == ["default/one", "default/two"]


async def test_one_that_its_predecessor_called_back_is_ready_for_the_next_control(platform: Platform) -> None:
    host, first = await paused(platform)
    second = platform.gateway.of("two")[0].id
    await platform.restart()
    host.hold_turns = True
    await host.connect()
    await platform.gateway.connect()
    await until(lambda: known(platform, first) is not None)
    host.turn(second, "paused")
    host.turn(first, "ready")
    await until(lambda: [i.id for i in platform.gateway.of("one")] == [first])
    assert platform.gateway.of("two") == []
    assert platform.world.hosts[host.id].free()[2] == {"X1": 0}


async def test_a_host_that_was_away_for_long_comes_back_with_its_paused_one(platform: Platform) -> None:
    host, first = await paused(platform)
    free = platform.world.hosts[host.id].free()
    host.cut()
    await until(lambda: platform.world.hosts[host.id].state == "dead")
    assert known(platform, first) is None
    await host.connect()
    await until(lambda: known(platform, first) is not None)
    assert known(platform, first).parked
    assert platform.world.hosts[host.id].free() == free


async def test_a_pause_and_a_resume_that_were_lost_with_the_link_are_said_again(platform: Platform) -> None:
    host, first = await one_and_two(platform)
    host.hold_turns = True
    platform.gateway.wake("two")
    await until(lambda: ("pause", first) in host.log)
    host.cut()
    host.log.clear()
    host.hold_turns = False
    await host.connect()
    await until(lambda: host.instances[first].state == "paused")
    await until(lambda: platform.gateway.of("two"))
    platform.gateway.demand("two")
    host.hold_turns = True
    platform.gateway.wake("one")
    await until(lambda: ("resume", first) in host.log)
    host.cut()
    host.hold_turns = False
    await host.connect()
    await until(lambda: [i.id for i in platform.gateway.of("one")] == [first])


async def test_a_request_that_waits_in_a_frozen_one_calls_it_back(platform: Platform) -> None:
    host, first = await paused(platform)
    # A gateway that control could not tell in time has sent it there.
    platform.gateway.demand("one", in_flight=1, instances={first: 1})
    await until(lambda: ("resume", first) in host.log)
    await until(lambda: [i.id for i in platform.gateway.of("one")] == [first])


async def test_a_request_at_the_moment_of_the_pause_makes_it_drain_and_not_freeze(platform: Platform) -> None:
    host, first = await one_and_two(platform)
    platform.gateway.late[first] = wire.EndpointDemand(
        endpoint="default/one", in_flight=1, instances={first: 1}
    )
    host.hold_stops = True
    platform.gateway.wake("two")
    await until(lambda: ("stop", first) in host.log)
    assert ("pause", first) not in host.log
    assert platform.gateway.of("one") == []
    host.end(first)
    await until(lambda: platform.gateway.of("two"))


async def test_deleted_and_redeployed_while_it_is_paused(platform: Platform) -> None:
    host, first = await paused(platform)
    done = await platform.gateway.deploy(
        platform.spec("one", gpu=(Gpu(name="X1", count=1),), runtime="oci", env={"A": "1"}), verify=False
    )
    assert done["state"] == "succeeded", done
    await until(lambda: ("stop", first) in host.log)
    await platform.gateway.api("DELETE", "/endpoints/two")
    await until(lambda: platform.world.hosts[host.id].free() == (4.0, 8 << 30, {"X1": 1}))
    assert platform.world.hosts[host.id].used_paused == 0


async def test_a_paused_one_that_is_killed_is_forgotten_and_another_starts(platform: Platform) -> None:
    host, first = await paused(platform)
    host.end(first, wire.Death(reason="signalled", detail="killed by SIGKILL", signal=9))
    await until(lambda: known(platform, first) is None)
    assert platform.world.hosts[host.id].used_paused == 0
    platform.gateway.wake("one")
    await until(lambda: platform.gateway.of("one"))
    assert platform.gateway.of("one")[0].id != first
