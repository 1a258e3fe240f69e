"""A runtime that is no part of Headrace, installed as a package, is found and passes the suite of all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import headrace
import headrace.errors
import pytest
from headrace_runtimes import registry
from headrace_runtimes.conformance import CHECKS, Check, workshop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="its mounts need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "third_runtime"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    # hatchling is here already: nothing is fetched.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--root-user-action=ignore", "--target", place, PACKAGE],
        check=True, timeout=90,
    )  # fmt: skip
    return place


@pytest.fixture
def found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(installed)
    return installed


def test_it_is_found_by_its_entry_point(found: Path) -> None:
    assert "unshare" in registry.names()
    assert type(registry.load("unshare")).__module__ == "unshare_runtime"


def test_endpoints_name_it_where_it_is_installed(found: Path) -> None:
    @headrace.endpoint(runtime="unshare")
    def hello() -> str:
        return "hello"

    assert hello.spec.runtime == "unshare"
    with pytest.raises(headrace.errors.SpecError, match='"unshare"'):
        headrace.endpoint(runtime="unsare")(lambda: None)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, found: Path) -> None:
    make = type(registry.load("unshare"))
    with workshop(make, ENGINE, name="hru-") as harness:
        await asyncio.wait_for(check(harness), 120)
