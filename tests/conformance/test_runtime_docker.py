"""The docker runtime passes the suite that every runtime passes."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, workshop
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.oci.network import LoopbackOnly

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hrk-img-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, images: Path, docker_daemon: str) -> None:
    make = partial(DockerRuntime, docker_daemon, LoopbackOnly())
    with workshop(make, ENGINE, images_dir=images) as harness:
        await asyncio.wait_for(check(harness), 120)
