"""Calls in the background of this process."""

from __future__ import annotations

import threading

import pytest
from headrace.sdk.background import submit


def test_a_result_that_is_late_says_how_late() -> None:
    go = threading.Event()
    job = submit(lambda cancel: go.wait(30))
    try:
        with pytest.raises(TimeoutError, match=r"not done within 0\.01 s"):
            job.result(timeout=0.01)
        assert not job.done()
    finally:
        go.set()
    assert job.result(timeout=30) is True


def test_what_the_call_raises_is_raised_as_it_is() -> None:
    def fails(cancel: object) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        submit(fails).result(timeout=30)
