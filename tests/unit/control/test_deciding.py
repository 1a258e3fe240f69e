"""An autoscaler that fails for one lane, and what control makes of it."""

from __future__ import annotations

import logging

import pytest
from headrace.control import deciding
from headrace.control.deciding import FAILED, SAID_AGAIN_S, Deciding
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointObservation,
    EndpointState,
    Observation,
    ScalingSpec,
    State,
    Wait,
)

OBSERVED = Observation(
    endpoints=(EndpointObservation(endpoint="p/e", version=1, scaling=ScalingSpec(max=3)),), hosts=()
)
BAD = EndpointState(desired=7)


def fails_for(*memories: EndpointState) -> object:
    def asked(now: float, observation: Observation, state: State, config: Config) -> Decision:
        if state.endpoints["p/e"] in memories:
            raise IndexError("tuple index out of range")
        return decide(now, observation, state, config)

    return asked


def test_what_succeeds_is_a_record_of_what_was_asked() -> None:
    record, again = Deciding(Config()).ask(5.0, OBSERVED, "p/e", BAD)
    assert again
    assert (record.now, record.observation, record.state.endpoints) == (5.0, OBSERVED, {"p/e": BAD})
    assert record.decision == decide(5.0, OBSERVED, record.state, Config())


def test_a_memory_that_cannot_be_decided_on_is_given_up_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deciding, "decide", fails_for(BAD))
    asked = Deciding(Config())
    for now in (0.0, 1.0, SAID_AGAIN_S - 1):
        record, again = asked.ask(now, OBSERVED, "p/e", BAD)
        assert again
        assert record.state.endpoints == {"p/e": EndpointState()}, "what a replay must be told"
        assert record.decision == decide(now, OBSERVED, record.state, Config())
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None
    assert "failed for p/e: what was learnt of it is forgotten" in line.getMessage()
    assert "report this" in line.getMessage()
    asked.ask(SAID_AGAIN_S, OBSERVED, "p/e", BAD)
    assert len(caplog.records) == 2


def test_where_an_empty_memory_does_not_help_the_lane_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deciding, "decide", fails_for(BAD, EndpointState()))
    asked = Deciding(Config())
    for memory in (BAD, EndpointState()):
        record, again = asked.ask(0.0, OBSERVED, "p/e", memory)
        assert not again, "it is not written down, as no replay could decide it"
        assert record.decision.actions == (Wait(endpoint="p/e", wanted=0, reason=FAILED),)
        assert record.decision.state.endpoints == {"p/e": EndpointState()}
    said = [line.getMessage() for line in caplog.records]
    assert len(said) == 2
    assert "failed for p/e: nothing is started or released" in said[1]
