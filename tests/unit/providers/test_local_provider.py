"""The local provider with a stand-in for ``ray start``: keepers, their ends, and nothing left."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import msgspec
import pytest
from headrace_providers import conformance
from headrace_providers.errors import InvalidRequest
from headrace_providers.local import LocalProvider, keeper
from headrace_providers.local import record as records
from headrace_providers.offers import JoinInfo, NodeRequest

STARTS = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print("Ray runtime started.", flush=True)
time.sleep(300)
"""
FAILS = """
import sys
print("----------")
print("\\x1b[31mthe port\\x1b[0m is taken")
print("----------")
sys.exit(3)
"""


async def until(condition, deadline_s=20.0):
    end = time.monotonic() + deadline_s
    while not (value := await condition()):
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.05)
    return value


@pytest.fixture
def make(tmp_path):
    """Makes a provider, and a request whose node runs a script; ends what is left."""
    made = []

    def both(script, id="n-local-test"):
        file = tmp_path / "start.py"
        file.write_text(script)
        join = JoinInfo(address="127.0.0.1:1", token_path="/nowhere", command=(sys.executable, str(file)))
        made.append(NodeRequest(id=f"{id}-{os.getpid()}", cluster="c-1", join=join))
        return LocalProvider(tmp_path / "state"), made[-1]

    yield both
    for request in made:
        record = records.read(tmp_path / "state" / f"{request.id}.json")
        keeper = record and records.keeper(record)
        for process in [*([keeper] if keeper else []), *records.marked(request.id)]:
            process.kill()


def keeper_of(tmp_path, request):
    return records.keeper(records.read(tmp_path / "state" / f"{request.id}.json"))


async def owned(provider):
    found = await provider.list_owned("c-1")
    return found[0] if found else None


async def test_conformance(make, tmp_path) -> None:
    _, request = make(STARTS)
    await conformance.run(lambda: LocalProvider(tmp_path / "state"), request)
    assert records.marked(request.id) == []
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_node_whose_keeper_was_killed_says_so_until_it_is_terminated(make, tmp_path) -> None:
    provider, request = make(STARTS)
    await provider.launch(request)

    async def state():
        return (await owned(provider)).state

    async def is_running():
        return await state() == "running"

    async def has_failed():
        return await state() == "failed"

    await until(is_running)
    keeper_of(tmp_path, request).kill()
    await until(has_failed)
    assert (await owned(provider)).detail == "its keeper died"
    await provider.terminate(request.id)
    assert await owned(provider) is None
    assert records.marked(request.id) == []
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_node_that_does_not_start_says_its_last_words(make, tmp_path) -> None:
    provider, request = make(FAILS)
    await provider.launch(request)

    async def failed():
        node = await owned(provider)
        return node if node.state == "failed" else None

    assert (await until(failed)).detail == "ray start ended with exit code 3: the port is taken"
    await provider.terminate(request.id)
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_node_whose_ray_was_killed_says_just_that(make, tmp_path) -> None:
    provider, request = make(STARTS)
    await provider.launch(request)

    async def started():
        return "started" in (tmp_path / "state" / f"{request.id}.log").read_text()

    await until(started)
    (child,) = [p for p in keeper_of(tmp_path, request).children() if str(tmp_path) in " ".join(p.cmdline())]
    child.kill()

    async def failed():
        node = await owned(provider)
        return node if node.state == "failed" else None

    assert (await until(failed)).detail == "ray start was killed by signal 9"
    await provider.terminate(request.id)
    assert records.marked(request.id) == []


async def test_a_record_of_another_process_with_the_same_pid_is_no_keeper(make, tmp_path) -> None:
    provider, request = make(STARTS)
    state = tmp_path / "state"
    state.mkdir()
    record = records.Record(
        request=request,
        launched_at=0.0,
        keeper_pid=os.getpid(),
        keeper_started="1" + records.started(os.getpid()),
        state="running",
    )
    records.write(state / f"{request.id}.json", record)
    assert (await owned(provider)).state == "failed"
    await provider.terminate(request.id)
    assert await owned(provider) is None


async def test_what_cannot_be_a_node_is_refused(make) -> None:
    provider, request = make(STARTS)
    for bad in ({"id": "../x"}, {"memory": 0}, {"gpu": {"H100": 0}}, {"labels": {"a,b": "c"}}):
        with pytest.raises(Exception, match=r"use|ask"):
            await provider.launch(msgspec.structs.replace(request, **bad))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../x"},
        {"id": "a\n"},
        {"region": "here,headrace.node=head"},
        {"region": "a=b"},
        {"instance_type": "x,headrace.memory=1"},
        {"labels": {"a": "b,headrace.node=head"}},
        {"labels": {"a=b": "c"}},
        {"labels": {f"l{n}": "x" for n in range(1000)}},
        {"gpu": {"x,y": 1}},
        {"gpu": {"x": 10**30}},
        {"cpu": -1.0},
        {"cpu": float("nan")},
        {"cpu": 1e300},
        {"memory": 0},
        {"memory": 10**30},
    ],
)
async def test_what_would_be_another_node_is_refused(make, change):
    provider, request = make(STARTS)
    with pytest.raises(InvalidRequest):
        await provider.launch(msgspec.structs.replace(request, **change))
    assert list(await provider.list_owned("c-1")) == []


RAYLET = """\
2026-11-22 15:03:20,101 INFO scripts.py:1200 -- Ray runtime started.
2026-11-22 15:03:25,579 ERR scripts.py:1307 -- Some Ray subprocesses exited unexpectedly:
2026-11-22 15:03:25,579 ERR scripts.py:69 --   \x1b[1mraylet\x1b[22m [exit code=-9]
2026-11-22 15:03:25,580 ERR scripts.py:116 -- ----- BEGIN raylet.out tail (exit code(s)=-9 (SIGKILL)) -----
[2026-11-22 15:03:25,000 I 1 1] (raylet) node_manager.cc:1: it went well
2026-11-22 15:03:25,580 ERR scripts.py:1315 -- Remaining processes will be killed.
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RAYLET, ": its raylet was killed by SIGKILL"),
        (RAYLET.replace("code=-9]", "code=1]"), ": its raylet ended with exit code 1"),
        ("2026-11-22 15:03:25,580 ERR scripts.py:1 -- no room\n-----\n", ": no room"),
        ("", ""),
    ],
)
def test_why_ray_ended_is_said_without_its_log_format(tmp_path, text, said) -> None:
    log = tmp_path / "n.log"
    log.write_text(text)
    assert keeper.last_words(log) == said
