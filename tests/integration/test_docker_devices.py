"""Accelerators of a made-up machine in a container of Docker: the assigned ones are there, and no others."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import errno, os

def attempt(what, *arguments):
    try:
        what(*arguments)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]

def look(path=""):
    return {
        "nodes": sorted(name for name in os.listdir("/dev") if "nvidia" in name),
        "opened": attempt(os.open, path, os.O_RDWR) if path else "",
        "made": attempt(os.mknod, "/tmp/own", 0o020666, os.makedev(10, 229)),
        "removed": attempt(os.unlink, path) if path else "",
        "libraries": attempt(os.listdir, "/headrace/drivers"), "visible": os.environ["CUDA_VISIBLE_DEVICES"],
    }
"""


@pytest.fixture
def harness(docker_daemon: str) -> Iterator[Harness]:
    """On a machine with two of NVIDIA's, whose numbers are of devices that open without rights."""
    path = Path(tempfile.mkdtemp(prefix="hrv-"))
    path.chmod(0o711)
    (path / "tree/dev").mkdir(parents=True)
    for name, minor in {"nvidia0": 229, "nvidia1": 237, "nvidiactl": 235, "nvidia-uvm": 235}.items():
        os.mknod(path / "tree/dev" / name, stat.S_IFCHR | 0o600, os.makedev(10, minor))
    libraries = path / "tree/usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "libcuda.so.1").write_text("a library")
    settings = RuntimeSettings(
        run_dir=path / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=path / "logs",
    )  # fmt: skip
    yield Harness(
        lambda: DockerRuntime(docker_daemon, LoopbackOnly(), devices=path / "tree"), settings, path / "code"
    )
    shutil.rmtree(path)


async def test_only_the_assigned_are_there(harness: Harness) -> None:
    async with opened(harness) as bench:
        assert bench.runtime.capabilities()["devices"] == ""
        (bench.code / "app.py").write_text(CODE)
        await bench.base("plain", lambda status: status.spares > 0)
        one = await bench.start("look", gpu_indices=(1,))
        assert one.tier == "warm", "it waited before anybody knew what it would be assigned"
        _, told = await call(one, {"path": "/dev/nvidia1"})
        assert told == {
            "nodes": ["nvidia-uvm", "nvidia1", "nvidiactl"], "opened": "done", "made": "EPERM",
            "removed": told["removed"], "libraries": "done", "visible": "0",
        }, told  # fmt: skip
        assert told["removed"] in {"EBUSY", "EACCES"}
        _, told = await call(await bench.start("look"), {})
        assert (told["nodes"], told["visible"]) == ([], "")
        with pytest.raises(PrepareFailed, match="no accelerator 2 here"):
            await bench.start("look", gpu_indices=(0, 2))
