from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from headrace.errors import BundleError
from headrace.host.agent import HostAgent
from headrace.host.bundles import Bundles, unpack
from headrace_runtimes.trees import remove_tree
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.host.conftest import RecordingControl, make_zip


def entry(name: str, mode: int = 0, data: bytes = b"x") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as bundle:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        bundle.writestr(info, data)
    return sink.getvalue()


def packed(method: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as bundle:
        bundle.writestr("app.py", "x" * 1000)
    return sink.getvalue()


def damaged() -> bytes:
    """What is packed is no deflate stream."""
    data = bytearray(packed(zipfile.ZIP_DEFLATED))
    data[36:44] = b"\xff" * 8
    return bytes(data)


def test_refuses_what_is_damaged_inside(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be unpacked"):
        unpack(put(tmp_path, damaged()), tmp_path / "out")


def put(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "b.zip"
    path.write_bytes(data)
    return path


def test_unpacks_read_only(tmp_path: Path) -> None:
    target = tmp_path / "out"
    size = unpack(put(tmp_path, make_zip({"app.py": "a = 1", "pkg/data.txt": "hi"})), target)
    assert size == 7
    assert (target / "pkg/data.txt").read_text() == "hi"
    assert stat.S_IMODE((target / "app.py").stat().st_mode) == 0o444
    assert stat.S_IMODE((target / "pkg").stat().st_mode) == 0o555
    remove_tree(target)
    assert not target.exists()


def test_is_closed_until_it_is_whole_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    real = os.chmod

    def watched(path: Any, mode: int, **more: Any) -> None:
        modes.append(stat.S_IMODE((tmp_path / "out").stat().st_mode))
        real(path, mode, **more)

    monkeypatch.setattr(os, "chmod", watched)
    before = os.umask(0)
    try:
        unpack(put(tmp_path, make_zip({"a.py": "1", "b/c/d.py": "2"})), tmp_path / "out")
    finally:
        os.umask(before)
    assert set(modes) == {0o700}
    assert not [p for p in (tmp_path / "out").rglob("*") if p.stat().st_mode & 0o222]


def test_keeps_what_is_executable(tmp_path: Path) -> None:
    unpack(put(tmp_path, entry("tool.sh", stat.S_IFREG | 0o755)), tmp_path / "out")
    assert os.access(tmp_path / "out/tool.sh", os.X_OK)


@pytest.mark.parametrize(
    "data",
    [
        entry("../evil.py"),
        entry("/etc/evil.py"),
        entry("a/../../evil.py"),
        entry("a//b"),
        entry("./a"),
        entry("a\\b"),
        entry("link", stat.S_IFLNK | 0o777, b"/etc/passwd"),
        entry("fifo", stat.S_IFIFO | 0o644),
        b"this is no zip",
        make_zip({"app.py": "x" * 100})[:-30],
        packed(zipfile.ZIP_LZMA),
        packed(zipfile.ZIP_BZIP2),
    ],
)
def test_refuses_what_is_unsafe(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError):
        unpack(put(tmp_path, data), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["b.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_refuses_duplicates_and_files_below_files(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as bundle:
        bundle.writestr("a", "1")
        bundle.writestr("a", "2")
    with pytest.raises(BundleError, match="twice"):
        unpack(put(tmp_path, sink.getvalue()), tmp_path / "out")
    with pytest.raises(BundleError, match="unpacked"):
        unpack(put(tmp_path, make_zip({"a": "1", "a/b": "2"})), tmp_path / "out2")


def test_refuses_bombs(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="more than 1000 bytes"):
        unpack(put(tmp_path, make_zip({"a": b"\0" * 100_000})), tmp_path / "out", max_bytes=1000)
    with pytest.raises(BundleError, match="3 files"):
        unpack(put(tmp_path, make_zip({"a": "", "b": "", "c": ""})), tmp_path / "out2", max_files=2)


@given(name=st.text(min_size=1, max_size=30), mode=st.integers(0, 0o177777))
def test_nothing_is_ever_written_outside(
    tmp_path_factory: pytest.TempPathFactory, name: str, mode: int
) -> None:
    root = tmp_path_factory.mktemp("zip")
    try:
        data = entry(name, mode)
    except (UnicodeEncodeError, ValueError):
        return
    (root / "in").mkdir()
    archive = put(root / "in", data)
    with contextlib.suppress(BundleError):
        unpack(archive, root / "in/out")
    assert sorted(p.name for p in root.iterdir()) == ["in"]
    assert {p.name for p in (root / "in").iterdir()} <= {"b.zip", "out"}
    assert not any(p.is_symlink() for p in root.rglob("*"))


async def test_one_fetch_for_all_who_wait(agent: HostAgent, control: RecordingControl) -> None:
    data = make_zip({"app.py": os.urandom(5000)})
    sha = hashlib.sha256(data).hexdigest()
    control.blobs[sha] = data
    paths = await asyncio.gather(*(agent._bundles.ensure(sha) for _ in range(20)))
    assert set(paths) == {agent._bundles.path(sha)}
    assert [f.offset for f in control.fetches] == list(range(0, len(data), control.chunk))


async def test_content_with_another_hash_is_refused(agent: HostAgent, control: RecordingControl) -> None:
    control.blobs["ab" * 32] = make_zip({"app.py": "evil"})
    with pytest.raises(BundleError, match="another hash"):
        await agent._bundles.ensure("ab" * 32)
    assert list((agent.run_dir / "bundles").iterdir()) == []


async def test_a_fetch_goes_on_after_a_lost_link(agent: HostAgent, control: RecordingControl) -> None:
    data = make_zip({"app.py": os.urandom(20_000)})
    sha = hashlib.sha256(data).hexdigest()
    control.blobs[sha] = data
    task = asyncio.create_task(agent._bundles.ensure(sha))
    while len(control.fetches) < 3:
        await asyncio.sleep(0)
    control.links[-1].close("lost")
    path = await asyncio.wait_for(task, 10)
    assert (path / "app.py").stat().st_size == 20_000


async def test_least_recently_used_goes_unless_in_use(
    agent: HostAgent, control: RecordingControl, tmp_path: Path
) -> None:
    shas = []
    for n in range(4):
        data = make_zip({"app.py": bytes([n]) * 1000})
        shas.append(hashlib.sha256(data).hexdigest())
        control.blobs[shas[-1]] = data
    cache = Bundles(tmp_path / "cache", agent.link, lambda: {shas[0]}, cache_bytes=2500)
    await cache.open()
    for sha in shas[:2]:
        await cache.ensure(sha)
    await cache.ensure(shas[2])
    assert [cache.has(s) for s in shas] == [True, False, True, False]
    await cache.ensure(shas[3])
    assert [cache.has(s) for s in shas] == [True, False, False, True]
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {shas[0], shas[3]}
    await cache.close()
    assert not (tmp_path / "cache").exists()
