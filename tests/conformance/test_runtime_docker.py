"""The docker runtime passes the suite that every runtime passes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, Harness
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hrk-img-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def harness(tmp_path: Path, images: Path, docker_daemon: str) -> Iterator[Harness]:
    short = Path(tempfile.mkdtemp(prefix="hrk-"))
    short.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=short / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=tmp_path / "logs", images_dir=images,
    )  # fmt: skip
    yield Harness(lambda: DockerRuntime(docker_daemon, LoopbackOnly()), settings, short / "code")
    shutil.rmtree(short)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, harness: Harness) -> None:
    await asyncio.wait_for(check(harness), 120)
