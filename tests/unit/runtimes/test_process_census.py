"""What a sandbox of the process runtime uses: all of its processes, also those that have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest
from headrace_runtimes.instance import census, procs
from headrace_runtimes.instance.census import Census, use_of

UID = 2_000_400  # not what real hosts on this machine use
TREE = """
import os, sys, time
MEGABYTES = 40
if os.geteuid() == 0:
    # Not before: the interpreter may be root's alone.
    os.setuid(int(sys.argv[2]))
def work():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
if os.fork() == 0:
    work()
    os._exit(0)
os.wait()
children = []
for leaves in (False, True):
    if os.fork() == 0:
        if leaves and sys.argv[1] == "leaves":
            os.setsid()
        held = bytearray(os.urandom(1)) * (MEGABYTES << 20)
        work()
        print("up", flush=True)
        time.sleep(600)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["stays", "leaves"])
def tree(request: pytest.FixtureRequest) -> Iterator[tuple[int, int | None]]:
    """The first process and its uid, if that is its own; with that its children may leave the session."""
    root = os.geteuid() == 0
    leaves = "leaves" if root and request.param == "leaves" else "stays"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", TREE, leaves, str(UID)], stdout=subprocess.PIPE, start_new_session=True
    ) as first:
        try:
            out: IO[bytes] | None = first.stdout
            assert out is not None
            assert [out.readline() for _ in range(3)] == [b"up\n"] * 3
            yield first.pid, UID if root else None
        finally:
            for pid in {*procs.in_session(first.pid), *(procs.of_uids({UID}) if root else ())}:
                os.kill(pid, signal.SIGKILL)


async def test_all_processes_count(tree: tuple[int, int | None]) -> None:
    first, uid = tree
    found = await Census().of(first, uid)
    assert found[0] == first
    used, alone = use_of(found), use_of([first])
    assert used is not None
    assert alone is not None
    assert (used.processes, alone.processes) == (3, 1)
    assert used.rss > alone.rss + (2 * 40 << 20)
    assert alone.cpu_s >= 0.25, "a child that has ended was its own as well"
    assert used.cpu_s >= alone.cpu_s + 0.5
    assert not used.stopped
    os.kill(first, signal.SIGSTOP)
    while (now := use_of(found)) is not None and not now.stopped:
        pass
    assert now is not None
    os.kill(first, signal.SIGKILL)
    while use_of(found) is not None:
        pass


async def test_one_look_serves_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = census.look

    def look() -> census.Look:
        looks.append(1)
        return real()

    monkeypatch.setattr(census, "look", look)
    both = Census()
    for _ in range(20):
        assert os.getpid() in await both.of(os.getpid(), None)
    assert len(looks) < 20
