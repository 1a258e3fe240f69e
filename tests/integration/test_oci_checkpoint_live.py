"""Checkpoints of real containers by the real runc, with whatever CRIU this machine has."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.oci import OciRuntime, criu
from headrace_runtimes.oci.binary import Binary, find
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.oci.checkpoint import CheckpointFailed, Checkpoints, Counts, Identity
from headrace_runtimes.oci.driver import NOT_PARKED, OciDriver
from headrace_runtimes.spec import RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
VERSIONS = criu.Versions("kernel", "criu", "runc", "cpu")
IDENTITY = Identity(VERSIONS, "bundle", "image", "engine", 1 << 30, {})
TAKES = """#!/bin/sh
# The machine's runc, but for ``checkpoint``: it says that it has taken one.
for word in "$@"; do
    [ "$word" = checkpoint ] && exit 0
done
exec {runc} "$@"
"""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    short = Path(tempfile.mkdtemp(prefix="hrk-"))
    short.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=short / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=tmp_path / "logs", images_dir=short / "i",
    )  # fmt: skip
    yield Harness(make=OciRuntime, settings=settings, code_root=short / "code")
    shutil.rmtree(short)


def test_the_capability_says_what_this_machine_lacks() -> None:
    path, _ = find(None)
    versions, why = criu.support(Binary(path, Path()))
    assert (versions is None) == bool(why)
    told = OciDriver().capabilities()["checkpoint"]
    assert told == (why or NOT_PARKED)
    if shutil.which("criu") is None:
        assert "apt-get install criu" in told
    elif why:
        assert os.uname().release in told, "which kernel it does not work with"
        assert told.endswith("(criu check)")


async def test_an_instance_that_cannot_be_dumped_lives_on(harness: Harness, tmp_path: Path) -> None:
    async with opened(harness) as bench:
        sandbox: Any = await bench.start()
        container = sandbox._frame.container
        kept = Checkpoints(tmp_path / "kept", Binary(find(None)[0], container._binary.state))
        await kept.open(VERSIONS)

        async def trial(directory: Path) -> None:
            raise AssertionError("there is nothing to try")

        with pytest.raises(CheckpointFailed, match="cannot be taken: runc checkpoint failed: ") as failed:
            await asyncio.wait_for(kept.make(IDENTITY, container.id, trial), 60)
        assert str(failed.value).count("\n") == 0
        assert (await call(sandbox, {"name": "you"}))[0] == 200, "the normal path"
        assert kept.counts == Counts(take_failed=1)
        assert await kept.why_not(IDENTITY) != ""
        assert await kept.find(IDENTITY) is None


async def test_a_trial_restore_that_fails_publishes_nothing(harness: Harness, tmp_path: Path) -> None:
    wrapped = tmp_path / "runc"
    wrapped.write_text(TAKES.format(runc=find(None)[0]))
    wrapped.chmod(0o755)
    async with opened(harness) as bench:
        sandbox: Any = await bench.start()
        container = sandbox._frame.container
        runtime = Binary(str(wrapped), tmp_path / "state")
        kept = Checkpoints(tmp_path / "kept", runtime)
        await kept.open(VERSIONS)
        cgroup = f"/hrk-{os.getpid()}"
        tried: list[Path] = []

        async def trial(directory: Path) -> None:
            tried.append(directory)
            bundle = tmp_path / "trial"
            bundle.mkdir()
            told = json.loads((container.directory / "config.json").read_text())
            told["linux"]["cgroupsPath"] = cgroup
            (bundle / "config.json").write_text(json.dumps(told))
            await criu.restore(runtime, "trial", bundle, directory)

        try:
            with pytest.raises(CheckpointFailed, match="did not pass its trial: runc restore failed: "):
                await asyncio.wait_for(kept.make(IDENTITY, "any", trial), 60)
        finally:
            for path in Cgroup(cgroup).directories():
                path.rmdir()
        assert tried
        assert kept.counts == Counts(taken=1, trial_failed=1)
        assert await kept.find(IDENTITY) is None
        assert "runc restore failed" in await kept.why_not(IDENTITY)
        assert (await call(sandbox, {"name": "you"}))[0] == 200
