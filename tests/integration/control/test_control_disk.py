"""A full disk: what would change something is refused by that name, and what runs goes on."""

from __future__ import annotations

import errno
import os

import msgspec
import pytest
from headrace.control.blobs import Blobs


async def fill(platform):
    """Let the database grow no further, as on a full disk."""

    def run(db):
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count={pages}")

    await platform.control.store._db.write(run)


async def free(platform):
    await platform.control.store._db.write(lambda db: db.execute("PRAGMA max_page_count=1000000"))


async def test_a_full_database_refuses_a_deploy_and_keeps_serving(platform):
    await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec())
    await fill(platform)
    big = platform.spec("big", env={"A": "x" * 60_000})
    body = {"specs": [msgspec.to_builtins(big)], "verify": True}
    status, doc = await gateway.api("POST", "/deployments", body)
    assert (status, doc["type"]) == (507, "urn:headrace:storage-full"), doc
    assert "Free some" in doc["hint"]
    gateway.wake("hello")
    await platform.until(lambda: gateway.of("hello"))
    assert (await gateway.api("GET", "/endpoints"))[1]["items"][0]["name"] == "hello"
    await free(platform)
    assert (await gateway.deploy(big))["state"] == "succeeded"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_bundle_that_does_not_fit_is_refused(platform, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Blobs, "_put", full)
    status, doc = await platform.gateway.api("PUT", f"/bundles/{platform.sha}", platform.bundle)
    assert (status, doc["type"]) == (507, "urn:headrace:storage-full")
