"""The schedule of the chaos suite: the same for the same seed, and everything is struck."""

from __future__ import annotations

import itertools

import pytest

from benchmarks._storm import PARTS, schedule


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_is_repeated_by_its_seed_and_strikes_all(seed: int) -> None:
    found = schedule(seed, 60.0)
    assert found == schedule(seed, 60.0)
    assert found != schedule(seed + 1, 60.0)
    assert {one.kind for one in found} == set(PARTS)
    assert all(b.at_s - a.at_s == 3.0 for a, b in itertools.pairwise(found))
    assert found[-1].at_s < 58.5
    assert all(0 <= one.pick < 1 and 1 <= one.stop_s <= 2 for one in found)


def test_a_short_run_strikes_every_part() -> None:
    kinds = (*PARTS, "gateway")
    assert {one.kind for one in schedule(1, 24.0, kinds)} == set(kinds)


def test_the_platform_is_struck_seldom() -> None:
    kinds = [one.kind for one in schedule(1, 60.0, rare="platform")]
    assert [i for i, kind in enumerate(kinds) if kind == "platform"] == [2, 10, 18]
