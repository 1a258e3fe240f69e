"""What a client is told whose request is lost."""

from __future__ import annotations

import pytest
from headrace.gateway.answer import lost_error


@pytest.mark.parametrize(
    ("attempts", "says"),
    [
        (1, "the instance died while it worked on the request: exited: exit code 1."),
        (3, "3 instances died while they worked on the request; the last: exited: exit code 1."),
    ],
)
def test_it_says_how_many_instances_died(attempts: int, says: str) -> None:
    error = lost_error("exited: exit code 1", "retries", attempts, name="ocr")
    assert error.message == says
    assert "`headrace logs ocr`" in error.hint
