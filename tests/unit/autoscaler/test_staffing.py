"""What is left to the instances that are there, and what is there ahead of demand: sums done by hand."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from headrace_autoscaler.configs import DemandConfig
from headrace_autoscaler.staffing import Left, ahead, left

ONE = NormalDist().cdf(1.0)
"""The chance within one standard deviation above the mean, 0.841."""
CONFIG = DemandConfig(
    goal_s=10.0, spare_starts=2.0, staff_share=1.0, staff_root=0.5, staff_less=1.0, spare_s=100.0
)
EVEN = 20.0
"""Late requests that cost this, as much as the spare of a start of 10 s (twice 10 s), are worth one chance in
two: no standard deviations are added."""


def left_of(**changes: float | None) -> Left:
    asked = {"queued": 4, "oldest_wait_s": 0.0, "busy": 5, "start_s": 10.0, "service_s": 20.0, "late_s": EVEN}
    return left(config=CONFIG, **(asked | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unknown", [{"queued": 0}, {"busy": 0}, {"start_s": None}, {"service_s": None}, {"service_s": 0.0}]
)
def test_nothing_is_left_to_nobody_or_to_what_is_not_known(unknown: dict[str, float | None]) -> None:
    assert left_of(**unknown) == Left(0)


def test_as_many_are_left_as_become_free_in_time() -> None:
    # 5 busy ones that take 20 s: 2.5 become free within 10 s. In 2 s it is 2 only, and then fewer.
    assert left_of() == Left(2, pytest.approx(2.0))
    assert left_of(queued=2) == Left(2, pytest.approx(2.0))
    # One is sure for 6 s more: at 0.25 a second 1.5 are to spare.
    assert left_of(queued=1) == Left(1, pytest.approx(6.0))


def test_requests_that_have_waited_have_less_time_left() -> None:
    # The oldest of four has waited for 4 s, and the second for 3 s: 1.5 for one, 1.75 for two.
    assert left_of(oldest_wait_s=4.0) == Left(1, pytest.approx(2.0))
    # After 7 s 0.75 become free for the first, which asks for one.
    assert left_of(oldest_wait_s=7.0) == Left(0)


def test_nobody_waits_for_longer_than_a_start_takes() -> None:
    # A start of 5 s, and its spare is worth 10 s: 1.25 become free within 5 s.
    assert left_of(start_s=5.0, late_s=10.0) == Left(1, pytest.approx(1.0))
    # A start of 40 s: but nobody should wait for more than 10 s.
    assert left_of(start_s=40.0, late_s=80.0) == left_of()


def test_the_dearer_a_late_request_the_surer_it_must_be() -> None:
    # Worth one standard deviation. Sure of n is a mean of x with x - sqrt(x) = n: 2.618 for 1, and 4 for 2.
    dear = EVEN * ONE / (1 - ONE)
    # 4.4 become free: 0.4 more than needed, at 0.44 a second.
    assert left_of(busy=11, service_s=25.0, late_s=dear) == Left(2, pytest.approx(0.4 / 0.44))
    assert left_of(busy=11, service_s=25.0, late_s=EVEN) == Left(4, pytest.approx(0.4 / 0.44))
    # 2.5 are not enough for one.
    assert left_of(late_s=dear) == Left(0)


def test_late_requests_that_cost_nothing_leave_all() -> None:
    assert left_of(late_s=0.0).requests == 4


def test_nothing_is_there_ahead_where_starts_are_in_time_or_not_known() -> None:
    assert ahead(9.0, None, 100.0, CONFIG) == 0.0
    assert ahead(9.0, 10.0, 100.0, CONFIG) == 0.0
    assert ahead(0.0, 40.0, 100.0, CONFIG) == 0.0


def test_ahead_is_the_level_and_its_root_by_the_part_that_nobody_waits_for() -> None:
    # A late request costs as much as a spare: no deviations beside staff_root. 9 + 0.5 * 3 - 1 = 9.5, and
    # of 40 s only 30 are too long.
    assert ahead(9.0, 40.0, 100.0, CONFIG) == pytest.approx(9.5 * 0.75)
    # One deviation more: 9 + 1.5 * 3 - 1 = 12.5.
    dear = 100.0 * ONE / (1 - ONE)
    assert ahead(9.0, 40.0, dear, CONFIG) == pytest.approx(12.5 * 0.75)
    # 0.25 + 0.5 * 0.5 - 1 is below nothing.
    assert ahead(0.25, 40.0, 100.0, CONFIG) == 0.0


def test_no_chance_is_a_certainty() -> None:
    # A late request that costs nothing, or all there is, is worth the same as one in a million.
    extreme = NormalDist().inv_cdf(1e-6)
    level = 10_000.0
    for late_s, root in ((0.0, extreme), (1e30, -extreme)):
        found = ahead(level, 40.0, late_s, CONFIG)
        assert found == pytest.approx((level + (0.5 + root) * math.sqrt(level) - 1) * 0.75)
