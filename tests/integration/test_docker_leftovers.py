"""Containers of Docker leave nothing behind: not after use, not after SIGKILL of their owner.

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
from headrace_runtimes.docker import DockerRuntime, sweeper
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.uids import BLOCK
from headrace_runtimes.spec import Base, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
TIMES = 200 if os.environ.get("HEADRACE_SLOW_TESTS") else 20
CGROUPS = Path("/sys/fs/cgroup")
GONE_WITHIN_S = 40.0
FIRST_UID = 860_000
"""Not those of any other host that may run on the machine."""


def harness(directory: Path, address: str, *, kept: bool = True) -> Harness:
    """``kept``: images stay for the next one."""
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=directory / "images" if kept else None,
        first_uid=FIRST_UID, uid_count=BLOCK, uid_lock_dir=directory / "locks",
    )  # fmt: skip
    return Harness(lambda: DockerRuntime(address), settings, directory / "code")


def containers(address: str) -> list[str]:
    """All that the daemon has, whoever made it: the suite's daemon is used by one test at a time."""
    told = sweeper.ask(address.removeprefix("unix://"), "GET", "/containers/json?all=1")
    return [str(one["Names"]) for one in json.loads(told)]


def left(directory: Path, address: str) -> dict[str, list[str]]:
    """All that exists on this machine because of ``directory``, by kind; nothing is a pass."""
    processes, namespaces = [], set()
    for pid in (p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            uid = int(Path(f"/proc/{pid}/status").read_text().partition("Uid:\t")[2].split()[0])
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                continue
            if uid in range(FIRST_UID, FIRST_UID + BLOCK) or os.fsencode(directory / "o") in words:
                processes.append(f"{pid} {words[:80]!r}")
                namespaces.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
    tag = hashlib.sha256(f"docker {directory / 'o'}".encode()).hexdigest()[:10]
    daemon = Path(address.removeprefix("unix://")).parent
    volumes = json.loads(sweeper.ask(str(daemon / "s"), "GET", "/volumes"))["Volumes"] or ()
    found = {
        "container": containers(address),
        # Images stay for the next host, those that nobody has do not.
        "image": sweeper.images(str(daemon / "s"), tag),
        "volume": [str(volume["Name"]) for volume in volumes],
        "network": [
            line
            for command in (("nft", "list", "tables"), ("ip", "-o", "link"))
            for line in subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.splitlines()
            if tag in line
        ],
        "socket": [
            line.split()[-1]
            for line in Path("/proc/net/unix").read_text().splitlines()
            if line.split()[-1].startswith(str(directory))
        ],
        "process": processes,
        "namespace": sorted(namespaces - {os.readlink("/proc/self/ns/net")}),
        "mount": mounted_below(directory),
        "mount of the daemon": [where for where in mounted_below(daemon) if "/overlay2/" in where],
        "cgroup": [at for at, _, _ in os.walk(CGROUPS) if f"/headrace/{tag}/" in at],
        "loop device": [
            p.parent.parent.name
            for p in Path("/sys/block").glob("loop*/loop/backing_file")
            if str(directory) in p.read_text()
        ],
        "file": [
            os.path.join(at, name)
            for part in ("c", "s", "k")
            for at, directories, files in os.walk(directory / "o" / part)
            for name in (*directories, *files)
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def wait_until(what: Callable[[], bool], within_s: float = GONE_WITHIN_S) -> bool:
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.timeout(120 + 3 * TIMES)
async def test_many_lives_leave_nothing(directory: Path, docker_daemon: str) -> None:
    async with opened(harness(directory, docker_daemon)) as bench:
        await bench.base("plain", lambda status: status.spares > 0)
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(TIMES):
            sandbox = await bench.start(fresh=number % 10 == 9, memory_limit=256 << 20)
            assert (await call(sandbox, {"name": "you"}))[0] == 200
            if number % 5 == 4:
                await sandbox.pause()
            await sandbox.stop(0.0 if number % 2 else 1.0)
        await bench.runtime.hold([(Base(key="plain"), 0)])
        await bench.base("plain", lambda status: status.spares <= 1)
        async with asyncio.timeout(10):
            while len(os.listdir("/proc/self/fd")) > descriptors + 8:
                await asyncio.sleep(0.05)
        owned = await bench.runtime.list_owned()
        assert len([o for o in owned if o.kind == "container"]) <= 2, owned
    assert left(directory, docker_daemon) == {}
    assert not (directory / "o").exists() or not list((directory / "o").rglob("*"))


OWNER = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, '{tests}')
from headrace_runtimes.conformance_bench import opened
from headrace_runtimes.spec import Base
from {module} import harness

async def main():
    async with opened(harness(Path({directory!r}), {address!r}, kept={kept})) as bench:
        await bench.runtime.hold([(Base(key="held"), 2)])
        kept = [await bench.start() for _ in range(2)]
        await kept[1].pause()
        print(json.dumps([s.pid for s in kept]), flush=True)
        # In the middle of making and ending others.
        while True:
            one = await bench.start(fresh=True)
            await one.stop(0.0)

asyncio.run(main())
"""


def start_owner(directory: Path, address: str, *, kept: bool = True) -> subprocess.Popen[str]:
    source = OWNER.format(
        tests=str(Path(__file__).parent),
        module=Path(__file__).stem,
        directory=str(directory),
        address=address,
        kept=kept,
    )
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("after_s", "kept"), [(0.0, True), (0.2, False), (0.5, True)])
def test_a_killed_owner_leaves_nothing(
    directory: Path, docker_daemon: str, after_s: float, kept: bool
) -> None:
    owner = start_owner(directory, docker_daemon, kept=kept)
    try:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        assert line, "the owner did not get up"
        assert all(Path(f"/proc/{pid}").exists() for pid in json.loads(line))
        kinds = left(directory, docker_daemon).keys()
        assert kept or "image" in kinds
        assert kinds >= {"container", "process", "mount", "cgroup", "namespace", "loop device", "network"}
        time.sleep(after_s)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    assert wait_until(lambda: not left(directory, docker_daemon)), left(directory, docker_daemon)


async def test_the_next_owner_sweeps_when_the_watchdog_died_too(directory: Path, docker_daemon: str) -> None:
    owner = await asyncio.to_thread(start_owner, directory, docker_daemon)
    try:
        assert owner.stdout is not None
        assert await asyncio.to_thread(owner.stdout.readline)
        dogs = [
            int(pid)
            for pid in (p for p in os.listdir("/proc") if p.isdigit())
            if _parent(pid) == owner.pid and b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(dogs) == 1
        os.kill(dogs[0], signal.SIGKILL)
    finally:
        owner.send_signal(signal.SIGKILL)
        await asyncio.to_thread(owner.wait)
        owner.stdout.close()
    await asyncio.sleep(0.3)
    assert left(directory, docker_daemon).keys() >= {"container", "mount", "cgroup"}, "somebody else swept"
    async with opened(harness(directory, docker_daemon)) as bench:
        assert (await call(await bench.start(), {}))[0] == 200
    assert left(directory, docker_daemon) == {}


async def test_daemons_that_cannot_be_used(directory: Path) -> None:
    settings = harness(directory, "").settings
    elsewhere = {"tcp://10.0.0.1:2375": "on this machine", f"unix://{directory}/no": "Start it"}
    for address, words in elsewhere.items():
        runtime = DockerRuntime(address)
        with pytest.raises(PrepareFailed, match=words):
            await runtime.open(settings, lambda _: None)
        assert runtime.capabilities()["exec"]


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
