"""Files that were used last stay in memory, within the bound."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from headrace_runtimes.weights.memory import Keeper, resident

SIZE = 24 << 20
MADV_DONTNEED_LOCKED = 24


def make(directory: Path, name: str, size: int = SIZE) -> Path:
    path = directory / name
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    drop(file)
    os.close(file)
    return path


def drop(file: int) -> None:
    """What memory pressure does, for pages that nobody holds."""
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def dropped(path: Path) -> float:
    """What is left of it in memory when the kernel may drop it."""
    file = os.open(path, os.O_RDONLY)
    drop(file)
    os.close(file)
    return resident(path)


def disk_backed(directory: Path) -> bool:
    return resident(make(directory, "probe")) < 1.0


@pytest.mark.skipif(
    os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 3 * SIZE, reason="locks need root"
)
async def test_what_was_used_last_is_held(tmp_path: Path) -> None:
    if not disk_backed(tmp_path):
        pytest.fail("the directory of the tests is in memory itself: set TMPDIR to a disk")
    one, two, three = (make(tmp_path, name) for name in ("one", "two", "three"))
    keeper = Keeper(2 * SIZE)
    try:
        assert await keeper.keep("one", [one])
        assert await keeper.keep("two", [two])
        assert dropped(one) == dropped(two) == 1.0
        assert await keeper.keep("one", [one])
        assert await keeper.keep("three", [three])
        assert keeper.held("one")
        assert not keeper.held("two")
        assert keeper.bytes == 2 * SIZE
        assert dropped(two) < 1.0
        assert dropped(one) == dropped(three) == 1.0
    finally:
        keeper.close()
    assert dropped(one) < 1.0
    assert keeper.bytes == 0


async def test_what_is_too_large_is_not_held_and_pushes_nothing_out(tmp_path: Path) -> None:
    one, large = make(tmp_path, "one"), make(tmp_path, "large", 2 * SIZE)
    keeper = Keeper(SIZE)
    await keeper.keep("one", [one])
    before = keeper.bytes
    assert not await keeper.keep("large", [large])
    assert keeper.bytes == before
    keeper.close()


async def test_what_is_in_use_is_never_let_go(tmp_path: Path) -> None:
    one, two, three = (make(tmp_path, name) for name in ("one", "two", "three"))
    keeper = Keeper(2 * SIZE)
    await keeper.keep("one", [one])
    await keeper.keep("two", [two])
    assert not await keeper.keep("three", [three], {"one", "two", "three"})
    assert keeper.bytes == 2 * SIZE
    await keeper.keep("three", [three], {"one", "three"})
    assert keeper.bytes == 2 * SIZE
    assert await keeper.keep("one", [one], {"one"}) == keeper.held("one")
    assert not keeper.held("two")
    keeper.close()


@pytest.mark.skipif(
    os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 3 * SIZE, reason="locks need root"
)
@pytest.mark.parametrize("by", ["keep", "refresh"])
async def test_what_the_kernel_took_out_of_a_lock_is_locked_again(tmp_path: Path, by: str) -> None:
    one = make(tmp_path, "one")
    keeper = Keeper(SIZE)
    await keeper.keep("one", [one])
    ((address, size),) = keeper._kept["one"].maps
    # As when it splits a large folio: the pages are there, and in no locked mapping any more.
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size // 2), MADV_DONTNEED_LOCKED) == 0
    assert dropped(one) < 1.0
    await (keeper.keep("one", [one]) if by == "keep" else keeper.refresh())
    assert dropped(one) == 1.0
    keeper.close()


async def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    keeper = Keeper(SIZE)
    await keeper.keep("empty", [tmp_path / "empty"])
    with pytest.raises(FileNotFoundError):
        await keeper.keep("missing", [tmp_path / "missing"])
    keeper.close()


def test_where_locks_are_not_allowed_it_says_so(tmp_path: Path) -> None:
    path = make(tmp_path, "one")
    source = f"""
import asyncio, concurrent.futures.thread, os, resource
from pathlib import Path
from headrace_runtimes.weights.memory import Keeper
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
path = Path({str(path)!r})
os.chdir("/")
if os.geteuid() == 0:
    import ctypes
    # CAP_IPC_LOCK out of the bounding set does not take it away: become nobody.
    fd = os.open(path, os.O_RDONLY)
    path = Path(f"/proc/self/fd/{{fd}}")
    ctypes.CDLL(None).prctl(8, 0)
    os.setresuid(65534, 65534, 65534)
keeper = Keeper(1 << 30)
assert not asyncio.run(keeper.keep("one", [path]))
assert "mlock" in keeper.why_not, keeper.why_not
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
