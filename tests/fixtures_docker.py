"""A Docker daemon of the suite's own, started once, ended with everything that it made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks._docker import docker_daemon as run_daemon


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[str]:
    """Its address, as ``DOCKER_HOST`` has it."""
    with run_daemon() as address:
        yield address
