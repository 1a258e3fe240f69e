"""What control leaves out of the history: service times can be had again from what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from headrace.control.history import History
from headrace.control.model import Endpoint
from headrace.control.recorder import Recorder
from headrace.sdk.spec import EndpointSpec
from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.policy import decide
from headrace_autoscaler.simulate import sketches
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.recorded import Recorded, read_history
from headrace_autoscaler.simulate.scenario import Draw, Floats, Scenario, Supply, Trace, Wish
from headrace_autoscaler.spec import Config, Decision, Observation, Record, State
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEY = "default/e"
TICK_S = 0.5
NEAR = 0.02
"""Of a quantile's rank, on either side: one request more or less is no difference."""


def recorded(path: Path, trace: Trace, start_s: float, idle_timeout_s: float | None) -> tuple[Recorded, int]:
    """Played as control would, written as control writes, and read; with how many decisions there were."""
    history, decisions = History(path / "history"), iter(range(1 << 30))
    recorder = Recorder(history)
    spec = EndpointSpec(name="e", project="default", entry="m:f", handler="function")
    endpoint = Endpoint(key=KEY, spec=spec, version=1)

    def noted(now: float, observation: Observation, state: State, config: Config) -> Decision:
        next(decisions)
        decision = decide(now, observation, state, config)
        record = Record(now=now, observation=observation, state=state, config=config, decision=decision)
        recorder.note(endpoint, KEY, record)
        return decision

    async def write() -> None:
        history.start()
        await history.stop()

    policy = replace(policy_of("headrace"), decide=noted, tick_s=TICK_S)
    home = Supply("home", 1.0, Draw(start_s), owned=True, capacity=20)
    wish = Wish(max=20, idle_timeout_s=idle_timeout_s)
    run(Scenario(trace, (home,), (wish,), tail_s=200.0), policy, 0)
    asyncio.run(write())
    assert not history.dropped
    return read_history(path, "e"), next(decisions)


def trace_of(gaps: Floats, durations: Floats) -> Trace:
    arrivals = np.cumsum(gaps)
    return Trace("t", arrivals, durations, np.zeros(len(arrivals), np.int32), (KEY,))


def lines(path: Path) -> Iterator[bytes]:
    for file in (path / "history").glob("decisions*.jsonl"):
        yield from file.read_bytes().splitlines()


def assert_alike(found: Floats, true: Floats, mean: float) -> None:
    assert found.mean() == pytest.approx(true.mean(), rel=mean)
    for share in (0.5, 0.95):
        low, high = np.quantile(true, (share - NEAR, min(1.0, share + NEAR)))
        assert low / 1.1 <= np.quantile(found, share) <= high * 1.1


def test_requests_that_wait_for_starts_last_as_long_as_they_ran(tmp_path: Path) -> None:
    """Two of 0.4 s come together every 100 s, and wait for a start of 12 s."""
    trace = trace_of(np.tile((100.0, 0.1), 40), np.full(80, 0.4))
    found, decisions = recorded(tmp_path, trace, 12.0, 5.0)
    assert decisions > 10 * len(list(lines(tmp_path)))
    # The first came before the first look was written.
    assert 78 <= len(found.trace.durations) <= 80
    assert found.trace.durations.tolist() == pytest.approx([0.4] * len(found.trace.durations))
    assert found.notes[1] == "service times are those of the autoscaler's sketch, each right to 10 %"


def test_without_sketches_that_history_says_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sketches are for: the looks that were written have seen next to none of these end."""
    monkeypatch.setattr(sketches, "_sketch", lambda memory: None)
    trace = trace_of(np.tile((100.0, 0.1), 40), np.full(80, 0.4))
    found, _ = recorded(tmp_path, trace, 12.0, 5.0)
    assert found.trace.durations.mean() > 10 * 0.4
    assert "no service was seen to end" in found.notes[1]


def test_what_the_sketch_has_forgotten_is_made_up_for(tmp_path: Path) -> None:
    """40 a second, so that the counts are halved at each line or so; the later ones take twice as long."""
    rng = np.random.default_rng(1)
    durations = rng.lognormal(np.log(0.1), 0.5, 12000)
    durations[6000:] *= 2
    found, _ = recorded(tmp_path, trace_of(rng.exponential(1 / 40, 12000), durations), 12.0, 60.0)
    assert len(found.trace.durations) == pytest.approx(12000, abs=5)
    assert_alike(found.trace.durations, durations, 0.05)
    assert found.trace.durations[:5000].mean() == pytest.approx(durations[:5000].mean(), rel=0.05)
    assert found.trace.durations[7500:].mean() == pytest.approx(durations[7500:].mean(), rel=0.05)


@given(
    seed=st.integers(0, 2**32 - 1),
    median=st.floats(0.05, 20),
    spread=st.floats(0, 1),
    gap=st.floats(1, 60),
    start_s=st.sampled_from((2.0, 12.0, 90.0)),
    idle_timeout_s=st.sampled_from((None, 5.0, 60.0)),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_service_times_are_given_back(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    median: float,
    spread: float,
    gap: float,
    start_s: float,
    idle_timeout_s: float | None,
) -> None:
    rng = np.random.default_rng(seed)
    durations = rng.lognormal(np.log(median), spread, 300)
    trace = trace_of(rng.exponential(gap, 300), durations)
    found, _ = recorded(tmp_path_factory.mktemp("played"), trace, start_s, idle_timeout_s)
    assert len(found.trace.durations) == pytest.approx(300, abs=3)
    assert_alike(found.trace.durations, durations, 0.03)
