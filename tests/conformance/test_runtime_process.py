"""The process runtime keeps the runtime contract, with the real engine."""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, Harness
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.fixture
def harness():
    # Short (socket paths) and open to other uids, which tmp_path is not.
    root = Path(tempfile.mkdtemp(prefix="hrc-", dir="/tmp"))
    root.chmod(0o711)
    code = root / "code"
    code.mkdir(mode=0o755)
    settings = RuntimeSettings(
        run_dir=root / "r",
        engine_dir=ENGINE,
        python=sys.executable,
        zygote_bytes=1 << 30,
        log_dir=root / "logs",
    )
    yield Harness(make=ProcessRuntime, settings=settings, code_root=code)
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, harness: Harness):
    await asyncio.wait_for(check(harness), 90)
