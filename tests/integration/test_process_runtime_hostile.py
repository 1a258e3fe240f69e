"""User code that means harm: it lies to its host, and leaves what is hard to remove. The host lives on."""

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import call
from headrace_runtimes.errors import AssignFailed, PrepareFailed
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, LoadedEndpoint, RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="uids of their own need root")

HOSTILE = """
import os, resource
import hr_ipc

send = hr_ipc.Channel.send

def lie(event, **what):
    def lying(self, message, fds=()):
        send(self, dict(message, **what) if message.get("ev") == event else message, fds)
    hr_ipc.Channel.send = lying

def liar(in_flight: object = 0):
    lie("stats", in_flight=in_flight, served="\\ud800")
    return "ok"

def nest():
    os.chdir(os.environ["HOME"])
    for _ in range(2000):
        os.mkdir("d")
        os.chdir("d")
    os.mkfifo("pipe")
    os.symlink("/etc", "link")
    os.chmod(".", 0)

def replace(socket: str, target: str):
    said = []
    for attempt in (
        lambda: os.unlink(socket),
        lambda: os.rename(os.environ["TMPDIR"], socket),
        lambda: os.symlink(target, "link") or os.replace("link", socket),
        lambda: os.rename(os.path.dirname(socket), os.environ["TMPDIR"] + "/k"),
        lambda: os.rename(os.path.dirname(os.path.dirname(socket)), os.environ["TMPDIR"] + "/p"),
    ):
        try:
            attempt()
            said.append("done")
        except OSError as error:
            said.append(type(error).__name__)
    return said

def bomb():
    bound, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard + 1, hard + 1))
    except (ValueError, OSError):
        return [bound, hard]
    return "no bound"

class Raises:
    def __init__(self):
        raise RuntimeError("a file named \\udcff")

class Loaded:
    def load(self):
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        mask = os.umask(0o77)
        self.seen = [os.getuid(), int(status["NoNewPrivs"]), oct(mask), status["CapEff"].strip()]

    def __call__(self):
        return self.seen

VICTIM = int(os.environ.get("VICTIM", "0"))

class Forger:
    def load(self):
        def forging(self, message, fds=()):
            if message.get("ev") == "loaded":
                for ident in ("nobody-asked", "x-1", "x-2"):
                    send(self, {"ev": "forked", "id": ident, "pid": VICTIM})
                send(self, {"ev": "exited", "pid": VICTIM, "code": "\\udcff", "signal": 10 ** 30})
            if message.get("ev") == "forked":
                message = dict(message, pid=VICTIM)
            send(self, message, fds)
        hr_ipc.Channel.send = forging

    def __call__(self):
        return "forked"
"""


async def eventually(what, within_s=20.0):
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.01)


@pytest.fixture
async def hostile():
    path = Path(tempfile.mkdtemp(prefix="hrh-", dir="/tmp"))
    path.chmod(0o711)
    (path / "code").mkdir(mode=0o755)
    (path / "code" / "hostile.py").write_text(HOSTILE)
    runtime = ProcessRuntime()
    settings = RuntimeSettings(
        run_dir=path / "h", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30, log_dir=path / "l"
    )
    await runtime.open(settings, lambda status: None)
    numbers = iter(range(1000))

    async def start(entry, handler="function", base=Base("any"), **options):  # noqa: B008 - frozen
        return await runtime.claim(
            base,
            Assignment(
                f"x{next(numbers)}",
                "default/h",
                1,
                path / "code",
                f"hostile:{entry}",
                handler,
                "t",
                **options,
            ),
        )

    yield path, start, runtime
    await runtime.close()
    assert not (path / "h").exists()  # nothing that they do keeps their directory
    shutil.rmtree(path)


@pytest.mark.parametrize("lie", [10**30, -1, 10**400, "7", None, [1], 1.5])
async def test_what_an_instance_says_of_its_load_is_not_believed_blindly(hostile, lie):
    _, start, _ = hostile
    sandbox = await start("liar", concurrency=2)
    assert (await call(sandbox, {"in_flight": lie if lie != 10**400 else 10**30}, token="t"))[0] == 200
    assert (await sandbox.stats()).in_flight is None


async def test_a_failure_whose_text_no_message_can_carry_is_told(hostile):
    _, start, _ = hostile
    with pytest.raises(AssignFailed) as failed:
        await start("Raises", "class")
    exit = failed.value.exit
    assert exit.reason == "load-failed"
    assert "a file named" in (exit.detail + exit.traceback).encode().decode()


async def test_a_tree_without_end_is_removed(hostile):
    path, start, _ = hostile
    sandbox = await start("nest")
    assert (await call(sandbox, token="t"))[0] == 200
    await sandbox.stop(1.0)
    assert not list((path / "h" / "s").iterdir())
    assert not list((path / "h" / "k").iterdir())


@root_only
async def test_an_instance_cannot_put_another_socket_in_the_place_of_its_own(hostile):
    path, start, _ = hostile
    docker = path / "root-only.sock"  # whoever connects for it may use this one
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(docker))
        docker.chmod(0o600)
        sandbox = await start("replace")
        where = sandbox.address.removeprefix("unix:")
        answer = await call(sandbox, {"socket": where, "target": str(docker)}, token="t")
    assert answer[0] == 200
    assert "done" not in answer[1]
    assert stat.S_ISSOCK(os.lstat(where).st_mode)
    assert os.lstat(where).st_uid == 0


@root_only
async def test_processes_and_threads_are_bounded(hostile):
    _, start, _ = hostile
    sandbox = await start("bomb")
    bound, hard = (await call(sandbox, token="t"))[1]
    assert bound == hard <= 4096


@root_only
async def test_what_load_does_in_a_zygote_is_confined_as_an_instance_is(hostile):
    path, start, runtime = hostile
    loaded = LoadedEndpoint("default/h", 1, path / "code", "hostile:Loaded", "class", {})
    base = Base("loaded", loaded=loaded)
    await runtime.hold([(base, 0)])
    await eventually(lambda: any(b.key == "loaded" and b.state == "ready" for b in runtime.bases()))
    sandbox = await start("Loaded", "class", base)
    uid, no_new_privileges, mask, capabilities = (await call(sandbox, token="t"))[1]
    assert uid >= 870_000
    assert (no_new_privileges, mask, int(capabilities, 16)) == (1, "0o77", 0)


async def test_a_zygote_that_runs_user_code_cannot_have_others_killed(hostile):
    path, start, runtime = hostile
    victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        env = {"VICTIM": str(victim.pid)}
        loaded = LoadedEndpoint("default/h", 1, path / "code", "hostile:Forger", "class", env)
        base = Base("forger", loaded=loaded)
        await runtime.hold([(base, 1)])
        await eventually(lambda: any(b.key == "forger" and b.state == "ready" for b in runtime.bases()))
        with pytest.raises(PrepareFailed):
            await start("Forger", "class", base)
        await runtime.hold([])
        await eventually(lambda: not any(b.key == "forger" for b in runtime.bases()))
        assert victim.poll() is None
        assert (await call(await start("liar"), {"in_flight": 0}, token="t"))[1] == "ok"  # the others live on
    finally:
        victim.kill()
        victim.wait()
