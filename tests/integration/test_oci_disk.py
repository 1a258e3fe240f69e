"""Where no file system in a file can be made, the writable layer is memory: it has an end there as well."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.errors import AssignFailed, PrepareFailed
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.disk import why_no_loop
from headrace_runtimes.spec import RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
def fill(path, mib):
    written = 0
    try:
        with open(path, "wb", 0) as file:
            for _ in range(mib):
                written += file.write(b"x" * (1 << 20))
    except OSError as error:
        return [written >> 20, error.errno]
    return [written >> 20, 0]
"""


@pytest.fixture
def harness() -> Iterator[Harness]:
    path = Path(tempfile.mkdtemp(prefix="hrd-"))
    path.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=path / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=path / "logs",
    )  # fmt: skip
    yield Harness(OciRuntime, settings, path / "code")
    shutil.rmtree(path)


async def test_memory_in_its_place(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("runc", "ip", "nft"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    assert "apt-get install e2fsprogs" in why_no_loop()
    async with opened(harness) as bench:
        (bench.code / "app.py").write_text(CODE)
        sandbox = await bench.start("fill", disk_limit=16 << 20)
        status, (written, problem) = await call(sandbox, {"path": "/tmp/x", "mib": 64})
        assert (status, problem) == (200, 28)
        assert 8 <= written <= 16


async def test_a_limit_that_cannot_be_had_is_refused(harness: Harness) -> None:
    async with opened(harness) as bench:
        with pytest.raises((PrepareFailed, AssignFailed), match="at most 60 GiB"):
            await bench.start(disk_limit=1 << 40)
        assert not bench.runtime.sandboxes()
