"""Blobs in S3, against a real local server that speaks its protocol (moto's, in a process of its own)."""

import asyncio
import contextlib
import hashlib
import os
import socket

import boto3
import pytest
from headrace.config import Settings
from headrace.errors import SettingsError
from headrace.jobs import blobs_s3
from headrace.jobs.blobs import BlobDamaged, BlobMissing, BlobsUnavailable
from headrace.jobs.blobs_s3 import PART_BYTES, open_s3
from headrace.jobs.open import open_blobs

BUCKET = "jobs"
DEADLINE_S = 30.0


@pytest.fixture
def s3(s3_port, monkeypatch):
    """A client of the server; the environment leads there, as a gateway's would."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)
    client.close()


@pytest.fixture
async def blobs(s3):
    store = await open_s3(f"s3://{BUCKET}/some/prefix")
    yield store
    await store.close()


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(name: str) -> str:
    return f"some/prefix/{name[:2]}/{name}"


async def _pieces(data: bytes, size: int):
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 5])
async def test_bytes_come_back(blobs, s3, size):
    data = os.urandom(size)
    name = await blobs.put(data)
    assert name == _name(data)
    assert await blobs.get(name) == data
    assert b"".join([piece async for piece in blobs.stream(name)]) == data
    # The ETag of what went up in parts ends with their number.
    etag = s3.head_object(Bucket=BUCKET, Key=_key(name))["ETag"].strip('"')
    assert ("-" in etag) == (size > PART_BYTES)


async def test_a_stream_is_put_and_read_in_pieces(blobs):
    data = os.urandom(PART_BYTES + 12345)
    name = await blobs.put(_pieces(data, 100_000))
    assert name == _name(data)
    pieces = [piece async for piece in blobs.stream(name)]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    assert len(pieces) > 1


async def test_a_stream_that_breaks_off_stores_nothing(blobs, s3):
    async def broken():
        yield b"a" * 1000
        raise OSError("the client hung up")

    with pytest.raises(OSError, match="hung up"):
        await blobs.put(broken())
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET)


async def test_what_is_there_is_not_put_again_while_it_is_young(blobs, s3):
    name = await blobs.put(b"once")
    first = s3.list_object_versions(Bucket=BUCKET, Prefix=_key(name))["Versions"]
    assert await blobs.put(b"once") == name
    assert s3.list_object_versions(Bucket=BUCKET, Prefix=_key(name))["Versions"] == first


async def test_a_missing_blob_is_told_as_such(blobs):
    name = _name(b"never put")
    with pytest.raises(BlobMissing):
        await blobs.get(name)
    with pytest.raises(BlobMissing):
        await anext(blobs.stream(name))
    for wrong in ("", "../../etc/passwd", name.upper()):
        with pytest.raises(BlobMissing):
            await blobs.get(wrong)


async def test_what_was_changed_is_refused(blobs, s3):
    name = await blobs.put(b"original")
    s3.put_object(Bucket=BUCKET, Key=_key(name), Body=b"changed!")
    with pytest.raises(BlobDamaged):
        await blobs.get(name)
    pieces = blobs.stream(name)
    assert await anext(pieces) == b"changed!"
    with pytest.raises(BlobDamaged):
        await anext(pieces)


async def test_fresh_blobs_are_not_deleted(blobs):
    name = await blobs.put(b"fresh")
    assert await blobs.delete([name, _name(b"other"), "../x"]) == 0
    assert await blobs.get(name) == b"fresh"


async def test_old_blobs_are_deleted_and_counted(s3):
    store = await open_s3(f"s3://{BUCKET}", fresh_s=0.0)
    try:
        names = [await store.put(bytes([i])) for i in range(12)]
        assert await store.delete([*names, _name(b"never")]) == 12
        with pytest.raises(BlobMissing):
            await store.get(names[0])
        assert await store.delete(names) == 0
    finally:
        await store.close()


async def test_a_put_of_an_old_blob_survives_a_deletion_under_way(s3, monkeypatch):
    store = await open_s3(f"s3://{BUCKET}/some/prefix", fresh_s=0.0)
    monkeypatch.setattr("headrace.jobs.blobs_s3.RECHECK_S", 0.0)
    try:
        name = await store.put(b"wanted again")
        upload = store._upload

        def deleted_meanwhile(key, data):
            upload(key, data)
            monkeypatch.setattr(store, "_upload", upload)
            s3.delete_object(Bucket=BUCKET, Key=key)

        monkeypatch.setattr(store, "_upload", deleted_meanwhile)
        assert await store.put(b"wanted again") == name
        assert await store.get(name) == b"wanted again"
    finally:
        await store.close()


async def test_many_at_once(blobs):
    bodies = [os.urandom(2000) for _ in range(40)]
    names = await asyncio.gather(*(blobs.put(body) for body in bodies))
    assert await asyncio.gather(*(blobs.get(name) for name in names)) == bodies


async def test_settings_name_the_store(s3):
    store = await open_blobs(Settings(blobs=f"s3://{BUCKET}/from-settings"))
    try:
        name = await store.put(b"x")
        assert s3.head_object(Bucket=BUCKET, Key=f"from-settings/{name[:2]}/{name}")["ContentLength"] == 1
    finally:
        await store.close()


async def test_a_bucket_that_is_not_there_is_a_mistake_in_the_settings(s3):
    with pytest.raises(SettingsError, match="no bucket absent"):
        await open_s3("s3://absent/x")


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://key:secret@bucket/x", "s3://b/x?y=1"])
async def test_a_wrong_address_is_refused_without_telling_it(url):
    with pytest.raises(SettingsError) as caught:
        await open_s3(url)
    assert "secret" not in str(caught.value)


async def test_a_server_that_is_away_is_told_in_time(s3, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BlobsUnavailable) as caught:
            await asyncio.wait_for(open_s3(f"s3://{BUCKET}"), DEADLINE_S)
        store = await open_blobs(Settings(blobs=f"s3://{BUCKET}"))
        with pytest.raises(BlobsUnavailable):
            await asyncio.wait_for(store.put(b"x"), DEADLINE_S)
        await store.close()
    assert "tests-secret" not in str(caught.value)


@contextlib.asynccontextmanager
async def mute_server(monkeypatch, *, knows_head=False):
    """A server that takes connections and says nothing, or at most that a blob is not there."""

    async def serve(reader, writer):
        served.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while knows_head:
                asked = await reader.readuntil(b"\r\n\r\n")
                if not asked.startswith(b"HEAD"):
                    return
                status = b"200 OK" if asked.startswith(b"HEAD /%b " % BUCKET.encode()) else b"404 Not Found"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    served = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield
    finally:
        server.close()
        for writer in served:
            writer.transport.abort()


async def test_a_server_that_says_nothing_holds_nobody_also_behind_others(s3, monkeypatch):
    monkeypatch.setattr(blobs_s3, "ANSWER_S", 0.5)
    # What a thread is at ends much later: when the server goes.
    monkeypatch.setattr(blobs_s3, "READ_S", 2 * DEADLINE_S)
    monkeypatch.setattr(blobs_s3, "CHECK_S", 0.1)
    async with mute_server(monkeypatch):
        store = await open_s3(f"s3://{BUCKET}", must_answer=False)
        puts = [store.put(b"x%d" % n) for n in range(blobs_s3.THREADS * 3)]
        found = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), DEADLINE_S)
        assert {(type(error), "no answer in" in str(error)) for error in found} == {(BlobsUnavailable, True)}
        with pytest.raises(BlobsUnavailable):
            await asyncio.wait_for(store.get(_name(b"x")), DEADLINE_S)
    await asyncio.wait_for(store.close(), DEADLINE_S)


@pytest.mark.parametrize("size", [1 << 20, 2 * PART_BYTES])
async def test_a_server_that_takes_no_body_is_told_by_its_silence(s3, monkeypatch, size):
    for name in ("CONNECT_S", "READ_S"):
        monkeypatch.setattr(blobs_s3, name, 0.2)
    monkeypatch.setattr(blobs_s3, "ATTEMPTS", 1)
    async with mute_server(monkeypatch, knows_head=True):
        store = await open_s3(f"s3://{BUCKET}", must_answer=False)
        with pytest.raises(BlobsUnavailable) as caught:
            await asyncio.wait_for(store.put(os.urandom(size)), DEADLINE_S)
        assert "no answer in" not in str(caught.value)
        await asyncio.wait_for(store.close(), DEADLINE_S)


def test_silence_is_told_within_a_minute():
    # Two requests: one that goes up, and one that takes it back.
    pauses = sum(2.0**n for n in range(blobs_s3.ATTEMPTS - 1))
    assert 2 * (blobs_s3.ATTEMPTS * blobs_s3.READ_S + pauses) < 60
    assert blobs_s3.ANSWER_S <= 20
