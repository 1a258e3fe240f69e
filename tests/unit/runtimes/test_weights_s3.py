"""Weights in S3, against a real local server that speaks its protocol (moto's, in a process of its own)."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from headrace_runtimes.weights import Item, WeightsCache, WeightsFailed, WeightsSettings
from headrace_runtimes.weights.values import PART_BYTES

DATA = random.Random(5).randbytes(2 * PART_BYTES + 99)


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server; the environment leads there, as a host's would."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}", "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    for item in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=item["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


def cache_in(root: Path) -> WeightsCache:
    return WeightsCache(WeightsSettings(root=root, allow=("s3://models/",), attempts=2, pause_s=0.001))


async def test_an_object_and_a_prefix(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key="one/model.bin", Body=DATA)
    s3.put_object(Bucket="models", Key="one/sub/config.json", Body=b"{}")
    s3.put_object(Bucket="models", Key="one/empty", Body=b"")
    s3.put_object(Bucket="models", Key="one/", Body=b"")
    s3.put_object(Bucket="models", Key="one-more/other", Body=b"not of it")
    cache = cache_in(tmp_path)
    for source in ("s3://models/one/model.bin", "s3://models/one", "s3://models/one/"):
        pin = await cache.ensure(Item(source))
        assert (pin.path / "model.bin").read_bytes() == DATA
        found = {str(path.relative_to(pin.path)) for path in pin.files()}
        one = source.endswith("bin")
        assert found == ({"model.bin"} if one else {"model.bin", "sub/config.json", "empty"})
        pin.release()


async def test_an_object_that_went_up_in_parts_has_no_md5(s3: Any, tmp_path: Path) -> None:
    upload = s3.create_multipart_upload(Bucket="models", Key="parts")["UploadId"]
    pieces = [DATA[:PART_BYTES], DATA[PART_BYTES:]]
    tags = [
        {"PartNumber": n, "ETag": s3.upload_part(
            Bucket="models", Key="parts", UploadId=upload, PartNumber=n, Body=piece)["ETag"]}
        for n, piece in enumerate(pieces, 1)
    ]  # fmt: skip
    s3.complete_multipart_upload(
        Bucket="models", Key="parts", UploadId=upload, MultipartUpload={"Parts": tags}
    )
    pin = await cache_in(tmp_path).ensure(Item("s3://models/parts"))
    assert (pin.path / "parts").read_bytes() == DATA
    pin.release()


async def test_what_is_not_there_and_names_that_leave(s3: Any, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    with pytest.raises(WeightsFailed, match="nothing there"):
        await cache.ensure(Item("s3://models/missing"))
    s3.put_object(Bucket="models", Key="bad/../../escape", Body=b"x")
    with pytest.raises(WeightsFailed, match="unsafe path"):
        await cache.ensure(Item("s3://models/bad/"))
    with pytest.raises(WeightsFailed, match="weights_allow"):
        await cache.ensure(Item("s3://others/model"))


async def test_a_server_that_is_away_is_told_in_time(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(WeightsFailed, match="try again later"):
            await cache_in(tmp_path).ensure(Item("s3://models/one"))
