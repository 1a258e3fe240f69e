"""The oci runtime passes the suite that every runtime passes."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, Harness
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.spec import RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hro-img-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def harness(tmp_path: Path, images: Path) -> Iterator[Harness]:
    short = Path(tempfile.mkdtemp(prefix="hro-"))
    short.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=short / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=tmp_path / "logs", images_dir=images,
    )  # fmt: skip
    yield Harness(make=OciRuntime, settings=settings, code_root=short / "code")
    shutil.rmtree(short)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, harness: Harness) -> None:
    await asyncio.wait_for(check(harness), 120)
