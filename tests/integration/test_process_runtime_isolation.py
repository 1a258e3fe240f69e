"""What the code in one sandbox can reach: nothing of another sandbox, of the host, or of root."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import call
from headrace_runtimes.instance import procs
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="uids of their own need root")

CODE = """
import os, signal, socket, subprocess, sys

def attempt(what, target):
    try:
        if what == "read":
            return "got " + open(target, "rb").read(100).decode("latin-1")
        if what == "list":
            return "got " + " ".join(os.listdir(target))
        if what == "connect":
            s = socket.socket(socket.AF_UNIX)
            s.connect(target)
            return "got a connection"
        if what == "kill":
            os.kill(int(target), 0)
            return "got a signal through"
        if what == "write":
            open(target, "w").write("mine now")
            return "got it written"
        if what == "setuid":
            os.setuid(0)
            return "got root"
    except Exception as e:
        return type(e).__name__

def whoami():
    return {"uid": os.getuid(), "groups": os.getgroups(), "cwd": os.getcwd(), "home": os.environ.get("HOME"),
            "tmp": os.environ.get("TMPDIR"), "env": dict(os.environ)}

def daemonise():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    return int(p.stdout.readline())
"""


@pytest.fixture
async def place(monkeypatch):
    for name in ("HEADRACE_TEST_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "SOME_API_TOKEN"):
        monkeypatch.setenv(name, "secret-of-the-host")
    path = Path(tempfile.mkdtemp(prefix="hri-", dir="/tmp"))
    path.chmod(0o711)
    (path / "code").mkdir(mode=0o755)
    (path / "code" / "app.py").write_text(CODE)
    secret = path / "secret"
    secret.write_text("secret-of-root")
    secret.chmod(0o600)
    hidden = path / "data"
    hidden.mkdir(mode=0o755)  # open on purpose: only the cover can hide it
    (hidden / "file").write_text("secret-in-data")
    runtime = ProcessRuntime()
    settings = RuntimeSettings(
        run_dir=path / "r",
        engine_dir=ENGINE,
        python=sys.executable,
        zygote_bytes=1 << 30,
        log_dir=path / "logs",
        hide=(hidden,),
    )
    await runtime.open(settings, lambda status: None)
    count = 0

    async def start(entry="attempt", **options):
        nonlocal count
        count += 1
        return await runtime.claim(
            Base("any"),
            Assignment(
                f"i{count}", "default/h", 1, path / "code", f"app:{entry}", "function", "t", **options
            ),
        )

    yield path, start
    await runtime.close()
    shutil.rmtree(path, ignore_errors=True)


@root_only
async def test_user_code_cannot_reach_what_is_not_its_own(place):
    path, start = place
    mine, other = await asyncio.gather(start(), start())
    zygote = procs.stat(mine.pid).ppid
    forbidden = [
        ("list", f"{path}/r/s/{other.id}"),
        ("list", f"{path}/r/s"),
        ("read", f"{path}/r/s/{other.id}/home"),
        ("connect", f"{path}/r/k/{other.id}"),
        ("read", f"{path}/secret"),
        ("read", f"{path}/data/file"),
        ("list", f"{path}/logs"),
        ("list", f"{path}/r/p"),
        ("read", f"/proc/{other.pid}/environ"),
        ("read", f"/proc/{os.getpid()}/environ"),
        ("read", f"/proc/{zygote}/environ"),
        ("list", f"/proc/{zygote}/fd"),
        ("kill", str(other.pid)),
        ("kill", str(zygote)),
        ("kill", str(os.getpid())),
        ("write", f"{path}/code/app.py"),
        ("write", str(ENGINE / "zygote.py")),
        ("setuid", ""),
    ]
    for what, target in forbidden:
        status, answer = await call(mine, {"what": what, "target": target}, token="t")
        assert status == 200
        assert not str(answer).startswith("got"), f"{what} {target}: {answer}"
    # The attempts are real: its own things do work.
    assert (await call(mine, {"what": "write", "target": f"{path}/r/s/{mine.id}/tmp/x"}, token="t"))[
        1
    ] == "got it written"
    assert (await call(mine, {"what": "read", "target": f"{path}/code/app.py"}, token="t"))[1].startswith(
        "got"
    )


async def test_a_sandbox_has_its_own_uid_home_and_a_clean_environment(place):
    path, start = place
    one, two = await asyncio.gather(start("whoami"), start("whoami", env={"MINE": "yes"}))
    seen = [(await call(s, token="t"))[1] for s in (one, two)]
    for sandbox, view in zip((one, two), seen, strict=True):
        home = f"{path}/r/s/{sandbox.id}"
        assert view["home"].startswith(home)
        assert view["tmp"].startswith(home)
        assert "secret-of-the-host" not in json.dumps(view["env"])
        assert not [name for name in view["env"] if name.startswith(("RAY_", "AWS_"))]
        assert "PYTHONDONTWRITEBYTECODE" not in view["env"]
    assert seen[1]["env"]["MINE"] == "yes"
    assert "MINE" not in seen[0]["env"]
    if os.geteuid() == 0:
        assert seen[0]["uid"] != seen[1]["uid"]
        assert all(view["uid"] >= 870_000 and not set(view["groups"]) - {view["uid"]} for view in seen)


@root_only
async def test_what_user_code_left_running_ends_with_it(place):
    _, start = place
    sandbox = await start("daemonise")
    pid = (await call(sandbox, token="t"))[1]
    assert procs.identity(pid)
    await sandbox.stop(1.0)
    assert procs.identity(pid) is None


async def test_two_runtimes_on_one_machine_share_no_uid(place):
    path, start = place
    other = ProcessRuntime()
    settings = RuntimeSettings(
        run_dir=path / "r2",
        engine_dir=ENGINE,
        python=sys.executable,
        zygote_bytes=1 << 30,
        log_dir=path / "logs2",
    )
    await other.open(settings, lambda status: None)
    try:
        theirs = [
            await other.claim(
                Base("any"), Assignment(f"o{n}", "default/h", 1, path / "code", "app:whoami", "function", "t")
            )
            for n in range(3)
        ]
        ours = [await start("whoami") for _ in range(3)]
        uids = [(await call(s, token="t"))[1]["uid"] for s in theirs + ours]
        assert len(set(uids)) == (6 if os.geteuid() == 0 else 1)
    finally:
        await other.close()
    assert (await call(ours[0], token="t"))[0] == 200  # the other's close touched nothing of ours
