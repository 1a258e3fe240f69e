"""Bytes that are held at a time."""

from __future__ import annotations

import asyncio

import pytest
from headrace.gateway.jobs.results import Budget


async def test_a_budget_is_given_in_turn_and_what_is_larger_goes_alone() -> None:
    budget = Budget(10)
    await budget.take(6)
    second, third = (asyncio.create_task(budget.take(size)) for size in (20, 1))
    await asyncio.sleep(0)
    assert not second.done()
    assert not third.done()
    budget.give(6)
    await second
    assert not third.done()
    budget.give(20)
    await third


@pytest.mark.parametrize("granted", [False, True])
async def test_who_gives_up_while_waiting_keeps_nothing(granted: bool) -> None:
    budget = Budget(10)
    await budget.take(10)
    gone = asyncio.create_task(budget.take(10))
    await asyncio.sleep(0)
    if granted:
        budget.give(10)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    if not granted:
        budget.give(10)
    async with asyncio.timeout(5):
        await budget.take(10)
