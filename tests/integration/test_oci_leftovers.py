"""Containers leave nothing behind: not after use, not after the death of the process that owns them.

``HEADRACE_SLOW_TESTS=1`` makes it 200 times instead of 20.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.containers.sweep import mounted_below
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.spec import Base, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
TIMES = 200 if os.environ.get("HEADRACE_SLOW_TESTS") else 20
CGROUPS = Path("/sys/fs/cgroup")
GONE_WITHIN_S = 40.0


def settings(directory: Path) -> RuntimeSettings:
    return RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=directory / "images",
    )  # fmt: skip


def left(directory: Path) -> dict[str, list[str]]:
    """All that exists on this machine because of ``directory``, by kind; nothing is a pass."""
    name = os.fsencode(directory / "o")
    processes, namespaces = [], set()
    for pid in (p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            uid = int(Path(f"/proc/{pid}/status").read_text().partition("Uid:\t")[2].split()[0])
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            theirs = os.readlink(f"/proc/{pid}/root") if state != "Z" else ""
            namespace = os.readlink(f"/proc/{pid}/ns/user") if state != "Z" else ""
        except OSError:
            continue
        if state != "Z" and (name in words or (uid in _ids(directory) or theirs.startswith(str(directory)))):
            processes.append(f"{pid} {words[:80]!r}")
            namespaces.add(namespace)
    tag = _tag(directory)
    found = {
        "process": processes,
        "namespace": sorted(namespaces),
        "mount": mounted_below(directory),
        "cgroup": [str(p) for p in CGROUPS.glob(f"*/headrace/{tag}/*/")]
        + [str(p) for p in CGROUPS.glob(f"headrace/{tag}/*/")],
        "network": [
            line
            for command in (("nft", "list", "tables"), ("ip", "-o", "link"))
            for line in subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.splitlines()
            if tag in line
        ],
        "loop device": [
            str(p.parent.parent.name)
            for p in Path("/sys/block").glob("loop*/loop/backing_file")
            if str(directory) in p.read_text()
        ],
        "file": [
            os.path.join(at, name)
            for part in ("c", "s", "k")
            for at, directories, files in os.walk(directory / "o" / part)
            for name in (*directories, *files)
        ],
        "socket": [
            line.split()[-1]
            for line in Path("/proc/net/unix").read_text().splitlines()
            if line.split()[-1].startswith(str(directory))
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def _tag(directory: Path) -> str:
    return hashlib.sha256(str(directory / "o").encode()).hexdigest()[:10]


def _ids(directory: Path) -> range:
    """Those of containers that were seen by the caller are written down by it."""
    known = directory / "first-id"
    first = int(known.read_text()) if known.exists() else 0
    return range(first, first + 250 * 65_536) if first else range(0)


def wait_until(what: Callable[[], bool], within_s: float = GONE_WITHIN_S) -> bool:
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


async def test_many_lives_leave_nothing(directory: Path) -> None:
    async with opened(Harness(OciRuntime, settings(directory), directory / "code")) as bench:
        await bench.base("plain", lambda status: status.spares > 0)
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(TIMES):
            sandbox = await bench.start(fresh=number % 10 == 9)
            assert (await call(sandbox, {"name": "you"}))[0] == 200
            if number % 5 == 4:
                await sandbox.pause()
            await sandbox.stop(0.0 if number % 2 else 1.0)
        await bench.runtime.hold([(Base(key="plain"), 0)])
        await bench.base("plain", lambda status: status.spares <= 1)
        async with asyncio.timeout(10):
            while len(os.listdir("/proc/self/fd")) > descriptors + 4:
                await asyncio.sleep(0.05)
        owned = await bench.runtime.list_owned()
        assert len([o for o in owned if o.kind == "container"]) <= 2, owned
    assert left(directory) == {}
    assert not (directory / "o").exists() or not list((directory / "o").rglob("*"))


OWNER = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.spec import Base
from {module} import settings

async def main():
    directory = Path({directory!r})
    async with opened(Harness(OciRuntime, settings(directory), directory / "code")) as bench:
        await bench.runtime.hold([(Base(key="held"), 2)])
        kept = [await bench.start() for _ in range(2)]
        await kept[1].pause()
        uid = int(Path(f"/proc/{{kept[0].pid}}/status").read_text().partition("Uid:\\t")[2].split()[0])
        (directory / "first-id").write_text(str(uid - (uid - 0x40000000) % (250 * 65536)))
        print(json.dumps([s.pid for s in kept]), flush=True)
        # In the middle of making and ending others.
        while True:
            one = await bench.start(fresh=True)
            await one.stop(0.0)

asyncio.run(main())
"""


def start_owner(directory: Path) -> subprocess.Popen[str]:
    source = OWNER.format(
        tests=str(Path(__file__).parent), module=Path(__file__).stem, directory=str(directory)
    )
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after_s", [0.0, 0.13, 0.4])
def test_a_killed_owner_leaves_nothing(directory: Path, after_s: float) -> None:
    owner = start_owner(directory)
    try:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        assert line, "the owner did not get up"
        pids = json.loads(line)
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        assert left(directory).keys() >= {"process", "mount", "cgroup", "namespace", "loop device"}
        time.sleep(after_s)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    assert wait_until(lambda: not left(directory)), left(directory)


DYING = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.oci import OciRuntime
from {module} import settings

class Dying(Egress):
    async def _lend(self):
        # Its table and its link are on the machine by now.
        print("dying", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(OciRuntime(networks=Dying()).open(settings(Path({directory!r})), print))
"""


def test_a_host_that_is_killed_while_its_networks_open_leaves_nothing(directory: Path) -> None:
    source = DYING.format(
        tests=str(Path(__file__).parent), module=Path(__file__).stem, directory=str(directory)
    )
    died = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert died.stdout == "dying\n"
    assert wait_until(lambda: not left(directory)), left(directory)


async def test_the_next_owner_sweeps_when_the_watchdog_died_too(directory: Path) -> None:
    owner = await asyncio.to_thread(start_owner, directory)
    try:
        assert owner.stdout is not None
        assert await asyncio.to_thread(owner.stdout.readline)
        children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
        dogs = [
            int(pid)
            for pid in {*children, *(p for p in os.listdir("/proc") if p.isdigit())}
            if _parent(pid) == owner.pid and b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(dogs) == 1
        os.kill(dogs[0], signal.SIGKILL)
    finally:
        owner.send_signal(signal.SIGKILL)
        await asyncio.to_thread(owner.wait)
        owner.stdout.close()
    await asyncio.sleep(0.3)
    assert left(directory).keys() >= {"process", "mount", "cgroup", "network"}, "somebody else swept"
    async with opened(Harness(OciRuntime, settings(directory), directory / "code")) as bench:
        assert (await call(await bench.start(), {}))[0] == 200
    assert left(directory) == {}


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
