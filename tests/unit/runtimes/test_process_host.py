"""What the runtime asks of the machine: uids, cgroups, /proc, the environment of zygotes."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import cgroups, procs
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.home import make_home, sandbox_env
from headrace_runtimes.instance.leftovers import Undertaker
from headrace_runtimes.instance.memory import MemoryGuard
from headrace_runtimes.instance.uids import BLOCK, Uids
from headrace_runtimes.process.spawn import Spawner, python_paths, zygote_environment
from headrace_runtimes.spec import Assignment

FIRST = 2_000_000  # not what real hosts on this machine use


def test_uids_are_unique_over_hosts_and_come_back_late(tmp_path):
    one, two = (Uids(tmp_path, FIRST, 3 * BLOCK, root=True) for _ in range(2))
    one.open()
    two.open()
    taken = [one.take() for _ in range(BLOCK)] + [two.take() for _ in range(BLOCK)]
    assert len(set(taken)) == 2 * BLOCK
    more = one.take()  # a second block
    assert more not in taken
    one.give_back(taken[0])
    assert one.take() != taken[0]
    with pytest.raises(PrepareFailed, match="in use"):
        two.take()
    one.close()
    assert two.take() in range(FIRST, FIRST + 3 * BLOCK)
    two.close()


def test_without_root_there_are_no_uids(tmp_path):
    uids = Uids(tmp_path / "never", FIRST, BLOCK, root=False)
    uids.open()
    assert uids.take() is None
    uids.give_back(None)
    assert not (tmp_path / "never").exists()
    uids.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_still_runs_under_a_claimed_uid_is_ended(tmp_path):
    process = subprocess.Popen(["sleep", "60"], user=FIRST + 7)
    uids = Uids(tmp_path, FIRST, BLOCK, root=True)
    uids.open()
    uids.close()
    assert process.wait(timeout=5) == -9


V1_INFO = """25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 25 0:27 / {mount}/memory rw,relatime - cgroup cgroup rw,memory
31 25 0:28 / {mount}/cpu rw,relatime - cgroup cgroup rw,cpu
"""
V2_INFO = "30 25 0:27 / {mount} rw,relatime - cgroup2 cgroup2 rw\n"


def test_only_a_delegated_cgroup_is_used(tmp_path):
    (tmp_path / "memory" / "a" / "b").mkdir(parents=True)
    info = V1_INFO.format(mount=tmp_path)
    assert cgroups.find_parent(info, "4:memory:/\n1:cpu:/x\n") == tmp_path / "memory"
    assert cgroups.find_parent(info, "4:memory:/a/b\n") is None  # somebody else's
    assert cgroups.find_parent(info, "1:cpu:/\n") is None
    assert cgroups.find_parent("", "") is None
    (tmp_path / "own").mkdir()
    v2 = V2_INFO.format(mount=tmp_path)
    assert cgroups.find_parent(v2, "0::/\n") == tmp_path
    assert cgroups.find_parent(v2, "0::/own\n") is None
    try:
        os.setxattr(tmp_path / "own", "user.delegate", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    assert cgroups.find_parent(v2, "0::/own\n") == tmp_path / "own"


def test_without_the_memory_controller_there_are_none(tmp_path):
    assert cgroups.open_cgroups(tmp_path, "name") is None  # plain directories have no limit file
    (tmp_path / "file").touch()
    assert cgroups.open_cgroups(tmp_path / "file", "name") is None
    assert not (tmp_path / "headrace" / "name" / "probe").exists()


def fake_cgroups(tmp_path, names):
    """The kernel's files as plain ones: what is read and written is checked, not that the kernel obeys."""
    made = cgroups.Cgroups(tmp_path, "name", names)
    made.root.mkdir(parents=True)
    made.make("c1", os.getpid())
    return made


@pytest.mark.parametrize("names", [cgroups.V1, cgroups.V2])
async def test_limits_and_kills_by_cgroup(tmp_path, names):
    made = fake_cgroups(tmp_path, names)
    assert (made.root / "c1" / "cgroup.procs").read_text() == str(os.getpid())
    guard = MemoryGuard(made)
    child = Child("c1", None, False)
    child.cgroup = "c1"
    guard.limit(child, 512 << 20)
    assert (made.root / "c1" / names.limit).read_text() == str(512 << 20)
    events = made.root / "c1" / names.events
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
    assert guard.killed_for(child, 512 << 20) is None
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert guard.killed_for(child, 512 << 20) == 512 << 20
    child.died(0, None)
    await guard.close()


async def test_memory_is_polled_where_there_is_no_cgroup():
    process = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * (64 << 20); import time; time.sleep(60)"], start_new_session=True
    )
    guard = MemoryGuard(None, period_s=0.01)
    child, small = Child("a", None, False), Child("b", None, False)
    child.forked(process.pid)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    small.forked(bystander.pid)
    try:
        guard.limit(child, 32 << 20)
        guard.limit(small, 1 << 30)
        assert await asyncio.wait_for(asyncio.to_thread(process.wait), 10) == -9
        assert guard.killed_for(child, 32 << 20) == 32 << 20
        assert bystander.poll() is None
        assert guard.killed_for(small, 1 << 30) is None
    finally:
        await guard.close()
        for p in (process, bystander):
            p.kill()
            p.wait()
        child.died(None, 9)
        small.died(None, 9)


def test_a_process_is_known_by_its_start_not_by_its_number():
    process = subprocess.Popen(["sleep", "60"])
    identity = procs.identity(process.pid)
    assert identity == procs.identity(process.pid)
    assert procs.pss(process.pid) > 0
    assert procs.uid_of(process.pid) == os.getuid()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert procs.identity(process.pid) is None  # a zombie is gone
    process.wait()
    assert procs.stat(process.pid) is None
    assert procs.pss(process.pid) == 0
    assert procs.uid_of(process.pid) is None


async def test_the_undertaker_ends_whole_sessions_and_nothing_else():
    script = (
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    )
    leaders = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for _ in range(3)
    ]
    try:
        for leader in leaders:
            leader.stdout.readline()
        undertaker = Undertaker()
        assert await asyncio.gather(*(undertaker.bury(p.pid, None) for p in leaders[:2])) == [True, True]
        assert [procs.in_session(p.pid) for p in leaders[:2]] == [[], []]
        assert len(procs.in_session(leaders[2].pid)) == 2
        assert await undertaker.bury(leaders[2].pid, None)
    finally:
        for leader in leaders:
            leader.kill()
            leader.wait()
            leader.stdin.close()
            leader.stdout.close()


def test_the_environment_of_a_zygote_is_allow_listed():
    given = {
        "PATH": "/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "LD_LIBRARY_PATH": "/l", "VIRTUAL_ENV": "/v",
        "RAY_AUTH_TOKEN": "s", "HEADRACE_API_KEY": "s", "AWS_SECRET_ACCESS_KEY": "s", "GITHUB_TOKEN": "s",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "/p", "LD_PRELOAD": "/x", "OMP_NUM_THREADS": "8",
        "HOME": "/root",
    }  # fmt: skip
    env = zygote_environment(given)
    assert "s" not in env.values()
    assert {"PATH", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"} <= env.keys()
    assert not env.keys() & {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "LD_PRELOAD", "HOME"}
    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "1"
    assert zygote_environment({})["PATH"]


async def test_the_interpreter_says_where_it_imports_from():
    paths = await python_paths(sys.executable, {})
    assert {Path(sys.prefix), Path(sys.base_prefix), Path(json.__file__).parent.parent} <= set(paths)
    assert all(p.exists() for p in paths)
    for broken in ("/no/such/python", "/bin/false", "/bin/true"):
        with pytest.raises(PrepareFailed, match="does not start"):
            await python_paths(broken, {})


async def test_processes_come_from_one_thread_that_lives_on():
    spawner = Spawner()
    before = threading.active_count()
    processes = await asyncio.gather(*(spawner.popen(["true"]) for _ in range(3)))
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert threading.active_count() == before
    with pytest.raises(FileNotFoundError):
        await spawner.popen(["/no/such/program"])
    spawner.close()


def assignment(**options):
    return Assignment("i", "p/e", 1, Path("/code"), "app:f", "function", "t", **options)


def test_accelerators_are_what_was_reserved():
    assert sandbox_env(assignment(env={"A": "1"}))["CUDA_VISIBLE_DEVICES"] == ""
    wish = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert sandbox_env(assignment(env=wish, gpu_indices=(2,)))["CUDA_VISIBLE_DEVICES"] == "2"


@pytest.mark.parametrize("id", ["../up", "a/b", "", ".hidden", "x" * 65, "a b", "a\n"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path, id):
    with pytest.raises(PrepareFailed, match="Instance id"):
        make_home(tmp_path, tmp_path, id, None)
    assert not list(tmp_path.iterdir())


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(PrepareFailed, match="too long for a socket"):
        make_home(tmp_path, tmp_path / ("x" * 100), "i", None)


def test_a_home_is_private_and_its_socket_is_not_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s", "k"):
        Path(name).mkdir()
    home = make_home(Path("s"), Path("k"), "i", None)
    try:
        assert home.path.stat().st_mode & 0o777 == 0o700
        assert home.door.stat().st_mode & 0o777 == 0o600
        assert {p.name for p in home.path.iterdir()} == {"home", "tmp"}
        with pytest.raises(PrepareFailed, match="Cannot make"):
            make_home(Path("s"), Path("k"), "i", None)
        assert home.door.exists()  # the living one was not touched
        assert home.path.exists()
    finally:
        home.listener.close()
    home.remove()
    assert not list(Path("s").iterdir())
    assert not list(Path("k").iterdir())


async def test_a_number_that_is_anothers_by_now_is_not_signalled():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    child = Child("x", None, False)
    try:
        child.forked(process.pid)
        child._identity = f"{process.pid} 1 another boot"
        child.kill()
        assert procs.identity(process.pid) is not None
        child.forked(process.pid)
        child.kill()
        assert process.wait(timeout=5) == -9
    finally:
        process.kill()
        process.wait()
        child.died(None, 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_session_is_ended_only_as_far_as_it_is_of_that_uid():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert await Undertaker().bury(process.pid, None, runs_as=FIRST + 9)
        assert process.poll() is None
        assert await Undertaker().bury(process.pid, None, runs_as=0)
        assert process.wait(timeout=5) == -9
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_what_a_uid_left_in_shared_places_is_not_the_next_ones(tmp_path):
    (tmp_path / "before").write_text("x")
    os.chown(tmp_path / "before", FIRST + 3, FIRST + 3)
    os.utime(tmp_path / "before", (1, 1))
    await asyncio.sleep(0.05)  # file times are those of the kernel's last tick
    undertaker = Undertaker((tmp_path, tmp_path / "never"))
    await asyncio.sleep(0.05)
    kept = tmp_path / "kept"
    kept.write_text("x")
    (tmp_path / "mine" / "deep").mkdir(parents=True)
    (tmp_path / "mine" / "deep" / "file").write_text("secret")
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "another").write_text("x")
    for name in ("mine", "link"):
        os.chown(tmp_path / name, FIRST + 3, FIRST + 3, follow_symlinks=False)
    os.chown(tmp_path / "another", FIRST + 4, FIRST + 4)
    assert await undertaker.bury(1, FIRST + 3)
    assert {p.name for p in tmp_path.iterdir()} == {"before", "kept", "another"}


MAKE_SYSV = """
import ctypes, os, sys
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
libc = ctypes.CDLL(None)
made = (libc.shmget(0, 4096, 0o1666), libc.msgget(0, 0o1666), libc.semget(0, 1, 0o1666))
assert -1 not in made, made
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_system_v_memory_of_a_uid_goes_with_it(tmp_path):
    def of(uid):
        lists = [Path("/proc/sysvipc", kind).read_text().splitlines()[1:] for kind in ("shm", "msg", "sem")]
        return [sum(str(uid) in row.split() for row in rows) for rows in lists]

    for uid in (FIRST + 5, FIRST + 6):
        subprocess.run([sys.executable, "-c", MAKE_SYSV, str(uid)], check=True)
    assert of(FIRST + 5) == of(FIRST + 6) == [1, 1, 1]
    assert await Undertaker((tmp_path,)).bury(1, FIRST + 5)
    assert (of(FIRST + 5), of(FIRST + 6)) == ([0, 0, 0], [1, 1, 1])
    # And of what a host that was killed has left: whoever claims its block takes it away.
    uids = Uids(tmp_path, FIRST, BLOCK, root=True)
    uids.open()
    uids.close()
    assert of(FIRST + 6) == [0, 0, 0]
