"""Marks of living gateways, signatures, delays, bells."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from headrace.errors import DataDirError
from headrace.gateway.jobs.hub import Hub, rung
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.webhooks import delay_s, project_secret, read_secret, sign
from standardwebhooks.webhooks import Webhook


def test_a_living_gateway_is_not_dead_and_one_that_crashed_is(tmp_path: Path) -> None:
    one, two = OwnerMark(tmp_path / "g", "gw-1"), OwnerMark(tmp_path / "g", "gw-2")
    assert (one.dead(), two.dead()) == ([], [])
    two.close(clean=False)
    two.close(clean=False)
    assert one.dead() == ["gw-2"]
    one.buried("gw-2")
    assert one.dead() == []
    three = OwnerMark(tmp_path / "g", "gw-3")
    three.close(clean=True)
    assert one.dead() == []
    one.close(clean=True)


def test_a_sweep_is_due_when_nobody_has_swept_lately(tmp_path: Path) -> None:
    one, two = OwnerMark(tmp_path / "g", "gw-1"), OwnerMark(tmp_path / "g", "gw-2")
    assert (one.sweep_due(60.0), two.sweep_due(60.0)) == (True, True)
    one.swept()
    assert (one.sweep_due(60.0), two.sweep_due(60.0)) == (False, False)
    assert two.sweep_due(0.0)
    for ago, due in ((50.0, False), (61.0, True), (-3600.0, True)):
        os.utime(tmp_path / "g" / ".swept", times=(time.time() - ago,) * 2)
        assert two.sweep_due(60.0) is due, ago
    assert one.dead() == []
    one.close(clean=True)
    two.close(clean=True)


def test_a_mark_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib\n"
        "from headrace.gateway.jobs.owners import OwnerMark\n"
        "mark = OwnerMark(pathlib.Path(sys.argv[1]), 'gw-other')\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    mark = OwnerMark(tmp_path / "g", "gw-1")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "g")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert mark.dead() == []
        process.kill()
    assert mark.dead() == ["gw-other"]
    mark.close(clean=True)


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    secret = read_secret(tmp_path)
    assert read_secret(tmp_path) == secret
    assert os.stat(tmp_path / "webhook.secret").st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["webhook.secret"]
    (tmp_path / "webhook.secret").write_text("whsec_!!")
    with pytest.raises(DataDirError, match=r"webhook\.secret"):
        read_secret(tmp_path)


@pytest.mark.parametrize("project", ["default", "other"])
def test_signatures_are_those_of_standard_webhooks(project: str) -> None:
    secret = project_secret(bytes(range(32)), project)
    body = json.dumps({"a": "ä"}).encode()
    headers = sign(secret, "msg_1", int(time.time()), body)
    Webhook("whsec_" + base64.b64encode(secret).decode()).verify(body, headers)
    assert project_secret(b"x" * 32, "default") != project_secret(b"x" * 32, "other")


def test_tries_come_later_and_later_with_jitter() -> None:
    for tries in range(1, 20):
        delays = [delay_s(tries) for _ in range(20)]
        base = min(3600.0, 2.0 ** (tries - 1))
        assert all(base <= delay <= base + 1.0 for delay in delays)
        assert len(set(delays)) > 1


async def test_a_bell_rings_for_all_who_listen() -> None:
    hub = Hub()
    one, two = hub.bell("a"), hub.bell("a")
    hub.ring("b")
    assert not await rung(one, 0.001)
    waiting = asyncio.gather(rung(one, 5), rung(two, 5))
    await asyncio.sleep(0)
    hub.ring("a")
    assert await waiting == [True, True]
    hub.drop("a", one)
    hub.drop("a", two)
    assert len(hub) == 0
