"""A full disk under a running platform and under a start."""

from __future__ import annotations

import asyncio
import errno
import os
import sys

import pytest
from headrace.cluster import parts, supervisor
from headrace.cluster.identity import new_record, remove_record, write_record
from headrace.cluster.listeners import with_ports
from headrace.cluster.parts import Platform
from headrace.cluster.processes import Child, child_environment
from headrace.config import Settings
from headrace.errors import DataDirError, SetupError


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "d" / "logs").mkdir(parents=True)
    # Nothing is made below the run directory, whose path must be short.
    options = {"port": 0, "control_port": 0, "ray_port": 0}
    return with_ports(Settings(data_dir=f"{tmp_path}/d", run_dir="/tmp/hr-none", **options))


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_the_record_that_cannot_be_written_ends_nobody(settings, monkeypatch):
    told = []
    platform = Platform(
        settings, new_record(settings, "1"), "key", lambda kind, text, *_: told.append((kind, text))
    )
    monkeypatch.setattr(parts, "write_record", full)
    platform._ready = True
    platform._save(state="ready")
    ((kind, text),) = told
    assert kind == "warning"
    assert "up.json cannot be written: No space left on device" in text
    for listener in platform._listeners:
        listener.close()


async def test_a_disk_that_is_full_during_the_start_ends_it(settings, monkeypatch):
    told = []
    platform = Platform(settings, new_record(settings, "1"), "key", lambda *words: told.append(words))
    monkeypatch.setattr(parts, "write_record", full)
    platform._save(state="starting")
    platform._save(state="stopping")
    # Which `up` says in one line, as of a start that could not begin.
    with pytest.raises(OSError, match="No space left") as error:
        await platform._until(asyncio.sleep(10))
    assert (error.value.errno, told) == (errno.ENOSPC, [])
    for listener in platform._listeners:
        listener.close()


async def test_a_part_that_nobody_starts_again_ends_the_platform(settings):
    platform = Platform(settings, new_record(settings, "1"), "key", lambda *words: None)

    async def keep():
        raise RuntimeError("no more processes")

    task = asyncio.create_task(keep(), name="gateway-0")
    task.add_done_callback(platform._watcher_ended)
    with pytest.raises(SetupError, match="gateway-0: RuntimeError: no more processes"):
        await platform._until(asyncio.sleep(10))
    for listener in platform._listeners:
        listener.close()


def test_drafts_of_the_record_stay_nowhere(settings, monkeypatch):
    record = new_record(settings, "1")
    data = settings.data
    monkeypatch.setattr("headrace.cluster.identity.msgspec.json.format", full)
    with pytest.raises(OSError, match="No space left"):
        write_record(record)
    assert [p.name for p in data.iterdir()] == ["logs"]
    (data / ".up.json.1234").write_text("")
    (data / "up.json").write_text("{}")
    remove_record(data)
    assert [p.name for p in data.iterdir()] == ["logs"]


async def test_a_start_on_a_full_disk_is_one_line(settings, monkeypatch):
    monkeypatch.setattr(supervisor, "open_data_dir", full)
    with pytest.raises(DataDirError, match="no space is left") as error:
        await supervisor.up(settings, lambda event: None)
    assert settings.data_dir in error.value.message


async def test_a_child_starts_without_its_log(settings, tmp_path):
    (tmp_path / "hr_quick.py").write_text("print('x')\n")
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    environment = {**child_environment(settings, os.environ), "PYTHONPATH": path}
    child = Child("quick", "hr_quick", tmp_path / "no" / "such" / "quick.log", environment)
    await child.start()
    assert await child.wait() == 0
