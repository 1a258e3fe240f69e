"""Whether a request that was lost goes on, and whether alone."""

from __future__ import annotations

import math

import pytest
from headrace.control import routes
from headrace.gateway import verdict
from headrace.gateway.answer import lost_error
from headrace.gateway.deaths import ALONE_S, goes_on, joins_at, runs_alone


@pytest.mark.parametrize(
    ("deaths", "used", "retries", "alone"),
    [
        (0, 0, 2, False),
        (1, 1, 2, False),
        (2, 2, 2, True),
        (2, 2, 9, True),
        (1, 1, 1, True),  # its last try
        (1, 2, 2, True),  # the other retry went into a broken connection
        (0, 1, 1, False),  # nobody died
        (0, 3, 2, False),
    ],
)
def test_who_has_seen_deaths_runs_alone_at_the_latest_when_it_is_its_last_try(deaths, used, retries, alone):
    assert runs_alone(deaths, used, retries) is alone


@pytest.mark.parametrize("retries", range(6))
def test_a_request_that_always_kills_ends_alone_whatever_its_retries(retries):
    deaths, alone, seen = 0, False, []
    while True:
        deaths += 1
        seen.append(alone)
        fate = goes_on(alone=alone, died=True, deaths=deaths, used=deaths, retries=retries)
        if fate != "again":
            break
        alone = runs_alone(deaths, deaths, retries)
    assert deaths == min(retries, 2) + 1
    assert fate == ("killed" if retries else "retries")
    assert seen == [False] * (deaths - 1) + [True] if retries else [False]


def test_only_a_death_convicts():
    assert goes_on(alone=True, died=False, deaths=2, used=3, retries=2) == "retries"
    assert goes_on(alone=True, died=False, deaths=2, used=3, retries=5) == "again"
    assert goes_on(alone=True, died=True, deaths=1, used=2, retries=5) == "again"


def joins(deaths=1, *, lost_at=100.0, deadline=700.0, came_at=0.0, suspects=1, instances=1, service_s=0.0):
    return joins_at(
        deaths, lost_at, deadline, came_at, suspects=suspects, instances=instances, service_s=service_s
    )


def test_who_saw_one_death_does_not_wait_to_be_alone_until_its_deadline():
    assert joins(deadline=101.0) == 100.5, "half of what is left"
    assert joins() == 100.0 + ALONE_S
    assert joins(came_at=150.0) == 150.0 + ALONE_S, "nothing can be alone before an instance is there"
    assert joins(came_at=150.0, instances=0) == 150.0 + ALONE_S


@pytest.mark.parametrize(
    ("suspects", "instances", "service_s", "left_s", "alone"),
    [
        (4, 1, 0.25, 600, True),
        (5, 1, 0.25, 600, False),
        (5, 2, 0.25, 600, True),
        (5, 0, 0.25, 600, False),  # one will come, as far as is known
        (6, 1, 2.0, 6, False),
        (4, 1, 0.25, 1.5, False),  # they would take it half of its time and more
        (1, 1, 0.9, 600, True),
        (1, 1, 30.0, 600, False),  # newcomers would wait for it, and each has another try
        (1, 2, 30.0, 600, True),  # they go to the other one
        (2, 2, 30.0, 600, False),
        (50, 1, 0.0, 600, True),  # nobody has been answered, and they had just begun
    ],
)
def test_who_saw_one_death_runs_alone_only_if_nobody_waits_long_for_that(
    suspects, instances, service_s, left_s, alone
):
    at = joins(suspects=suspects, instances=instances, service_s=service_s, deadline=100.0 + left_s)
    assert (at > 100.0) is alone


def test_who_saw_two_deaths_waits_to_be_alone_whatever_it_takes():
    assert joins(2, deadline=110.0, suspects=99, service_s=60.0) == math.inf


@pytest.mark.parametrize(
    ("fate", "attempts", "deaths", "says"),
    [
        (
            "retries",
            1,
            0,
            "its instance, or the connection to it, was lost while it worked on the request: x.",
        ),
        ("retries", 1, 1, "the instance died while it worked on the request: x."),
        (
            "retries",
            3,
            2,
            "it was sent 3 times, and its instance or the connection was lost each time; the last",
        ),
        (
            "killed",
            2,
            2,
            "2 instances died while they worked on this request, the last one while it ran there",
        ),
        (
            "once",
            1,
            0,
            "its instance, or the connection to it, was lost at work on it (x), and the endpoint is",
        ),
        ("once", 1, None, "the instance died at work on it (x), and the endpoint is not idempotent."),
    ],
)
def test_nobody_is_said_to_be_dead_who_is_not_known_to_be(fate, attempts, deaths, says):
    assert lost_error("x", fate, attempts, deaths, name="ocr").message.startswith(says)


def test_control_has_announced_who_lives_before_its_silence_counts():
    assert verdict.SURE_S > routes.DOUBT_S + 0.05
