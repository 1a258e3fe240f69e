"""Parts of the oci runtime: id ranges, the configuration, the choice of the binary, sweeping, disks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from headrace.errors import SettingsError
from headrace.host.runtimes import maker, offered
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.containers.sweep import Plan, sweep
from headrace_runtimes.containers.watchdog import Watchdog
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import criu
from headrace_runtimes.oci.binary import Binary, find, last_words
from headrace_runtimes.oci.bundle import CAPABILITY_SETS, Place, configuration
from headrace_runtimes.oci.directory import Directory
from headrace_runtimes.oci.disk import copy_sparse
from headrace_runtimes.oci.seccomp import profile
from headrace_runtimes.oci.slots import FIRST_ID, ID_COUNT, SLOTS, Slots
from headrace_runtimes.spec import Network

ELSEWHERE = FIRST_ID + SLOTS * ID_COUNT
"""Not what real hosts on this machine use: what runs under ids that are claimed is ended."""


def test_two_hosts_have_different_ids(tmp_path: Path) -> None:
    one, two = (Slots(tmp_path, slots=8, block=4, first=ELSEWHERE) for _ in range(2))
    one.open()
    two.open()
    taken = [slots.take() for slots in (one, two) for _ in range(4)]
    assert len(set(taken)) == 8
    assert all((first - ELSEWHERE) % ID_COUNT == 0 for first in taken)
    with pytest.raises(PrepareFailed, match="in use"):
        one.take()
    one.give_back(taken[0])
    two.close()
    assert one.take() == taken[0]
    assert one.take() in taken[4:], "what another host let go can be had"
    one.close()


def test_ids_come_back_as_late_as_possible(tmp_path: Path) -> None:
    slots = Slots(tmp_path, slots=4, block=4, first=ELSEWHERE)
    slots.open()
    first = slots.take()
    slots.give_back(first)
    assert [slots.take() for _ in range(4)][-1] == first
    slots.close()


def spec(network: Network) -> ContainerSpec:
    root = Root("d", "/usr/bin/python3", reference="/img", binds=((Path("/opt/env"), "/opt/env"),))
    return ContainerSpec("c1", root, Path("/run/door"), ("python3", "x"), network, {"A": "1"})


def place(**more: object) -> Place:
    return Place(Path("/c/root"), Path("/e"), "/headrace/t/c1", FIRST_ID, profile("x86_64"), **more)  # type: ignore[arg-type]


def test_the_configuration_gives_nothing_away() -> None:
    made = configuration(spec(Network("none")), place())
    process, linux = made["process"], made["linux"]
    assert process["noNewPrivileges"]
    assert process["capabilities"] == {kind: [] for kind in CAPABILITY_SETS}
    kinds = {n["type"] for n in linux["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "user", "cgroup", "network"}
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": FIRST_ID, "size": 65_536}]
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert linux["resources"]["pids"]["limit"] > 0
    assert {"allow": False, "access": "rwm"} in linux["resources"]["devices"]
    for mount in made["mounts"]:
        assert "nosuid" in mount["options"], mount
        if mount["type"] == "bind":
            assert "ro" in mount["options"], mount


def test_networks_of_the_configuration() -> None:
    def networks(mode: Network) -> list[dict[str, str]]:
        found = configuration(spec(mode), place())["linux"]["namespaces"]
        return [n for n in found if n["type"] == "network"]

    assert networks(Network("host")) == []
    assert networks(Network("none")) == [{"type": "network"}]
    assert networks(Network("egress")) == [{"type": "network"}], "its link is moved into it"


def test_which_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install runc" in find(None)[1]
    assert find("crun") == ("", "crun is not installed: apt-get install crun")
    assert "kernel of their own" in find("/opt/runsc")[1]
    crun = tmp_path / "crun"
    crun.write_text("#!/bin/sh\nexit 3\n")
    crun.chmod(0o755)
    assert find(None) == (str(crun), "")
    with pytest.raises(PrepareFailed, match="does not run"):
        Binary(str(crun), tmp_path).version()


def test_the_binary_that_the_settings_name(tmp_path: Path) -> None:
    """Through the registry, as a host does: a missing one is told with what to do."""
    why = maker("crun-of-nobody")("oci").capabilities()
    assert set(why.values()) >= {
        "crun-of-nobody is no program here: name one of runc, crun, youki, or its path"
    }
    with pytest.raises(SettingsError, match="crun-of-nobody is no program here"):
        offered("process,oci", maker("crun-of-nobody"))
    assert "oci" not in offered("auto", maker("/opt/runsc"))
    assert "apt-get" not in maker("")("process").capabilities()["isolation"]


async def test_a_binary_that_refuses_is_quoted(tmp_path: Path) -> None:
    refuser = tmp_path / "crun"
    refuser.write_text("#!/bin/sh\necho first\necho 'hybrid hierarchies are not supported.' >&2\nexit 1\n")
    refuser.chmod(0o755)
    (tmp_path / "disk").mkdir()
    with pytest.raises(
        PrepareFailed, match=r"crun refuses the container: hybrid .* supported\. Mend that or"
    ):
        await Binary(str(refuser), tmp_path / "state").run("c1", tmp_path)
    assert last_words(tmp_path / "nothing") == "no reason given"
    # Who writes there may be anybody, and says where his words end.
    with (tmp_path / "much").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nat last")
    assert last_words(tmp_path / "much") == "at last"


async def test_no_binary_is_handed_dev_null(tmp_path: Path) -> None:
    """What crun is handed as its streams it gives to the container's user."""
    looker = tmp_path / "crun"
    looker.write_text(
        f"#!/bin/sh\nstat -L -c %F /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 >>{tmp_path}/seen\n"
    )
    looker.chmod(0o755)
    (tmp_path / "disk").mkdir()
    binary = Binary(str(looker), tmp_path / "state")
    await binary.run("c1", tmp_path)
    await binary.exec("c1", tmp_path / "told", tmp_path / "pid", 10.0)
    await criu.restore(binary, "c1", tmp_path, tmp_path)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) == 9
    assert {kind.removesuffix(" empty file").removesuffix(" file") for kind in seen} == {"fifo", "regular"}


def test_holes_stay_holes(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with old.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 5000)
    copy_sparse(old, new)
    assert old.read_bytes() == new.read_bytes()
    assert new.stat().st_blocks * 512 < 1 << 20


def test_one_runtime_in_a_directory(tmp_path: Path) -> None:
    one, two = Directory(tmp_path / "c"), Directory(tmp_path / "c")
    one.open()
    with pytest.raises(PrepareFailed, match="Another runtime"):
        two.open(wait_s=0.05)
    one.make_again()
    one.close()
    two.open(wait_s=0.05)
    two.close()
    assert list(tmp_path.iterdir()) == []


def marked(directory: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", "import time; time.sleep(600)", str(directory))


def test_a_sweep_takes_makers_files_and_runs_hooks(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine / "deep", other / "old"):
        path.mkdir(parents=True)
    (other / "file").touch()
    maker = subprocess.Popen(marked(mine))
    bystander = subprocess.Popen(marked(other))
    try:
        time.sleep(0.1)
        hooks = (("touch", str(tmp_path / "hooked")), ("/no/such/program",))
        assert sweep(Plan(str(mine), commands=(marked(mine),), hooks=hooks, emptied=(str(other),)))
        assert maker.wait(5) == -9
        assert bystander.poll() is None
        assert not mine.exists()
        assert list(other.iterdir()) == []
        assert (tmp_path / "hooked").exists()
    finally:
        for process in (maker, bystander):
            process.kill()
            process.wait()


async def test_a_watchdog_is_started_again_and_dismissed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    dog = Watchdog(sys.executable, Plan(str(kept)))
    await dog.ensure()
    first = dog.pid
    await dog.ensure()
    assert dog.pid == first
    subprocess.run(["kill", "-9", str(first)], check=True)
    deadline = time.monotonic() + 5
    while dog.pid == first and time.monotonic() < deadline:
        await dog.ensure()
    assert dog.pid != first
    await dog.close()
    assert kept.exists(), "it was dismissed, and swept all the same"


HOST = """
import asyncio, os, sys
from headrace_runtimes.containers.sweep import Plan
from headrace_runtimes.containers.watchdog import Watchdog
async def main():
    dog = Watchdog(sys.executable, Plan(sys.argv[1]))
    await dog.ensure()
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def test_a_watchdog_sweeps_when_its_host_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "of-host"
    (path / "below").mkdir(parents=True)
    assert subprocess.run([sys.executable, "-c", HOST, str(path)], check=False).returncode == -9
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not path.exists()
