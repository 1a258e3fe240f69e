"""What hostile code in a container can reach: nothing of the host, of its neighbours, or of the kernel.

During each attempt a neighbour answers: in time, and all of its calls. The same for oci and docker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headrace
import pytest
import pytest_asyncio
from headrace_runtimes.base import Runtime, Sandbox
from headrace_runtimes.conformance_bench import TOKEN, call
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import Assignment, Base, Network, RuntimeSettings

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.asyncio(loop_scope="module"),
]
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
HERE = Base(key="plain")
CODE = '''
import ctypes, errno, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def run(source, arguments=()):
    """Whatever the source says; its ``result``, or how it failed."""
    names = {"arguments": arguments, **globals()}
    try:
        exec(source, names)
    except BaseException as error:
        return {"failed": type(error).__name__, "errno": getattr(error, "errno", None), "text": str(error)}
    return {"result": names.get("result")}

def number(name, *arguments):
    """A system call by its number on this machine: 0 and above, or minus the errno."""
    table = {
        "x86_64": {"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "init_module": 175,
          "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "bpf": 321,
          "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "ptrace": 101,
          "io_uring_setup": 425, "userfaultfd": 323, "unshare": 272, "setns": 308, "clone": 56, "clone3": 435,
          "process_vm_readv": 310, "pidfd_getfd": 438, "open_by_handle_at": 304, "name_to_handle_at": 303,
          "reboot": 169, "settimeofday": 164, "sethostname": 170, "swapon": 167, "syslog": 103, "acct": 163,
          "quotactl": 179, "iopl": 172, "ioperm": 173, "open_tree": 428, "move_mount": 429, "fsopen": 430,
          "mount_setattr": 442, "fanotify_init": 300, "kcmp": 312, "move_pages": 279, "personality": 135},
        "aarch64": {"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "init_module": 105,
          "finit_module": 273, "delete_module": 106, "kexec_load": 104, "kexec_file_load": 294, "bpf": 280,
          "perf_event_open": 241, "keyctl": 219, "add_key": 217, "request_key": 218, "ptrace": 117,
          "io_uring_setup": 425, "userfaultfd": 282, "unshare": 97, "setns": 268, "clone": 220, "clone3": 435,
          "process_vm_readv": 270, "pidfd_getfd": 438, "open_by_handle_at": 265, "name_to_handle_at": 264,
          "reboot": 142, "settimeofday": 170, "sethostname": 161, "swapon": 224, "syslog": 116, "acct": 89,
          "quotactl": 60, "open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
          "fanotify_init": 262, "kcmp": 272, "move_pages": 239, "personality": 92},
    }[os.uname().machine]
    ctypes.set_errno(0)
    found = libc.syscall(ctypes.c_long(table[name]), *(ctypes.c_long(a) for a in arguments))
    return found if found >= 0 else -ctypes.get_errno()

class Holder:
    def load(self):
        self.kept = []

    def __call__(self, source, arguments=()):
        return run(source, arguments)
'''


@dataclass
class Cell:
    """An open runtime with a neighbour that must keep answering."""

    runtime: Runtime
    directory: Path
    neighbour: Sandbox
    prisoner: Sandbox
    """For attempts that leave nothing behind."""

    @property
    def has_own_ids(self) -> bool:
        """Whether it is root of its own user namespace with a root to write to, or a plain user."""
        return self.runtime.name == "oci"

    async def start(self, base: Base = HERE, **options: Any) -> Sandbox:
        """A sandbox that does what it is told."""
        return await self.runtime.claim(base, assignment(self.directory / "code", **options))


def assignment(code: Path, **options: Any) -> Assignment:
    """For `CODE`."""
    values: dict[str, Any] = {
        "id": f"i{uuid.uuid4().hex[:8]}", "endpoint": "default/hostile", "version": 1, "code_dir": code,
        "entry": "app:run", "handler": "function", "token": TOKEN,
    }  # fmt: skip
    return Assignment(**(values | options))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["oci", "docker"])
async def cell(request: pytest.FixtureRequest) -> AsyncIterator[Cell]:
    directory = Path(tempfile.mkdtemp(prefix="hri-"))
    directory.chmod(0o711)
    (directory / "code").mkdir()
    (directory / "code" / "app.py").write_text(CODE)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", allow_host_network=True,
    )  # fmt: skip
    runtime: Runtime = OciRuntime()
    if request.param == "docker":
        runtime = DockerRuntime(request.getfixturevalue("docker_daemon"), LoopbackOnly())
    await runtime.open(settings, lambda _: None)
    try:
        neighbour = await runtime.claim(HERE, assignment(directory / "code", secrets={"key": "of-neighbour"}))
        prisoner = await runtime.claim(HERE, assignment(directory / "code"))
        yield Cell(runtime, directory, neighbour, prisoner)
    finally:
        await runtime.close()
        shutil.rmtree(directory)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def the_neighbour_answers(cell: Cell) -> AsyncIterator[None]:
    answers: list[Any] = []

    enough = asyncio.Event()

    async def ask() -> None:
        while not enough.is_set():
            answers.append(await asyncio.wait_for(call(cell.neighbour, {"source": "result = 7"}), 10.0))
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    yield
    await asyncio.sleep(0.1)
    assert not asking.done(), f"the neighbour stopped answering: {asking.exception()}"
    # The last question is waited for: given up, it would leave the neighbour full for the next test.
    enough.set()
    await asking
    assert answers, "the neighbour was not asked"
    assert all(answer == (200, {"result": 7}) for answer in answers), answers


async def tell(sandbox: Sandbox, source: str, *arguments: object) -> Any:
    """Run it inside: ``result``; a failure comes as the text that begins with its name."""
    status, body = await call(sandbox, {"source": source, "arguments": list(arguments)})
    assert status == 200, body
    return body["result"] if "result" in body else f"{body['failed']}: {body['text']}"


async def test_the_hosts_files_are_not_there(cell: Cell) -> None:
    sandbox = await cell.start()
    secret = cell.directory / "secret"
    secret.write_text("of the host")
    paths = (
        str(secret),
        "/etc/shadow",
        str(cell.directory),
        "/proc/1/root/etc/shadow",
        "/sys/kernel/debug/x",
    )
    for path in paths:
        assert str(await tell(sandbox, "result = open(arguments[0]).read()", path)).startswith(
            ("FileNotFoundError", "PermissionError", "IsADirectoryError", "NotADirectoryError")
        ), path
    seen = await tell(sandbox, "result = [p for p in arguments if os.path.lexists(p)]", *(
        str(path) for path in (Path(__file__), ENGINE, "/home", "/boot", "/srv", "/usr/bin/env", "/var/log")
    ))  # fmt: skip
    assert seen == [], "places of the host"
    await sandbox.stop(0.0)


async def test_the_root_of_the_container_is_nobody_on_the_host(cell: Cell) -> None:
    one, two = await cell.start(), await cell.start()
    uids = [os.stat(f"/proc/{s.pid}/ns").st_uid or _uid(s.pid) for s in (one, two)]
    ours = range(0x4000_0000, 1 << 32) if cell.has_own_ids else range(870_000, 880_000)
    assert all(uid in ours for uid in uids), uids
    assert uids[0] != uids[1], "two containers share their ids"
    status = await tell(one, "result = open('/proc/self/status').read()")
    kept = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {kept[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (kept["NoNewPrivs"], kept["Seccomp"]) == ("1", "2")
    assert await tell(one, "result = os.getuid()") == (0 if cell.has_own_ids else uids[0])
    owners = await tell(one, "result = sorted({os.stat(p).st_uid for p in ('/', '/usr', '/etc/passwd')})")
    assert owners == [0], "image files do not appear owned as the image says"
    for sandbox in (one, two):
        await sandbox.stop(0.0)


def _uid(pid: int) -> int:
    line = next(s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("Uid:"))
    return int(line.split()[1])


async def test_neighbours_secrets_sockets_and_processes(cell: Cell) -> None:
    sandbox = await cell.start(secrets={"key": "mine"})
    everything = """
found = []
for top, directories, files in os.walk('/'):
    directories[:] = [d for d in directories if top != '/' or d not in ('proc', 'sys', 'dev')]
    for name in files:
        path = os.path.join(top, name)
        try:
            if os.path.getsize(path) < 100 and b'of-neighbour' in open(path, 'rb').read():
                found.append(path)
        except OSError:
            pass
result = found
"""
    assert await tell(sandbox, everything) == []
    assert await tell(sandbox, "result = open('/run/secrets/key').read()") == "mine"
    address = cell.neighbour.address.partition(":")[2]
    connect = "s = socket.socket(socket.AF_UNIX); s.connect(arguments[0]); result = 'connected'"
    assert str(await tell(sandbox, connect, address)).startswith("FileNotFoundError")
    pids = await tell(sandbox, "result = [int(p) for p in os.listdir('/proc') if p.isdigit()]")
    assert len(pids) <= 4, "it sees processes of others"
    outside = "result = [_try(pid) for pid in arguments]"
    kill = "def _try(pid):\n  try: os.kill(pid, 9); return pid\n  except OSError: return None\n" + outside
    victims = (cell.neighbour.pid, os.getpid(), 99_999)
    assert await tell(sandbox, kill, *victims) == [None] * 3
    # -1 is all that it may signal: at most itself.
    await call(sandbox, {"source": "os.kill(-1, 0); result = 1"})
    with contextlib.suppress(OSError):
        await call(sandbox, {"source": "os.kill(-1, 9)"})
    assert not cell.neighbour.exited.done()
    await sandbox.stop(0.0)


async def test_abstract_sockets_of_the_host(cell: Cell) -> None:
    name = f"\0headrace-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        sandbox = await cell.start(base=Base(key="alone", network=Network("none")))
        connect = "s = socket.socket(socket.AF_UNIX); s.connect('\\0' + arguments[0]); result = 'connected'"
        assert str(await tell(sandbox, connect, name[1:])).startswith("ConnectionRefusedError")
        await sandbox.stop(0.0)


DOORS = """
mount umount2 pivot_root chroot init_module finit_module delete_module kexec_load kexec_file_load bpf
perf_event_open keyctl add_key request_key ptrace io_uring_setup userfaultfd unshare setns
process_vm_readv pidfd_getfd open_by_handle_at name_to_handle_at reboot settimeofday sethostname swapon
syslog acct quotactl open_tree move_mount fsopen mount_setattr fanotify_init kcmp move_pages
"""


@pytest.mark.parametrize("name", DOORS.split())
async def test_the_kernels_doors_are_shut(cell: Cell, name: str) -> None:
    # By the filter, not by a wrong argument: those would fail with EFAULT, EINVAL or ENOENT.
    assert await tell(cell.prisoner, f"result = number({name!r}, 0, 0, 0, 0, 0)") == -1


async def test_no_namespaces_are_made(cell: Cell) -> None:
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        source = "result = number('clone', arguments[0] | 17, 0, 0, 0, 0)"
        assert await tell(cell.prisoner, source, flag) == -1, hex(flag)
    assert await tell(cell.prisoner, "result = number('clone3', 0, 0)") == -38
    assert await tell(cell.prisoner, "result = number('personality', 0x0040000)") == -1
    assert await tell(cell.prisoner, "result = subprocess.run([sys.executable, '-c', '']).returncode") == 0


async def test_only_ordinary_sockets(cell: Cell) -> None:
    source = "socket.socket(*arguments).close(); result = 'made'"
    refused = [
        (2, 3, 1), (10, 3, 58), (2, 3, 255), (17, 3, 768), (17, 2, 768), (40, 1, 0), (16, 3, 9), (16, 3, 12),
        (16, 3, 15), (38, 5, 0), (31, 3, 1), (29, 3, 1), (30, 1, 0), (2, 5, 132), (44, 3, 0), (2, 10, 1),
    ]  # fmt: skip
    for arguments in refused:
        assert str(await tell(cell.prisoner, source, *arguments)).startswith("PermissionError"), arguments
    for arguments in ((1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (10, 1, 6), (10, 2, 17), (16, 3, 0)):
        assert await tell(cell.prisoner, source, *arguments) == "made", arguments


async def test_nothing_outside_is_written(cell: Cell) -> None:
    sandbox = await cell.start()
    write = "open(arguments[0], 'w').write('x'); result = 'written'"
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname", "/sys/kernel/x",
        "/headrace/code/app.py", "/headrace/engine/hr_serve.py", "/headrace/door/x", "/proc/1/oom_score_adj_",
        "/sys/fs/cgroup/x", "/dev/mem", "/dev/vda",
    ):  # fmt: skip
        assert await tell(sandbox, write, path) != "written" or not path.startswith(
            ("/proc", "/sys", "/headrace")
        )
    assert await tell(sandbox, write, "/tmp/x") == "written"
    outcome = await tell(sandbox, write, "/usr/x")
    assert (outcome == "written") == cell.has_own_ids, "its root is writable, above the image, if at all"
    image = cell.directory / "o" / "images" / "host"
    assert not (image / "usr" / "x").exists()
    devices = "os.mknod('/tmp/vda', 0o600 | 0o060000, os.makedev(254, 0)); result = 'made'"
    assert str(await tell(sandbox, devices)).startswith("PermissionError")
    other = await cell.start()
    assert str(await tell(other, "result = open('/tmp/x').read()")).startswith("FileNotFoundError")
    for done in (sandbox, other):
        await done.stop(0.0)


async def test_no_memory_is_dumped(cell: Cell) -> None:
    source = "import resource; result = resource.getrlimit(resource.RLIMIT_CORE)"
    assert await tell(cell.prisoner, source) == [1, 1]
    limits = (sys.executable, "-c", "import resource; print(*resource.getrlimit(resource.RLIMIT_CORE))")
    ran = await cell.prisoner.exec(limits)
    assert (ran.code, ran.stdout) == (0, b"1 1\n"), ran.stderr


async def test_other_users_of_the_machine_find_nothing_of_a_container(cell: Cell) -> None:
    sandbox = await cell.start()
    await tell(sandbox, "open('/tmp/x', 'w').write('mine'); os.chmod('/tmp/x', 0o666)")
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        places = [line.split()[4] for line in file if str(cell.directory) in line]
    assert places
    looking = """
import os, sys
for place in sys.argv[1:]:
    for path in (place, place + '/upper/tmp/x', place + '/tmp/x'):
        try:
            os.lstat(path)
        except OSError:
            continue
        print(path)
"""
    ran = await asyncio.create_subprocess_exec(
        "setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups",
        "/usr/bin/python3", "-c", looking, *places, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    seen, _ = await ran.communicate()
    assert (ran.returncode, seen.decode().split()) == (0, [])
    await sandbox.stop(0.0)


async def test_processes_hold_nothing_of_the_host(cell: Cell) -> None:
    sandbox = await cell.start()
    inside = Path(f"/proc/{sandbox.pid}/task/{sandbox.pid}/children").read_text().split()
    ours = os.stat(cell.directory).st_dev
    for pid in (sandbox.pid, *inside):
        held = {path: os.stat(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        kinds = {stat.S_IFMT(about.st_mode) for about in held.values()}
        assert not kinds & {stat.S_IFDIR, stat.S_IFBLK}, held
        # It may be any program of an image, and write as much as it likes.
        files = [about for about in held.values() if stat.S_ISREG(about.st_mode)]
        assert all(about.st_dev != ours for about in files), "a file of the host's, which has no limit"
    await sandbox.stop(0.0)


async def test_a_fork_bomb(cell: Cell) -> None:
    sandbox = await cell.start(pids_limit=64)
    bomb = """
made, refused = 0, ''
for _ in range(5000):
    try:
        if os.fork() == 0:
            while True: pass
        made += 1
    except OSError as error:
        refused = errno.errorcode[error.errno]
        break
result = [made, refused]
"""
    made, refused = await tell(sandbox, bomb)
    assert made <= 64
    assert refused == "EAGAIN"
    await asyncio.sleep(0.5)
    assert (await sandbox.stop(0.0)).reason == "stopped"


async def test_memory_is_filled(cell: Cell) -> None:
    sandbox = await cell.start(memory_limit=96 << 20)
    with contextlib.suppress(OSError, ValueError):
        await call(sandbox, {"source": "x = [b'x' * (1 << 20) for _ in range(400)]"})
    exit = await asyncio.wait_for(sandbox.exited, 20)
    assert exit.reason == "oom", exit
    assert "96 MiB" in exit.detail


STUFF = """
kept, sent = [], 0
listener = socket.create_server(("127.0.0.1", 0))
while len(kept) < 2 * arguments[0]:
    one = socket.create_connection(listener.getsockname())
    kept += [one, listener.accept()[0]]
    for end in kept[-2:]:
        end.setblocking(False)
        try:
            while True: sent += end.send(b"x" * 65536)
        except BlockingIOError:
            pass
result = sent
"""


async def test_memory_is_not_filled_by_sockets_either(cell: Cell) -> None:
    sandbox = await cell.start(memory_limit=128 << 20)
    # Much more than it may have; what the kernel holds for all sockets of the machine has an end, too.
    try:
        sent = await tell(sandbox, STUFF, 400)
    except OSError:
        assert (await asyncio.wait_for(sandbox.exited, 20)).reason == "oom"
    else:
        assert sent < 100 << 20
    await sandbox.stop(0.0)


async def test_terminals_are_not_used_up(cell: Cell) -> None:
    if cell.runtime.name != "oci":
        return  # Docker's mount of them takes no options.
    sandbox = await cell.start()
    take = """
kept = []
try:
    while True: kept.append(os.open("/dev/ptmx", os.O_RDWR))
except OSError as error:
    result = [len(kept), errno.errorcode[error.errno]]
for fd in kept: os.close(fd)
"""
    made, refused = await tell(sandbox, take)
    assert (made <= 256, refused) == (True, "ENOSPC")
    await sandbox.stop(0.0)


FILL = """
written = 0
try:
    with open(arguments[0], 'wb', 0) as file:
        while written < arguments[1]:
            written += file.write(b'x' * (1 << 20))
    result = [written, '']
except OSError as error:
    result = [written, errno.errorcode[error.errno]]
"""


async def test_the_disk_is_filled(cell: Cell) -> None:
    sandbox = await cell.start(disk_limit=32 << 20)
    before = _free(cell.directory)
    places = ("/tmp/big", "/headrace/home/big", "/var/tmp/big", "/usr/big")
    for place in places if cell.has_own_ids else places[:-1]:
        written, why = await tell(sandbox, FILL, place, 64 << 20)
        assert written <= 32 << 20, place
        assert why == "ENOSPC", place
    assert before - _free(cell.directory) < 64 << 20
    await tell(sandbox, "os.unlink('/tmp/big')")
    files = """
try:
    for n in range(10 ** 6):
        os.close(os.open(f'/tmp/f{n}', os.O_CREAT))
except OSError as error:
    result = errno.errorcode[error.errno]
"""
    assert await tell(sandbox, files) == "ENOSPC"
    assert (await tell(cell.neighbour, FILL, "/tmp/mine", 8 << 20)) == [8 << 20, ""]
    await sandbox.stop(0.0)


async def test_more_disk_than_usual(cell: Cell) -> None:
    sandbox = await cell.start(disk_limit=6 << 30)
    free = await tell(sandbox, "s = os.statvfs('/tmp'); result = s.f_bavail * s.f_frsize")
    assert (6 << 30) - (64 << 20) <= free <= 6 << 30
    await sandbox.stop(0.0)


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


async def test_exec_is_the_instance(cell: Cell) -> None:
    sandbox = await cell.start(env={"MINE": "1"})
    who = "import os, sys; print(os.getuid(), os.getcwd(), os.environ['MINE'], os.environ['EXTRA'])"
    ran = await sandbox.exec(["python3", "-c", who], env={"EXTRA": "2"})
    uid = 0 if cell.has_own_ids else _uid(sandbox.pid)
    assert (ran.code, ran.stdout, ran.stderr) == (0, f"{uid} /headrace/home 1 2\n".encode(), b"")
    ran = await sandbox.exec(["python3", "-c", "import sys; sys.stdout.write('x' * (3 << 20)); sys.exit(3)"])
    assert (ran.code, len(ran.stdout)) == (3, 1 << 20)
    status = (
        await sandbox.exec(["python3", "-c", "print(open('/proc/self/status').read())"])
    ).stdout.decode()
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    with pytest.raises(TimeoutError):
        await sandbox.exec(["python3", "-c", "import time; time.sleep(600)"], timeout_s=1.0)
    pids = "result = len([p for p in os.listdir('/proc') if p.isdigit()])"
    async with asyncio.timeout(10):
        while await tell(sandbox, pids) > 2:
            await asyncio.sleep(0.05)
    await sandbox.stop(0.0)


def _devices() -> dict[str, tuple[int, int, int]]:
    """Owner and mode of all device nodes of the machine, terminals apart: people come and go there."""
    seen = {path: path.lstat() for path in Path("/dev").iterdir() if not path.name.startswith("tty")}
    return {path.name: (s.st_uid, s.st_gid, s.st_mode) for path, s in seen.items() if stat.S_ISCHR(s.st_mode)}


async def test_the_machines_device_nodes_are_as_they_were(cell: Cell) -> None:
    """Low-level runtimes give a container's streams to its user: never the machine's /dev/null."""
    before = _devices()
    assert before["null"] == (0, 0, stat.S_IFCHR | 0o666)
    for end in (2.0, 0.0):
        sandbox = await cell.start()
        assert _devices() == before
        read = "import sys; print(repr(sys.stdin.read()))"
        assert (await sandbox.exec(["python3", "-c", read])).stdout == b"''\n"
        assert _devices() == before
        away = "result = [os.chown(f'/dev/{name}', os.getuid(), -1) for name in ('null', 'zero', 'full')]"
        assert "PermissionError" in str(await tell(sandbox, away)), "nobody takes it by himself"
        assert await tell(sandbox, "result = [sys.stdin.read(), os.path.exists('/dev/null')]") == ["", True]
        await sandbox.stop(end)
        assert _devices() == before


async def test_pause_and_resume(cell: Cell) -> None:
    sandbox = await cell.start()
    spin = """
import threading
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
"""
    await tell(sandbox, spin)
    await sandbox.pause()
    before = await sandbox.stats()
    await asyncio.sleep(0.3)
    after = await sandbox.stats()
    assert after.cpu_s == before.cpu_s, "a paused one uses the CPU"
    assert after.rss > 0
    await sandbox.resume()
    assert await tell(sandbox, "result = 1") == 1
    assert (await sandbox.stats()).cpu_s > after.cpu_s
    await sandbox.pause()
    assert (await sandbox.stop(0.0)).reason == "stopped"


async def test_limits_of_cpu_and_io(cell: Cell) -> None:
    sandbox = await cell.start(cpu_limit=0.25, io_limit=8 << 20)
    spin = """
began, used = time.monotonic(), time.process_time()
while time.monotonic() - began < 1: pass
result = time.process_time() - used
"""
    assert await tell(sandbox, spin) < 0.6
    # Past the cache, which on cgroup version 1 nobody is charged for.
    write = """
import mmap
block = mmap.mmap(-1, 1 << 20)
fd = os.open('/tmp/io', os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
began = time.monotonic()
for _ in range(16): os.write(fd, block)
result = time.monotonic() - began
"""
    assert await tell(sandbox, write) > 1.0
    await sandbox.stop(0.0)


async def test_the_hosts_network_is_all_that_is_shared(cell: Cell) -> None:
    sandbox = await cell.start(base=Base(key="host", network=Network("host")), fresh=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connect = "socket.create_connection(('127.0.0.1', arguments[0]), 5).close(); result = 'connected'"
        assert await tell(sandbox, connect, listener.getsockname()[1]) == "connected"
        refused = str(await tell(cell.prisoner, connect, listener.getsockname()[1]))
        assert refused.startswith("ConnectionRefusedError"), "others have a loopback of their own"
    names = "result = [open('/etc/' + n).read() for n in ('hosts', 'resolv.conf')]"
    assert await tell(sandbox, names) == [Path("/etc", n).read_text() for n in ("hosts", "resolv.conf")]
    assert await tell(sandbox, "result = socket.gethostbyname('localhost')") == "127.0.0.1"
    mounts = await tell(sandbox, "result = open('/proc/self/mountinfo').read()")
    below = [line.split() for line in mounts.splitlines() if line.split()[4].startswith("/sys")]
    assert below
    assert [fields[4] for fields in below if "ro" not in fields[5].split(",")] == []
    assert str(await tell(sandbox, "socket.socket(17, 3, 768)")).startswith("PermissionError")
    await sandbox.stop(0.0)
