"""A real zygote over its protocol: preload, fork, assign, HTTP, stop, and every way to die."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENGINE = Path(__file__).parents[2] / "platform" / "headrace" / "engines" / "python"
ROOT = os.geteuid() == 0
UID = 876_543 if ROOT else None
PATIENCE_S = 20.0
TOKEN = "t0ken"
as_root = pytest.mark.skipif(not ROOT, reason="needs root: uids and mounts")


class Peer:
    """The runtime's end of a packet socket."""

    def __init__(self) -> None:
        self.mine, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mine.settimeout(PATIENCE_S)
        self.early: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self.mine, [json.dumps(message).encode()], fds or [])

    def packet(self) -> dict[str, Any] | None:
        try:
            data = self.mine.recv(1 << 17)
        except ConnectionResetError:
            return None
        return json.loads(data) if data else None

    def expect(self, *events: str) -> dict[str, Any]:
        """The next packet of one of these kinds; others are kept for later."""
        for message in self.early:
            if message["ev"] in events:
                self.early.remove(message)
                return message
        while message := self.packet():
            if message["ev"] in events:
                return message
            self.early.append(message)
        raise AssertionError(f"the peer closed before it sent {events}; it had sent {self.early}")

    def close(self) -> None:
        self.mine.close()
        self.theirs.close()


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("instance", timeout=PATIENCE_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Child:
    def __init__(self, zygote: Zygote, pid: int, peer: Peer, out: int, err: int, base: Path) -> None:
        self.zygote, self.pid, self.peer, self.base = zygote, pid, peer, base
        self.out, self.err = os.fdopen(out, "rb"), os.fdopen(err, "rb")

    def assign(self, entry: str, handler: str, **options: Any) -> dict[str, Any]:
        """Make it an instance; returns its last word: ready or failed."""
        home = self.base / f"i{self.pid}"
        home.mkdir(mode=0o700)
        if UID is not None:
            os.chown(home, UID, UID)
        self.socket_path = str(home / "s")
        listener = socket.socket(socket.AF_UNIX)
        with listener:
            listener.bind(self.socket_path)
            listener.listen(64)
            message = {
                "op": "assign", "id": f"i{self.pid}", "endpoint": "default/app", "version": 1,
                "code": str(self.zygote.code), "entry": entry, "handler": handler, "token": TOKEN,
                "env": {}, "dir": str(home), "concurrency": 2, "batch_max_size": 0, "batch_max_wait_ms": 0.0,
                "timeout": 30.0, "load_timeout": 15.0, "max_body": 1 << 20, "nofile": 512, **options,
            }  # fmt: skip
            self.peer.send(message, [listener.fileno()])
            try:
                return self.peer.expect("ready", "failed")
            except AssertionError as error:
                raise AssertionError(f"{error}; {self.err.read().decode()}") from error

    def call(self, value: Any = None, path: str = "/") -> tuple[int, Any]:
        connection = UnixHttp(self.socket_path)
        try:
            headers = {"X-Headrace-Token": TOKEN, "Content-Type": "application/json"}
            connection.request("POST", path, None if value is None else json.dumps(value), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def close(self) -> None:
        self.peer.close()
        self.out.close()
        self.err.close()


class Zygote:
    def __init__(self, base: Path, python: str = sys.executable) -> None:
        self.base, self.python = base, python
        self.code = base / "code"
        self.code.mkdir(exist_ok=True)
        self.peer = Peer()
        fd = self.peer.theirs.fileno()
        env = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        self.process = subprocess.Popen(
            [python, str(ENGINE / "zygote.py"), str(fd)],
            pass_fds=[fd],
            env={**env, "PYTHONPATH": str(base / "lib")},
        )
        self.peer.theirs.close()
        self.children: list[Child] = []

    def app(self, source: str, name: str = "app") -> None:
        (self.code / f"{name}.py").write_text(textwrap.dedent(source))

    def init(self, **options: Any) -> dict[str, Any]:
        real = Path(os.path.realpath(self.python))
        expose = [sys.prefix, str(real.parents[1]), str(ENGINE), str(self.base), *options.pop("expose", [])]
        message = {"op": "init", "key": "k", "name": "base", "hide": [], "uid": None, "gid": None, **options}
        self.peer.send({**message, "expose": expose})
        return self.peer.expect("up")

    def preload(self, *modules: str) -> dict[str, Any]:
        self.peer.send({"op": "preload", "modules": list(modules), "imports": []})
        return self.peer.expect("preloaded")

    def fork(self, uid: int | None = UID) -> Child:
        peer = Peer()
        (out, out_child), (err, err_child) = os.pipe(), os.pipe()
        self.peer.send(
            {"op": "fork", "id": "x", "uid": uid, "gid": uid}, [peer.theirs.fileno(), out_child, err_child]
        )
        peer.theirs.close()
        os.close(out_child)
        os.close(err_child)
        forked = self.peer.expect("forked", "fork-failed")
        child = Child(self, forked.get("pid", 0), peer, out, err, self.base)
        self.children.append(child)
        assert forked["ev"] == "forked", forked
        return child

    def start(self, entry: str, handler: str, **options: Any) -> Child:
        child = self.fork()
        ready = child.assign(entry, handler, **options)
        assert ready["ev"] == "ready", ready
        return child

    def close(self) -> None:
        for child in self.children:
            child.close()
        self.peer.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def zygotes() -> Iterator[Callable[..., Zygote]]:
    """Start zygotes in directories that any uid may enter (pytest's own may not)."""
    with contextlib.ExitStack() as stack:
        # A killed instance leaves files of its uid behind: root removes them, nobody else has made any.
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hrz", dir="/tmp")))
        base.chmod(0o755)

        def start(name: str = "z", python: str = sys.executable) -> Zygote:
            (base / name).mkdir(mode=0o755)
            (base / name / "lib").mkdir()
            zygote = Zygote(base / name, python)
            stack.callback(zygote.close)
            return zygote

        yield start


@pytest.fixture
def zygote(zygotes: Callable[..., Zygote]) -> Zygote:
    return zygotes()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def test_a_whole_life(zygote: Zygote) -> None:
    zygote.app("""
        import os, sys
        class App:
            def load(self):
                print("loading")
                self.n = 0
            def __call__(self, x: int = 0) -> dict:
                print("called", file=sys.stderr)
                return {"x": x, "cwd": os.getcwd(), "home": os.environ["HOME"], "tmp": os.environ["TMPDIR"],
                        "own": os.environ.get("OWN"), "uid": os.getuid(), "sid": os.getsid(0) == os.getpid()}
            def health(self):
                return True
            def unload(self):
                print("unloading")
    """)
    up = zygote.init()
    assert up["pid"] == zygote.process.pid
    assert zygote.preload() == {"ev": "preloaded", "imported": [], "refused": {}}
    child = zygote.fork()
    ready = child.assign("app:App", "class", env={"OWN": "1"})
    assert ready["ev"] == "ready", ready
    assert all(ready[part] >= 0 for part in ("boot", "imported", "load"))
    assert child.peer.expect("imported")["seconds"] >= 0
    status, seen = child.call({"x": 4})
    home = str(child.base / f"i{child.pid}")
    assert (status, seen["x"], seen["cwd"], seen["own"]) == (200, 4, home, "1")
    assert (seen["home"], seen["tmp"]) == (f"{home}/home", f"{home}/tmp")
    assert (seen["uid"], seen["sid"]) == (UID if ROOT else os.getuid(), True)
    assert child.call({"x": "no"})[0] == 422
    child.peer.send({"op": "stats"})
    assert child.peer.expect("stats") == {"ev": "stats", "in_flight": 0, "served": 2}
    child.peer.send({"op": "health"})
    assert child.peer.expect("health") == {"ev": "health", "ok": True, "detail": ""}
    child.peer.send({"op": "stop", "grace": 5})
    assert zygote.peer.expect("exited") == {"ev": "exited", "pid": child.pid, "code": 0, "signal": None}
    assert child.out.read() == b"loading\nunloading\n"
    assert child.err.read() == b"called\n"


def test_fork_unsafe_modules_are_refused_with_the_reason(zygote: Zygote) -> None:
    lib = zygote.base / "lib"
    for name, source in {
        "good_one": "x = 1",
        "threaded": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
        "socketed": "import socket\ns = socket.socket()",
        "broken": "raise ValueError('half installed')",
        "quits": "raise SystemExit(1)",
        "dies": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "leaves": "import os\nos._exit(3)",
        "brief": "import threading\nthreading.Thread(target=lambda: None).start()",
        "good_two": "import good_one",
    }.items():
        (lib / f"{name}.py").write_text(source)
    zygote.init()
    names = [
        "good_one",
        "threaded",
        "socketed",
        "broken",
        "quits",
        "dies",
        "leaves",
        "absent",
        "brief",
        "good_two",
    ]
    answer = zygote.preload(*names)
    assert answer["imported"] == ["good_one", "brief", "good_two"]
    refused = answer["refused"]
    assert set(refused) == set(names) - set(answer["imported"])
    for name, words in {
        "threaded": "starts 1 thread", "socketed": "socket", "broken": "half installed", "quits": "Exit",
        "dies": "SIGSEGV", "leaves": "exit code 3", "absent": "No module",
    }.items():  # fmt: skip
        assert words in refused[name], refused
    zygote.app(
        "import sys\ndef f():\n    return [m in sys.modules for m in ('good_one', 'good_two', 'threaded')]"
    )
    assert zygote.start("app:f", "function").call() == (200, [True, True, False])


def test_user_code_that_cannot_start_says_why(zygote: Zygote) -> None:
    zygote.app("import nothing_like_this", "noimport")
    zygote.app(
        "class A:\n    def load(self):\n        raise OSError('no weights')\n    def __call__(self): ...",
        "noload",
    )
    zygote.app(
        "import time\nclass A:\n    def load(self):\n        time.sleep(60)\n    def __call__(self): ...",
        "slow",
    )
    zygote.init()
    for entry, reason, words in (
        ("noimport:f", "import-failed", "No module named 'nothing_like_this'"),
        ("noload:A", "load-failed", "no weights"),
        ("slow:A", "load-failed", "took longer than 0.2 s"),
    ):
        child = zygote.fork()
        failed = child.assign(entry, "class", load_timeout=0.2)
        assert (failed["ev"], failed["reason"]) == ("failed", reason)
        assert words in failed["message"]
        assert words in failed["traceback"]
        assert "hr_" not in failed["traceback"]
        assert zygote.peer.expect("exited")["code"] == 1
        assert words.encode() in child.err.read()


def test_deaths_are_reported_with_code_or_signal_and_leave_no_descendants(zygote: Zygote) -> None:
    zygote.app("""
        import os, subprocess
        def f(how: str) -> int:
            if how == "exit":
                os._exit(7)
            if how == "kill":
                os.kill(os.getpid(), 9)
            return subprocess.Popen(["sleep", "600"]).pid
    """)
    zygote.init()
    for how, code, number in (("exit", 7, None), ("kill", None, signal.SIGKILL)):
        child = zygote.start("app:f", "function")
        sleeper = child.call({"how": "spawn"})[1]
        assert not gone(sleeper)
        with pytest.raises((http.client.HTTPException, OSError)):
            child.call({"how": how})
        exited = zygote.peer.expect("exited")
        assert exited == {"ev": "exited", "pid": child.pid, "code": code, "signal": number}
        until(lambda pid=sleeper: gone(pid))


def test_the_end_of_the_zygote_or_of_its_socket_ends_the_children(zygotes: Callable[..., Zygote]) -> None:
    for how in ("kill", "eof"):
        zygote = zygotes(how)
        zygote.app("def f():\n    return 1")
        zygote.init()
        busy, spare = zygote.start("app:f", "function"), zygote.fork()
        if how == "kill":
            zygote.process.kill()
        else:
            zygote.peer.mine.close()
        until(lambda z=zygote, b=busy, s=spare: z.process.poll() is not None and gone(b.pid) and gone(s.pid))


def test_a_child_ends_when_its_control_socket_closes(zygote: Zygote) -> None:
    zygote.app("def f():\n    return 1")
    zygote.init()
    children = [zygote.fork(), zygote.start("app:f", "function")]
    for child in children:
        child.peer.mine.close()
    assert {zygote.peer.expect("exited")["pid"] for _ in children} == {child.pid for child in children}


def test_a_running_request_is_finished_at_stop(zygote: Zygote) -> None:
    zygote.app("""
        import asyncio, os
        class A:
            def __init__(self):
                self.marker = os.path.join(os.environ["HOME"], "go")
            async def __call__(self) -> str:
                open(self.marker + ".in", "w").close()
                while not os.path.exists(self.marker):
                    await asyncio.sleep(0.005)
                return "done"
    """)
    zygote.init()
    child = zygote.start("app:A", "class")
    marker = Path(child.socket_path).parent / "home" / "go"
    connection = UnixHttp(child.socket_path)
    connection.request("POST", "/", headers={"X-Headrace-Token": TOKEN})
    until(lambda: marker.with_suffix(".in").exists())
    child.peer.send({"op": "stop", "grace": 15})
    until(lambda: child.call()[0] == 503)
    marker.touch()
    assert json.loads(connection.getresponse().read()) == "done"
    connection.close()
    assert zygote.peer.expect("exited")["code"] == 0


LOADED = {
    "op": "load",
    "endpoint": "default/app",
    "version": 1,
    "handler": "class",
    "env": {"OWN": "1"},
    "timeout": 15,
}


def test_a_loaded_snapshot_loads_once_and_reseeds_after_each_fork(zygote: Zygote) -> None:
    zygote.app("""
        import os, random
        class A:
            async def load(self):
                self.pid, self.uid, self.own = os.getpid(), os.getuid(), os.environ["OWN"]
            def __call__(self):
                return [self.pid, self.uid, self.own, random.random()]
    """)
    zygote.init(uid=UID, gid=UID)
    zygote.peer.send({**LOADED, "code": str(zygote.code), "entry": "app:A"})
    assert zygote.peer.expect("loaded", "load-refused", "load-failed")["ev"] == "loaded"
    answers = [zygote.start("app:A", "class").call()[1] for _ in range(2)]
    assert answers[0][:3] == answers[1][:3] == [zygote.process.pid, UID if ROOT else os.getuid(), "1"]
    assert answers[0][3] != answers[1][3]


def test_a_load_that_is_not_fork_safe_or_raises_is_told(zygotes: Callable[..., Zygote]) -> None:
    for name, body, event, words in (
        (
            "threads",
            "import threading; threading.Thread(target=threading.Event().wait).start()",
            "load-refused",
            "1 thread",
        ),
        ("raises", "raise ValueError('no model')", "load-failed", "no model"),
    ):
        zygote = zygotes(name)
        zygote.app(f"class A:\n    def load(self):\n        {body}\n    def __call__(self): ...")
        zygote.init()
        zygote.peer.send({**LOADED, "code": str(zygote.code), "entry": "app:A"})
        answer = zygote.peer.expect("loaded", "load-refused", "load-failed")
        assert answer["ev"] == event
        assert words in answer["reason"] + answer.get("message", "")
        zygote.process.kill()


def test_a_fork_that_is_asked_wrongly_fails_alone(zygote: Zygote) -> None:
    zygote.init()
    zygote.peer.send({"op": "fork", "id": "a", "uid": None, "gid": None})
    assert zygote.peer.expect("fork-failed")["id"] == "a"
    zygote.peer.send({"op": "nonsense"})
    zygote.fork(None)


CONFINED = """
    import os, resource
    def f(path: str = "/") -> dict:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        try:
            listing = os.listdir(path)
        except OSError as error:
            listing = type(error).__name__
        return {"nnp": int(status["NoNewPrivs"]), "caps": int(status["CapEff"], 16),
                "groups": os.getgroups(), "uids": sorted(set(os.getresuid() + os.getresgid())),
                "core": resource.getrlimit(resource.RLIMIT_CORE),
                "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "listing": listing,
                "fds": [t for t in map(link, os.listdir("/proc/self/fd")) if t]}
    def link(fd: str) -> str:
        try:
            return os.readlink("/proc/self/fd/" + fd)
        except OSError:
            return ""
"""


@as_root
def test_a_child_has_its_own_uid_no_privileges_and_no_foreign_descriptors(zygote: Zygote) -> None:
    zygote.app(CONFINED)
    zygote.init()
    zygote.fork()
    seen = zygote.start("app:f", "function").call()[1]
    assert (seen["nnp"], seen["caps"], seen["groups"], seen["uids"]) == (1, 0, [], [UID])
    assert (seen["core"], seen["files"]) == ([1, 1], 512)
    kinds = [t for t in seen["fds"] if t.startswith("socket:")]
    # Control, listener, the connection, and the loop's own pair at most.
    assert len(kinds) <= 5, seen["fds"]
    assert not [t for t in seen["fds"] if str(zygote.base) in t]


@as_root
def test_the_shield_exposes_what_is_needed_and_hides_the_rest(zygote: Zygote) -> None:
    closed = zygote.base / "closed"
    for part in ("env", "private"):
        (closed / part).mkdir(parents=True)
        (closed / part / "lazymod.py").write_text("value = 42")
    (closed / "link").symlink_to("env")
    closed.chmod(0o700)
    data = zygote.base / "data"
    data.mkdir(mode=0o755)
    (data / "admin.key").write_text("secret")
    zygote.app(CONFINED, "confined")
    zygote.app(f"""
        import os, sys
        from confined import f as confined
        def f(path: str):
            sys.path.append({str(closed / "link")!r})
            import lazymod
            return [lazymod.value, os.listdir({str(closed / "env")!r}), confined(path)["listing"]]
    """)
    up = zygote.init(expose=[str(closed / "link")], hide=[str(data)])
    assert up["shield"] is True, up
    child = zygote.start("app:f", "function")
    for hidden in (closed, closed / "private", data, data / "admin.key"):
        status, (value, listing, seen) = child.call({"path": str(hidden)})
        assert (status, value) == (200, 42)
        assert "lazymod.py" in listing
        assert seen in ("PermissionError", "FileNotFoundError", "NotADirectoryError"), (hidden, seen)
    assert (data / "admin.key").read_text() == "secret"


def test_an_instance_whose_cancelled_handler_does_not_return_ends(zygote: Zygote) -> None:
    zygote.app("""
        import threading, time
        def app(x: int = 0) -> int:
            if x:
                print("stuck", flush=True)
                time.sleep(600)
            return x
    """)
    zygote.init()
    child = zygote.start("app:app", "function", cancel_grace=0.05)
    assert child.call({"x": 0}) == (200, 0)
    connection = UnixHttp(child.socket_path)
    connection.request(
        "POST", "/", b'{"x": 1}', {"X-Headrace-Token": TOKEN, "Content-Type": "application/json"}
    )
    assert child.out.readline() == b"stuck\n"
    connection.close()
    exited = zygote.peer.expect("exited")
    assert (exited["pid"], exited["code"]) == (child.pid, 75), child.err.read()
    assert "0.05 s" in child.peer.expect("stuck")["message"]
    assert b"cancelled request still runs" in child.err.read()
