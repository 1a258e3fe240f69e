"""The oci runtime passes the suite that every runtime passes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, workshop
from headrace_runtimes.oci import OciRuntime

ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hro-img-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, images: Path) -> None:
    with workshop(OciRuntime, ENGINE, images_dir=images) as harness:
        await asyncio.wait_for(check(harness), 120)
