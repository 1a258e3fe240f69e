"""A child's life is bound to the supervisor's, its environment holds no keys, its log is bounded."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time

import psutil
import pytest
from headrace.cluster import processes
from headrace.cluster.processes import Child, child_environment
from headrace.config import load_settings


async def until(condition, deadline_s=10.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


@pytest.fixture
def modules(tmp_path):
    """Environment with a folder of modules to run."""
    (tmp_path / "hr_sleeps.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "hr_stubborn.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "hr_fails.py").write_text("import sys\nsys.exit('no such luck')\n")
    (tmp_path / "hr_reads.py").write_text("import sys\nprint('up', flush=True)\nsys.stdin.read()\n")
    paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": paths}


async def test_a_child_ends_on_sigterm_or_the_end_of_stdin(tmp_path, modules):
    for module, by_stdin in (("hr_sleeps", False), ("hr_reads", True)):
        child = Child("x", module, tmp_path / "x.log", modules, talks=True)
        await child.start()
        assert await child.lines.readline() == b"up\n"
        assert child.identity is not None
        assert child.identity.process() is not None
        assert await child.stop(5, by_stdin=by_stdin)
        assert not child.running


async def test_a_stubborn_child_is_killed(tmp_path, modules):
    child = Child("x", "hr_stubborn", tmp_path / "x.log", modules, talks=True)
    await child.start()
    assert await child.lines.readline() == b"up\n"
    assert not await child.stop(0.1)
    assert await child.wait() == -9


async def test_the_tail_holds_the_last_words_of_this_start_only(tmp_path, modules):
    log = tmp_path / "x.log"
    log.write_text("of an earlier start\n")
    child = Child("x", "hr_fails", log, modules)
    await child.start()
    assert await child.wait() == 1
    assert child.tail() == "no such luck"
    assert log.read_text().startswith("of an earlier start")


async def test_a_large_log_is_put_aside(tmp_path, modules, monkeypatch):
    monkeypatch.setattr(processes, "LOG_BYTES", 10)
    log = tmp_path / "x.log"
    log.write_text("more than ten bytes\n")
    child = Child("x", "hr_fails", log, modules)
    await child.start()
    await child.wait()
    assert (tmp_path / "x.log.1").read_text() == "more than ten bytes\n"
    assert log.stat().st_mode & 0o777 == 0o600


async def test_children_die_with_a_killed_supervisor(tmp_path, modules):
    code = (
        "import asyncio, os, pathlib\n"
        "from headrace.cluster.processes import Child\n"
        "async def main():\n"
        f"    child = Child('x', 'hr_sleeps', pathlib.Path({str(tmp_path / 'x.log')!r}), os.environ)\n"
        "    await child.start()\n"
        "    print(child.identity.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=modules)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # The child has said to the kernel what it wants when it has begun its own work.
    await until(lambda: "up" in (tmp_path / "x.log").read_text())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_the_environment_has_the_settings_and_no_keys(tmp_path):
    settings = load_settings({"data_dir": str(tmp_path), "port": 8123})
    base = {
        "PATH": "/bin", "HEADRACE_API_KEY": "secret", "RAY_ADDRESS": "auto", "RAY_AUTH_TOKEN": "secret",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"rel{os.pathsep}/abs",
    }  # fmt: skip
    made = child_environment(settings, base)
    assert made["HEADRACE_PORT"] == "8123"
    assert made["HEADRACE_KEYLESS"] == "false"
    assert made["PYTHONPATH"] == os.pathsep.join([os.path.abspath("rel"), "/abs"])
    assert made["PATH"] == "/bin"
    assert "secret" not in made.values()
    assert not {"HEADRACE_API_KEY", "RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE"} & set(made)
    assert load_settings(environ=made, toml=tmp_path / "none") == settings
    joined = child_environment(load_settings({"address": "127.0.0.1:6379"}), base)
    assert joined["RAY_AUTH_TOKEN"] == "secret"


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 300, 300), (300, 300, 300), (64, 1 << 30, None)])
def test_as_many_descriptors_as_we_may_have_are_taken(soft, hard, after):
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    hard = hard if own == resource.RLIM_INFINITY else min(hard, own)
    code = (
        "import resource as r\nfrom headrace.cluster.processes import allow_many_files\n"
        f"r.setrlimit(r.RLIMIT_NOFILE, ({soft}, {hard}))\nallow_many_files()\n"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(after or min(hard, processes.MAX_FILES)), str(hard)]
