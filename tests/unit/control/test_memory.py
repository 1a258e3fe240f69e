"""What was learnt of endpoints, over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from headrace.control import memory
from headrace.control.memory import FILE, Memory, lasting, unasked
from headrace.control.model import UNUSED, Endpoint, World
from headrace.sdk.spec import EndpointSpec
from headrace_autoscaler.spec import EndpointState
from headrace_autoscaler.states import (
    SPANS,
    DemandState,
    ForecastState,
    Idle,
    IdleTimes,
    KeepState,
    LatenessState,
    PanicState,
    SeasonState,
    ServiceState,
    WindowState,
)

SEEN = IdleTimes(watched=(2.0,) * SPANS, needed=(1.0,) * SPANS)
LEARNT = EndpointState(
    desired=4,
    below_since=1.0,
    demand=DemandState(
        window=WindowState(samples=((1.0, 2.0, 3),)), service=ServiceState(total=7), panic=PanicState()
    ),
    forecast=ForecastState(at=1 / 3, last=0.1 + 0.2, levels=(0.1, 0.2, 0.3)),
    keep=KeepState(levels={1: SEEN}, idle=(Idle(since=900.0, level=1),), total=1),
    lateness=LatenessState(at=1.0, aged=20.0, begun=21, seen=70.5, power=0.25),
)
KEPT = EndpointState(
    demand=DemandState(service=ServiceState(total=7)), forecast=LEARNT.forecast,
    keep=KeepState(levels={1: SEEN}), lateness=LatenessState(seen=70.5, power=0.25),
)  # fmt: skip


def world(*names: str, now: float = 1000.0) -> World:
    made = World(lambda: now)
    for name in names:
        spec = EndpointSpec(name=name, project="p", entry="m:f", handler="function")
        made.endpoints[spec.key] = Endpoint(key=spec.key, spec=spec, version=1)
    return made


async def test_what_lasts_comes_back_and_counters_do_not(tmp_path: Path) -> None:
    first = world("a", "b")
    first.endpoints["p/a"].memory = LEARNT
    kept = Memory(tmp_path, first)
    await kept.load()
    await kept.stop()
    second = world("a", "b")
    await Memory(tmp_path, second).load()
    assert second.endpoints["p/a"].memory == KEPT == lasting(LEARNT)
    assert second.endpoints["p/b"].memory is UNUSED
    # Another endpoint set, and a clock that was set back.
    for other in (world("b"), world("a", now=999.0)):
        await Memory(tmp_path, other).load()
        assert all(endpoint.memory is UNUSED for endpoint in other.endpoints.values())


def test_who_scales_down_by_hand_expects_nobody_but_knows_the_course_of_the_day() -> None:
    season = SeasonState(workdays=(1.0, None) * 72)
    before = msgspec.structs.replace(LEARNT, forecast=ForecastState(at=1.0, levels=(4.0,) * 3, season=season))
    after = unasked(before)
    assert after.forecast == ForecastState(season=season)
    assert (after.desired, after.demand) == (0, KEPT.demand)
    assert unasked(UNUSED).forecast == ForecastState()


async def test_lines_of_another_version_are_learnt_anew(tmp_path: Path) -> None:
    known = world("a", "b")
    known.endpoints["p/a"].memory = LEARNT
    kept = Memory(tmp_path, known)
    await kept.load()
    await kept.save()
    path = tmp_path / FILE
    wrong = b'{"endpoint": "p/b", "at": "then", "memory": {}}\n{\n'
    short = b'{"endpoint": "p/b", "at": 1.0, "memory": {"forecast": {"at": 1.0, "levels": [1.0]}}}\n'
    path.write_bytes(wrong + short + path.read_bytes())
    again = world("a", "b")
    await Memory(tmp_path, again).load()
    assert again.endpoints["p/a"].memory == KEPT
    assert again.endpoints["p/b"].memory is UNUSED


async def test_it_is_written_now_and_then_and_never_over_what_was_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SAVE_EVERY_S", 0.0)
    known = world("a")
    known.endpoints["p/a"].memory = LEARNT
    kept = Memory(tmp_path, known)
    await kept.stop()
    assert not (tmp_path / FILE).exists(), "it was not loaded"
    await kept.load()
    kept.tick()
    kept.tick()
    async with asyncio.timeout(10.0):
        while not (tmp_path / FILE).exists():
            await asyncio.sleep(0.005)
    await kept.stop()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


async def test_a_directory_that_cannot_be_written_or_read_is_no_trouble(tmp_path: Path) -> None:
    known = world("a")
    known.endpoints["p/a"].memory = LEARNT
    (tmp_path / FILE).mkdir()
    kept = Memory(tmp_path, known)
    await kept.load()
    await kept.stop()
    assert known.endpoints["p/a"].memory is LEARNT
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
