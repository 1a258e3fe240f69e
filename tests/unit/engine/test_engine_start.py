"""What stands before the first request: mounts, fork safety, entry points, load, packets."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import types
from pathlib import Path

import hr_forksafe
import hr_ipc
import hr_loader
import hr_shield
import hr_shim
import pytest
from hypothesis import given
from hypothesis import strategies as st


def steps(expose, hide, closed=()):
    return [tuple(s) for s in hr_shield.plan(expose, hide, lambda path: path not in closed)]


def test_no_mounts_where_all_is_fine():
    assert steps(["/usr/lib/python3", "/opt/app"], []) == []


def test_what_lies_below_a_closed_directory_is_brought_back():
    assert steps(["/root/.pyenv/v", "/opt/x", "/root/app"], [], {"/root"}) == [
        ("cover", "/root", 0o711),
        ("bind", "/root/app", 0),
        ("bind", "/root/.pyenv/v", 0),
    ]


def test_nested_closed_directories_exposes_and_hides():
    assert steps(["/root/a/b", "/root/a/b/c"], ["/root/a/b/secret", "/data"], {"/root", "/root/a"}) == [
        ("cover", "/data", 0o700),
        ("cover", "/root", 0o711),
        ("bind", "/root/a/b", 0),
        ("cover", "/root/a/b/secret", 0o700),
    ]


def test_what_is_exposed_inside_a_hidden_directory_is_brought_back():
    assert steps(["/data/bundles"], ["/data"]) == [("cover", "/data", 0o711), ("bind", "/data/bundles", 0)]


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.sets(paths, max_size=5), st.sets(paths, max_size=4), st.sets(paths, max_size=4))
def test_every_plan_exposes_and_hides(expose, hide, closed):
    visible = {}
    for step in hr_shield.plan(sorted(expose), sorted(hide), lambda path: path not in closed):
        visible[step.path] = step.kind

    def nearest(path):
        while path not in visible and path != "/":
            path = os.path.dirname(path)
        return visible.get(path)

    for path in expose - hide:
        assert nearest(path) != "cover"
    for path in hide:
        assert nearest(path) == "cover"


def test_links_on_the_way_are_found(tmp_path: Path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to("../link/deep")
    found = hr_shield.links_on_way(str(tmp_path / "link" / "up"))
    assert found == {str(tmp_path / "link"): "real", str(tmp_path / "real" / "up"): "../link/deep"}


def test_threads_sockets_gpus_and_loops_are_told():
    before = hr_forksafe.look()
    assert hr_forksafe.unsafe_since(before) is None
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    with socket.socket():
        reason = hr_forksafe.unsafe_since(before, settle_s=0)
    ended.set()
    thread.join()
    assert reason == "it starts 1 thread and it leaves a socket open"
    gpu = hr_forksafe.Picture(1, frozenset(), frozenset({"/dev/nvidia0"}), True)
    bare = hr_forksafe.Picture(1, frozenset(), frozenset(), False)
    assert hr_forksafe.compare(bare, gpu) == [
        "it opens a GPU (/dev/nvidia0)",
        "it leaves an event loop running",
    ]


@pytest.fixture
def code(tmp_path: Path):
    """A bundle's directory; what it brought into this process is taken out again."""
    path, modules, argv = list(sys.path), dict(sys.modules), list(sys.argv)
    yield tmp_path
    sys.path[:], sys.argv[:] = path, argv
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


def failure(call) -> hr_loader.StartFailed:
    with pytest.raises(hr_loader.StartFailed) as caught:
        call()
    return caught.value


def test_an_import_that_raises_shows_the_users_frames_only(code: Path):
    (code / "brokenapp.py").write_text("def deep():\n    raise SystemExit(3)\n\ndeep()\n")
    error = failure(lambda: hr_loader.import_entry(str(code), "brokenapp:f"))
    assert (error.reason, str(error)) == ("import-failed", "importing brokenapp raised SystemExit: 3")
    assert "brokenapp.py" in error.traceback
    assert "hr_loader" not in error.traceback
    assert "importlib" not in error.traceback


def test_a_syntax_error_and_a_missing_name_are_told(code: Path):
    (code / "synapp.py").write_text("def f(:\n")
    (code / "noapp.py").write_text("x = 1\n")
    assert "SyntaxError" in failure(lambda: hr_loader.import_entry(str(code), "synapp:f")).traceback
    assert "noapp has no 'f'" in str(failure(lambda: hr_loader.import_entry(str(code), "noapp:f")))
    assert "cannot be called" in str(failure(lambda: hr_loader.make(1, "function", "noapp:x")))


def test_decorated_objects_are_unwrapped_and_nested_names_found(code: Path):
    source = "class Box:\n    class Inner: ...\nclass W: ...\nw = W()\nw.__headrace_handler__ = Box\n"
    (code / "wrapapp.py").write_text(source)
    assert hr_loader.import_entry(str(code), "wrapapp:w").__name__ == "Box"
    assert hr_loader.import_entry(str(code), "wrapapp:Box.Inner").__name__ == "Inner"


def test_a_bundles_own_module_wins_over_a_preloaded_one_of_the_same_name(code: Path):
    sys.modules["helperx"] = types.ModuleType("helperx")
    (code / "helperx.py").write_text("value = 5\n")
    (code / "mainx.py").write_text("import helperx\nvalue = helperx.value\n")
    assert hr_loader.import_entry(str(code), "mainx:value") == 5


def test_the_stand_in_accepts_every_option(code: Path):
    sys.modules["headrace"] = None  # type: ignore[assignment]
    with pytest.raises(ImportError):
        __import__("headrace")
    del sys.modules["headrace"]
    module = types.ModuleType("headrace")
    module.__dict__.update(endpoint=hr_shim.endpoint, Image=hr_shim._Anything(), Scaling=hr_shim._Anything)
    image = module.Image.python("3.11").pip("x")

    @module.endpoint(image=image, scaling=module.Scaling(min=1), gpu=["H100"])
    def f():
        return 1

    @module.endpoint
    def g():
        return 2

    assert (f(), g()) == (1, 2)


class Loads:
    def __init__(self) -> None:
        self.log: list[str] = []

    def load(self):
        self.log.append("load")

    def __call__(self, x):
        return x

    def health(self):
        return "load" in self.log


class LoadsLate(Loads):
    async def load(self):  # type: ignore[override]
        await asyncio.sleep(0)
        self.log.append("load")


class Raises(Loads):
    def load(self):
        raise ValueError("no weights")


class Ill(Loads):
    def health(self):
        return False


@pytest.mark.parametrize("cls", [Loads, LoadsLate])
def test_load_sync_and_async(cls):
    loaded = hr_loader.make(cls, "class", "m:C")
    hr_loader.run_load(loaded, hr_loader.run_alone)
    hr_loader.run_health(loaded, hr_loader.run_alone)
    assert loaded.owner.log == ["load"]


def test_load_and_health_that_fail():
    raised = failure(lambda: hr_loader.run_load(hr_loader.make(Raises, "class", "m:C"), hr_loader.run_alone))
    assert (raised.reason, str(raised)) == ("load-failed", "load() raised ValueError: no weights")
    assert "no weights" in raised.traceback
    ill = failure(lambda: hr_loader.run_health(hr_loader.make(Ill, "class", "m:C"), hr_loader.run_alone))
    assert "health() returned False" in str(ill)


def test_a_load_that_takes_too_long_is_interrupted():
    def spin():
        while True:
            pass

    with (
        pytest.raises(hr_loader.LoadTimeout, match=r"took longer than 0.05 s"),
        hr_loader.time_limit(0.05, "load()"),
    ):
        spin()


def test_packets_carry_descriptors_and_long_texts_are_cut():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left, right = hr_ipc.Channel(a.detach()), hr_ipc.Channel(b.detach())
    reader, writer = os.pipe()
    left.send({"ev": "x", "traceback": "\x00" * 300_000 + "end"}, [writer])
    hr_ipc.close_all([writer])
    message, fds = right.recv()
    assert message["traceback"].endswith("end")
    assert len(fds) == 1
    hr_ipc.close_all(fds)
    assert os.read(reader, 1) == b""
    hr_ipc.close_all([reader])
    left.close()
    assert right.recv() == (None, [])
    right.close()
