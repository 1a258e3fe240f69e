"""How long and with which seed: `make chaos SEED=n SECONDS=n`; without SECONDS one short run."""

from __future__ import annotations

import os

import pytest

SHORT_S = 24.0
"""Seven strikes: each kind once."""
LONG = ("parts", "gateways", "platform")
SHORT = ("gateways",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run per flavour: without gateways' deaths, with them, and with the death of everything."""
    if "flavour" in metafunc.fixturenames:
        given = os.environ.get("CHAOS_SECONDS")
        metafunc.parametrize("flavour", LONG if given else SHORT)


@pytest.fixture
def seed() -> int:
    """Of the schedule."""
    return int(os.environ.get("CHAOS_SEED") or 1)


@pytest.fixture
def seconds() -> float:
    """Of load."""
    return float(os.environ.get("CHAOS_SECONDS") or SHORT_S)
