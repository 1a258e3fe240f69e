"""What is remembered has the shape that its modules work with, also when it is read from a file."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler import forecast, keep, residuals, season, states
from headrace_autoscaler.spec import State

SPANS = [1.0] * states.SPANS
DAY = [1.0] * states.SLOTS


def test_the_lengths_are_those_that_the_modules_work_with() -> None:
    assert len(keep.EDGES_S) - 1 == states.SPANS
    assert len(forecast.SMOOTHING_S) == states.LEVELS
    assert len(forecast.WEIGHTS) == states.HINTS
    assert len(residuals.LEVELS) == len(residuals.FIRST) == states.QUANTILES
    assert season.SLOT_S * states.SLOTS == season.DAY_S


@pytest.mark.parametrize(
    "endpoint",
    [
        {},
        {"forecast": {"season": {"workdays": DAY, "weekends": [None] * states.SLOTS}}},
        {"forecast": {"at": 1.0, "levels": [1.0] * states.LEVELS}},
        {"keep": {"levels": {"1": {"watched": SPANS, "needed": SPANS}}}},
        {"desired": 3, "something": "of another version"},
    ],
)
def test_a_memory_of_this_shape_is_read(endpoint: dict[str, object]) -> None:
    text = msgspec.json.encode({"endpoints": {"e": endpoint}})
    found = msgspec.json.decode(text, type=State)
    assert msgspec.json.decode(msgspec.json.encode(found), type=State) == found


def horizon(**fields: object) -> dict[str, object]:
    weights = [1.0] * states.HINTS
    mine = {"seconds": 15.0, "weights": weights, **fields}
    return {"forecast": {"at": 1.0, "levels": [1.0] * states.LEVELS, "horizons": [mine]}}


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ({"forecast": {"at": 10.0}}, "smoothed has 0 values, not 3"),
        ({"forecast": {"at": 10.0, "levels": [1.0, 2.0]}}, "smoothed has 2 values"),
        (
            {"forecast": {"season": {"workdays": [1.0, None]}}},
            "working day's course has 2 values, not 0 or 144",
        ),
        ({"forecast": {"season": {"weekends": [*DAY, 1.0]}}}, "weekend's course has 145"),
        (horizon(weights=[1.0, 0.1]), "weights of hints has 2"),
        (horizon(pending=[[1.0] * (2 + states.HINTS), [1.0]]), "pending has 1 values, not 6"),
        (horizon(residuals={"offsets": [1.0]}), "errors has 1 values, not 0 or 9"),
        ({"keep": {"levels": {"1": {"watched": [1.0], "needed": SPANS}}}}, "watched of idle times has 1"),
        ({"keep": {"levels": {"1": {"watched": SPANS, "needed": []}}}}, "needed of idle times has 0"),
        ({"keep": {"levels": {"1": {}}}}, "required field"),
        (
            {"keep": {"levels": {"1": {"watched": SPANS, "needed": [2.0, *SPANS[1:]]}}}},
            "of 1 that were idle, 2 cannot have been needed",
        ),
        ({"keep": {"levels": {"1": {"watched": SPANS, "needed": [-1.0, *SPANS[1:]]}}}}, "-1 cannot"),
    ],
)
def test_a_memory_of_another_shape_is_refused_and_not_decided_on(
    endpoint: dict[str, object], words: str
) -> None:
    text = msgspec.json.encode({"endpoints": {"e": endpoint}})
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(text, type=State)
