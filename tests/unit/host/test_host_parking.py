"""Pausing and going on: every move of the states, and commands that come twice or late."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, get_args

import pytest
from headrace import wire
from headrace.host.agent import HostAgent
from headrace.host.turns import MOVES, Effect, Event, Turn, move
from headrace_runtimes.spec import Exit

from tests.unit.host.conftest import FakeRuntime, FakeSandbox, RecordingControl, make_zip, until

CODE = make_zip({"app.py": "def f(): return 1\n"})
SHA = hashlib.sha256(CODE).hexdigest()
TABLE: list[tuple[Turn, Event, Turn, Effect]] = [
    ("running", "pause", "pausing", "freeze"),
    ("running", "resume", "running", "tell"),
    ("pausing", "pause", "pausing", "none"),
    ("pausing", "resume", "recalled", "none"),
    ("pausing", "frozen", "parked", "tell"),
    ("pausing", "busy", "leaving", "end"),
    ("recalled", "pause", "pausing", "none"),
    ("recalled", "resume", "recalled", "none"),
    ("recalled", "frozen", "resuming", "thaw"),
    ("recalled", "busy", "running", "tell"),
    ("parked", "pause", "parked", "tell"),
    ("parked", "resume", "resuming", "thaw"),
    ("resuming", "pause", "resuming", "none"),
    ("resuming", "resume", "resuming", "none"),
    ("resuming", "thawed", "running", "tell"),
    ("resuming", "lost", "leaving", "end"),
]
SAID = {(turn, event) for turn, event, _, _ in TABLE}


@pytest.mark.parametrize(("turn", "event", "after", "effect"), TABLE)
def test_every_move(turn: Turn, event: Event, after: Turn, effect: Effect) -> None:
    assert move(turn, event) == (after, effect)


def test_nothing_else_moves_and_an_end_is_final() -> None:
    assert {(turn, event) for turn, moves in MOVES.items() for event in moves} <= SAID
    for turn in get_args(Turn):
        assert move(turn, "stop") == ("leaving", "none")
        for event in get_args(Event):
            if (turn, event) not in SAID and event != "stop":
                assert move(turn, event) == (turn, "none")


class Host:
    """The host on its link, with one accelerator of the model L4."""

    def __init__(self, control: RecordingControl, runtime: FakeRuntime) -> None:
        self.control, self.runtime = control, runtime
        self.control.blobs[SHA] = CODE

    async def start(
        self, id: str, *after: str, busy: int | None = 0, ready: bool = True, **changes: Any
    ) -> FakeSandbox:
        spec = wire.InstanceSpec(
            endpoint="default/e", version=1, bundle=SHA, entry="app:f", handler="function",
            base=wire.BaseSpec(), gpu=(("L4", 1),), **changes,
        )  # fmt: skip
        self.control.send(wire.StartInstance(epoch=1, id=id, spec=spec, after=after))
        if ready:
            await until(lambda: self.last(id) == "ready")
            self.runtime.living[id].busy = busy
            return self.runtime.living[id]
        return None  # type: ignore[return-value]

    def pause(self, id: str) -> None:
        self.control.send(wire.PauseInstance(epoch=1, id=id, reason="gives way"))

    def resume(self, id: str, *after: str) -> None:
        self.control.send(wire.ResumeInstance(epoch=1, id=id, after=after))

    def stop(self, id: str) -> None:
        self.control.send(wire.StopInstance(epoch=1, id=id, grace_s=0.0))

    def last(self, id: str) -> str:
        return (self.control.states(id) or [""])[-1]

    async def settled(self, id: str, state: str) -> None:
        await until(lambda: self.last(id) == state)

    async def quiet(self) -> None:
        """Return when the host has taken in all that was sent."""
        for _ in range(3):
            await asyncio.sleep(0.02)


@pytest.fixture
def host(agent: HostAgent, control: RecordingControl, runtime: FakeRuntime) -> Host:
    return Host(control, runtime)


async def test_who_comes_next_gets_its_accelerator_and_gives_it_back(host: Host) -> None:
    await host.start("i-1")
    await host.start("i-2", "i-1", ready=False)
    host.pause("i-1")
    await host.settled("i-1", "paused")
    await host.settled("i-2", "ready")
    host.runtime.living["i-2"].busy = 0
    host.resume("i-1", "i-2")
    host.pause("i-2")
    await host.settled("i-1", "ready")
    assert host.last("i-2") == "paused"
    assert host.control.reports("i-1")[-1].note == ""


@pytest.mark.parametrize("busy", [1, None])
async def test_who_is_busy_or_does_not_say_is_stopped_and_never_frozen(host: Host, busy: int | None) -> None:
    sandbox = await host.start("i-1", busy=busy)
    host.pause("i-1")
    await host.settled("i-1", "stopped")
    assert sandbox.state == "ready"


async def test_a_command_that_comes_twice_does_nothing_twice(host: Host) -> None:
    first = await host.start("i-1")
    host.pause("i-1")
    host.pause("i-1")
    await host.settled("i-1", "paused")
    await host.start("i-2")
    # It waits for the accelerator; the link was lost meanwhile, and control says it again without `after`.
    host.resume("i-1", "i-2")
    await host.quiet()
    host.resume("i-1")
    await host.quiet()
    assert host.last("i-1") == "paused"
    host.stop("i-2")
    await host.settled("i-1", "ready")
    host.resume("i-1")
    await host.quiet()
    assert host.last("i-1") == "ready"
    assert first.state == "ready"


async def test_who_is_called_back_while_it_is_frozen_goes_on(host: Host) -> None:
    sandbox = await host.start("i-1")
    sandbox.freezer = asyncio.Event()
    host.pause("i-1")
    await host.quiet()
    host.resume("i-1")
    await host.quiet()
    sandbox.freezer.set()
    await until(lambda: sandbox.state == "ready" and host.last("i-1") == "ready")
    # It has its accelerator again: nobody else gets it.
    await host.start("i-2", ready=False)
    await host.settled("i-2", "failed")


async def test_a_paused_one_that_is_killed_leaves_its_accelerator_to_others(host: Host) -> None:
    paused = await host.start("i-1")
    host.pause("i-1")
    await host.settled("i-1", "paused")
    await host.start("i-2")
    host.resume("i-1", "i-2")
    await host.quiet()
    paused.end(Exit("signalled", "killed by SIGKILL", signal=9))
    await host.settled("i-1", "failed")
    host.stop("i-2")
    await host.settled("i-2", "stopped")
    await host.start("i-3")


async def test_one_that_was_killed_while_it_is_frozen_is_told_when_it_goes_on(host: Host) -> None:
    paused = await host.start("i-1")
    host.pause("i-1")
    await host.settled("i-1", "paused")

    async def dies() -> None:
        paused.end(Exit("signalled", "killed by SIGKILL", signal=9))
        raise OSError("it is gone")

    paused.resume = dies  # type: ignore[method-assign]
    host.resume("i-1")
    await host.settled("i-1", "failed")
    death: Any = host.control.reports("i-1")[-1].death
    assert death.detail == "killed by SIGKILL"
    await host.start("i-2")


async def test_where_its_accelerator_is_taken_it_is_stopped(host: Host) -> None:
    await host.start("i-1")
    host.pause("i-1")
    await host.settled("i-1", "paused")
    await host.start("i-2")
    host.resume("i-1")
    await host.settled("i-1", "stopped")
    assert host.last("i-2") == "ready"


async def test_a_stop_ends_a_paused_one_and_one_that_waits_to_go_on(host: Host) -> None:
    await host.start("i-1")
    host.pause("i-1")
    await host.settled("i-1", "paused")
    await host.start("i-2")
    host.resume("i-1", "i-2")
    await host.quiet()
    host.stop("i-1")
    await host.settled("i-1", "stopped")
    host.stop("i-2")
    await host.settled("i-2", "stopped")
    await host.start("i-3")


async def test_silence_of_the_frozen_is_no_illness(host: Host) -> None:
    probes = wire.Probes(liveness=wire.Probe(period_s=0.3, failure_threshold=1))
    sandbox = await host.start("i-1", probes=probes)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def health() -> tuple[bool, str]:
        asked.set()
        await answer.wait()
        return False, "no answer within 5 s"

    sandbox.health = health  # type: ignore[method-assign]
    await asked.wait()
    host.pause("i-1")
    await host.settled("i-1", "paused")
    answer.set()
    await host.quiet()
    assert host.last("i-1") == "paused"
    host.resume("i-1")
    # Awake it is asked again, and that counts.
    await host.settled("i-1", "failed")
