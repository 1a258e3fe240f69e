"""Blobs in a local directory: whole or not at all, verified, shared."""

import asyncio
import hashlib
import os
import stat

import pytest
from headrace.errors import DataDirError
from headrace.jobs.blobs import (
    CHUNK_BYTES,
    BlobDamaged,
    BlobMissing,
    BlobsUnavailable,
    open_local_blobs,
)


def sha(data):
    return hashlib.sha256(data).hexdigest()


async def pieces(*parts):
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def collect(stream):
    return [piece async for piece in stream]


@pytest.fixture
def blobs(tmp_path):
    found = open_local_blobs(tmp_path / "blobs")
    found._fresh_s = 0.0
    return found


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "blobs").rglob("*") if p.is_file())


async def test_bytes_and_pieces_have_one_name(blobs, tmp_path):
    data = os.urandom(CHUNK_BYTES + 10)
    assert await blobs.put(data) == sha(data)
    assert await blobs.put(pieces(data[:7], b"", data[7:])) == sha(data)
    assert await blobs.put(data) == sha(data)
    assert await blobs.get(sha(data)) == data
    assert [len(p) for p in await collect(blobs.stream(sha(data)))] == [CHUNK_BYTES, 10]
    assert files(tmp_path) == [sha(data)]
    (path,) = (tmp_path / "blobs").rglob(sha(data))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await blobs.get(await blobs.put(b"")) == b""


async def test_an_upload_that_breaks_leaves_nothing(blobs, tmp_path):
    async def broken():
        yield b"first"
        raise ConnectionResetError("client")

    with pytest.raises(ConnectionResetError):
        await blobs.put(broken())
    task = asyncio.create_task(blobs.put(endless()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(tmp_path) == []


async def endless():
    while True:
        yield b"x" * 1000
        await asyncio.sleep(0.001)


async def test_what_was_changed_on_disk_is_told(blobs, tmp_path):
    name = await blobs.put(b"good")
    (path,) = (tmp_path / "blobs").rglob(name)
    path.write_bytes(b"evil")
    with pytest.raises(BlobDamaged, match="changed on disk"):
        await blobs.get(name)
    with pytest.raises(BlobDamaged):
        await collect(blobs.stream(name))


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "", "A" * 64])
async def test_what_is_not_there_is_told(blobs, name):
    with pytest.raises(BlobMissing):
        await blobs.get(name)
    with pytest.raises(BlobMissing):
        await collect(blobs.stream(name))
    assert await blobs.delete([name]) == 0


async def test_delete_spares_what_was_just_put_again(tmp_path):
    blobs = open_local_blobs(tmp_path / "blobs")
    old, new = await blobs.put(b"old"), await blobs.put(b"new")
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (1.0, 1.0))
    # Somebody submits the same content again while the job that named it is being removed.
    await blobs.put(b"new")
    assert await blobs.delete([old, new]) == 1
    assert await blobs.get(new) == b"new"
    with pytest.raises(BlobMissing):
        await blobs.get(old)


async def test_leftovers_are_swept_and_blobs_are_not(tmp_path):
    blobs = open_local_blobs(tmp_path / "blobs")
    name = await blobs.put(b"kept")
    leftover, fresh = tmp_path / "blobs" / ".1.2.ab", tmp_path / "blobs" / ".1.3.ab"
    leftover.write_bytes(b"half")
    fresh.write_bytes(b"being written")
    os.utime(leftover, (1.0, 1.0))
    again = open_local_blobs(tmp_path / "blobs")
    assert await again.get(name) == b"kept"
    assert files(tmp_path) == [".1.3.ab", name]


async def test_what_cannot_be_used_is_told(tmp_path):
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(DataDirError, match="data-dir"):
        open_local_blobs(tmp_path / "blobs")


async def test_a_directory_that_went_away_is_told(blobs, tmp_path):
    (tmp_path / "blobs").rmdir()
    with pytest.raises(BlobsUnavailable):
        await blobs.put(b"x")
