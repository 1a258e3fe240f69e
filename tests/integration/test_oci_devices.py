"""Accelerators of a made-up machine in a real container: the assigned ones are there, and no others."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace_runtimes.conformance_bench import Bench, Harness, call, opened
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.driver import OciDriver
from headrace_runtimes.spec import Base, LoadedEndpoint, Network, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import errno, os, stat

def attempt(what, *arguments):
    try:
        return what(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def seen():
    nodes = {}
    for directory, _, names in os.walk("/dev"):
        for name in names:
            path = directory + "/" + name
            about = os.lstat(path)
            if stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
                nodes[path] = [os.major(about.st_rdev), os.minor(about.st_rdev), about.st_uid]
    return nodes

def look(path=""):
    opened = attempt(os.open, path, os.O_RDWR) if path else None
    return {
        "nodes": seen(), "opened": opened, "env": dict(os.environ),
        "made": attempt(os.mknod, "/tmp/own", stat.S_IFCHR | 0o666, os.makedev(10, 237)),
        "libraries": attempt(os.listdir, "/headrace/drivers"),
    }

class Loaded:
    def load(self):
        # What waits in the way of a node must not lead elsewhere.
        os.symlink("/etc/hostname", "/dev/nvidia1")
        os.makedirs("/dev/nvidia-caps", exist_ok=True)
        os.symlink("/tmp", "/dev/nvidia-uvm")
        self.early = seen()

    def __call__(self, path=""):
        return {**look(path), "early": self.early}
"""
HERE = Base(key="here", network=Network("none"))
FIRST, SECOND, CONTROL = (10, 229), (10, 237), (10, 235)
"""Numbers of devices that open without rights, and that no engine allows by itself."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine with two of NVIDIA's."""
    (tmp_path / "tree/dev").mkdir(parents=True)
    nodes = {"nvidia0": FIRST, "nvidia1": SECOND, "nvidiactl": CONTROL, "nvidia-uvm": CONTROL}
    for name, numbers in nodes.items():
        os.mknod(tmp_path / "tree/dev" / name, stat.S_IFCHR | 0o600, os.makedev(*numbers))
    libraries = tmp_path / "tree/usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "libcuda.so.1").write_text("a library")
    return tmp_path / "tree"


@pytest.fixture
def make_harness(tmp_path: Path) -> Iterator[Callable[[Path], Harness]]:
    short = Path(tempfile.mkdtemp(prefix="hrv-"))
    short.chmod(0o711)

    def make(tree: Path) -> Harness:
        settings = RuntimeSettings(
            run_dir=short / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
            log_dir=tmp_path / "logs", images_dir=short / "i",
        )  # fmt: skip
        return Harness(make=partial(OciRuntime, devices=tree), settings=settings, code_root=short / "code")

    yield make
    shutil.rmtree(short)


def bundle(bench: Bench, tmp_path: Path) -> Path:
    code = tmp_path / "bundle"
    code.mkdir(exist_ok=True)
    (code / "app.py").write_text(CODE)
    for path in (tmp_path, code):
        path.chmod(0o755)
    return code


async def answer(sandbox: Any, **inputs: Any) -> dict[str, Any]:
    status, body = await call(sandbox, inputs)
    assert status == 200, body
    assert isinstance(body, dict)
    return body


async def claim(bench: Bench, code: Path, base: Base, *, entry: str = "look", **more: Any) -> Any:
    assignment = bench.assignment(entry, code_dir=code, **more)
    return await asyncio.wait_for(bench.runtime.claim(base, assignment), 60)


async def test_only_the_assigned_are_visible_and_usable(
    tree: Path, make_harness: Callable[[Path], Harness], tmp_path: Path
) -> None:
    async with opened(make_harness(tree)) as bench:
        assert bench.runtime.capabilities()["devices"] == ""
        await bench.runtime.hold([(HERE, 1)])
        await bench.base("here", lambda s: s.state == "ready" and s.spares > 0)
        code = bundle(bench, tmp_path)
        one = await claim(bench, code, HERE, gpu_indices=(1,))
        assert one.tier == "warm", "it waited before anybody knew what it would be assigned"
        told = await answer(one, path="/dev/nvidia1")
        mine = {path: found for path, found in told["nodes"].items() if "nvidia" in path}
        assert mine == {
            "/dev/nvidia1": [*SECOND, 0], "/dev/nvidiactl": [*CONTROL, 0], "/dev/nvidia-uvm": [*CONTROL, 0],
        }, "its own, owned by its root"  # fmt: skip
        assert isinstance(told["opened"], int), told["opened"]
        assert told["made"] == "EPERM", "nobody makes another's"
        assert told["env"]["CUDA_VISIBLE_DEVICES"] == "0", "it sees one, and its library counts from 0"
        assert told["libraries"] == ["libcuda.so.1"]
        assert told["env"]["LD_LIBRARY_PATH"].split(":")[0] == "/headrace/drivers"
        ran = await one.exec([sys.executable, "-c", "import os; print(os.listdir('/dev'), dict(os.environ))"])
        assert b"nvidia1" in ran.stdout
        assert b"nvidia0" not in ran.stdout
        assert b"'CUDA_VISIBLE_DEVICES': '0'" in ran.stdout
        assert b"'LD_LIBRARY_PATH': '/headrace/drivers" in ran.stdout
        none = await answer(await claim(bench, code, HERE))
        assert not [path for path in none["nodes"] if "nvidia" in path]
        assert none["env"]["CUDA_VISIBLE_DEVICES"] == ""
        with pytest.raises(PrepareFailed, match="no accelerator 2 here"):
            await claim(bench, code, HERE, gpu_indices=(0, 2))
        mounts = Path("/proc/self/mountinfo").read_text()
        assert " - tmpfs devices " not in mounts, "the place where the nodes were made is gone"


async def test_a_specification_is_kept_from_the_creation_to_the_claim(
    tree: Path, make_harness: Callable[[Path], Harness], tmp_path: Path
) -> None:
    for name in ("shared.so", "own.so"):
        (tree / name).write_text(name)
    (tree / "firmware").mkdir()
    (tree / "firmware/gsp.bin").write_text("firmware")
    ran = tmp_path / "ran"
    hook = {
        "hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", f"cat >> {ran}"],
        "timeout": 10,
    }  # fmt: skip
    devices = [
        {
            "name": str(number),
            "containerEdits": {
                "deviceNodes": [
                    {"path": f"/dev/nvidia{number}"},
                    {"path": f"/dev/dri/card{number}", "hostPath": f"/dev/nvidia{number}"},
                ],
                "mounts": [
                    {"hostPath": "/own.so", "containerPath": f"/opt/vendor/own{number}.so"},
                    {"hostPath": "/firmware", "containerPath": "/opt/firmware"},
                ],
                "env": [f"OWN={number}"],
            },
        }
        for number in (0, 1)
    ]  # fmt: skip
    shared = {
        "deviceNodes": [{"path": "/dev/nvidiactl"}], "hooks": [hook], "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "mounts": [{"hostPath": "/shared.so", "containerPath": "/usr/lib64/libshared.so.1"}],
    }  # fmt: skip
    told = {"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": shared}
    (tree / "etc/cdi").mkdir(parents=True)
    (tree / "etc/cdi/nvidia.json").write_text(json.dumps(told))
    async with opened(make_harness(tree)) as bench:
        await bench.runtime.hold([(HERE, 1)])
        await bench.base("here", lambda s: s.state == "ready" and s.spares > 0)
        assert '"status":"creating"' in ran.read_text(), "the hook has run"
        sandbox = await claim(bench, bundle(bench, tmp_path), HERE, gpu_indices=(1,))
        assert sandbox.tier == "warm"
        told = await answer(sandbox, path="/dev/dri/card1")
        assert {path for path in told["nodes"] if "nvidia" in path or "dri" in path} == {
            "/dev/nvidiactl", "/dev/nvidia1", "/dev/dri/card1",
        }  # fmt: skip
        assert isinstance(told["opened"], int)
        assert told["env"]["NVIDIA_VISIBLE_DEVICES"] == "void"
        assert told["env"]["OWN"] == "1"
        read = "import sys; print([open(p).read() for p in sys.argv[1:]])"
        places = ["/usr/lib64/libshared.so.1", "/opt/vendor/own1.so", "/opt/firmware/gsp.bin"]
        found = await sandbox.exec([sys.executable, "-c", read, *places])
        assert found.stdout.decode().strip() == "['shared.so', 'own.so', 'firmware']", found.stderr
        write = "open('/opt/vendor/own1.so', 'w')"
        refused = await sandbox.exec([sys.executable, "-c", write])
        assert b"Read-only file system" in refused.stderr


async def test_what_a_loaded_base_left_in_the_way_leads_nowhere(
    tree: Path, make_harness: Callable[[Path], Harness], tmp_path: Path
) -> None:
    async with opened(make_harness(tree)) as bench:
        code = bundle(bench, tmp_path)
        loaded = LoadedEndpoint("e", 1, code, "app:Loaded", "class")
        base = Base(key="loaded", loaded=loaded, network=Network("none"))
        await bench.runtime.hold([(base, 1)])
        await bench.base("loaded", lambda s: s.spares > 0)
        sandbox = await claim(bench, code, base, entry="Loaded", endpoint="e", version=1, gpu_indices=(1, 0))
        told = await answer(sandbox, path="/dev/nvidia1")
        assert not [path for path in told["early"] if "nvidia" in path], "there is none before"
        assert told["nodes"]["/dev/nvidia1"][:2] == list(SECOND)
        assert told["nodes"]["/dev/nvidia0"][:2] == list(FIRST)
        assert isinstance(told["opened"], int)
        assert told["env"]["CUDA_VISIBLE_DEVICES"] == "0,1"


async def test_the_kernel_refuses_what_was_not_assigned(
    tree: Path, make_harness: Callable[[Path], Harness], tmp_path: Path
) -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return  # There the rules are given at the creation, and what is not seen cannot be opened.
    async with opened(make_harness(tree)) as bench:
        sandbox = await claim(bench, bundle(bench, tmp_path), HERE, gpu_indices=(0,))
        line = next(
            line
            for line in Path(f"/proc/{sandbox.pid}/cgroup").read_text().splitlines()
            if ":devices:" in line
        )
        allowed = Path("/sys/fs/cgroup/devices" + line.split(":", 2)[2], "devices.list").read_text()
        assert "c {}:{} rw\n".format(*FIRST) in allowed
        assert "c {}:{} ".format(*SECOND) not in allowed
        assert "a *:*" not in allowed


def test_a_machine_without_any_says_so(tmp_path: Path) -> None:
    assert "no accelerator was found" in OciDriver(devices=tmp_path).capabilities()["devices"]
