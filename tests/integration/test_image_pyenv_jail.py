"""What a package can do while it is built for the process runtime: it is in the jail of builds."""

import contextlib
import io
import json
import os
import socket
import sys
import tarfile
from pathlib import Path

import pytest
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images import limits
from headrace_runtimes.images.confined import why_not
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.pyenv import Environments, PyEnvSettings
from headrace_runtimes.process.networks import BuildNetworks
from headrace_runtimes.spec import RuntimeSettings

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
BACKEND = """
import json, os, resource, socket, zipfile
def tried(what, *words):
    try:
        return repr(what(*words))[:200]
    except OSError as error:
        return type(error).__name__
def build_wheel(target, config_settings=None, metadata_directory=None):
    about = "hostile-1.0.dist-info"
    found = {
        "shadow": tried(lambda: open("/etc/shadow").read()),
        "secret": tried(lambda: open(os.environ["UV_TOLD_SECRET"]).read()),
        "root": tried(lambda: os.listdir("/root/.ssh")),
        "mknod": tried(lambda: os.mknod("/build/tmp/d", 0o60600, os.makedev(7, 0))),
        "host": tried(lambda: socket.create_connection(("127.0.0.1", int(os.environ["UV_TOLD_PORT"])), 2)),
        "uid_map": open("/proc/self/uid_map").read().split(),
        "cgroup": open("/proc/self/cgroup").read(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "whole": tried(lambda: open(os.environ["UV_TOLD_ENVS"] + "/whole.json", "w")),
    }
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(target, name), "w") as out:
        out.writestr("hostile.json", json.dumps(found))
        out.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1.0\\n")
        wheel = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        out.writestr(about + "/WHEEL", wheel)
        out.writestr(about + "/RECORD", "hostile.json,,\\n")
    return name
"""


def sdist(folder, backend=BACKEND):
    """A package that is built by a program of its own."""
    folder.mkdir()
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "hostile"\nversion = "1.0"\n',
        "backend.py": backend,
    }
    with tarfile.open(folder / "hostile-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"hostile-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return folder


IMAGE = Image(OWN, (("pip", ("hostile",)),))


def settings_of(tmp_path):
    return RuntimeSettings(
        tmp_path / "p", tmp_path, sys.executable, 0, tmp_path / "l", build_allow=(),
        uid_lock_dir=tmp_path / "locks",
    )  # fmt: skip


@pytest.fixture
def listener():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as found:
        yield found.getsockname()[1]


def left():
    found = [p for kind in ("", "memory", "pids") for p in (limits.ROOT / kind).glob("headrace-build-*")]
    return [p for p in found if p.is_dir()]


async def test_a_package_that_is_built_sees_nothing_of_the_host(tmp_path, listener):
    assert not why_not(), "these tests are run as root"
    links = sdist(tmp_path / "wheels")
    secret = tmp_path / "secret"
    secret.write_text("told")
    settings = settings_of(tmp_path)
    settings.run_dir.mkdir()
    (tmp_path / "locks").mkdir()
    networks = BuildNetworks(settings)
    env = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(links), "UV_TOLD_SECRET": str(secret)}
    env |= {"UV_TOLD_PORT": str(listener), "UV_TOLD_ENVS": str(tmp_path / "envs")}
    found = Environments(
        tmp_path / "envs", PyEnvSettings(sys.executable, env=env, timeout_s=100, lend=networks.lend())
    )
    before = set(left())
    try:
        await found.open()
        env = await found.prepare(IMAGE)
        told = json.loads(
            next(Path(env.python).parent.parent.glob("lib/*/site-packages/hostile.json")).read_text()
        )
    finally:
        await networks.close()
    assert told["shadow"] in {"FileNotFoundError", "PermissionError"}
    assert told["secret"] == "FileNotFoundError"
    assert told["root"] == "FileNotFoundError"
    assert told["mknod"] == "PermissionError"
    assert told["host"] == "ConnectionRefusedError", "its loopback is its own"
    assert int(told["uid_map"][1]) > 0
    assert "headrace-build-" in told["cgroup"]
    assert told["core"] == [1, 1]
    assert told["whole"] == "PermissionError", "what the host believes is the host's"
    assert set(left()) <= before
    assert not list((tmp_path / "envs").glob("w-*"))


async def test_a_build_that_takes_the_machines_memory_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "memory_limit", lambda: 256 << 20)
    links = sdist(
        tmp_path / "wheels", "def build_wheel(*a, **k):\n    x = [bytearray(1 << 20) for _ in range(1024)]\n"
    )
    env = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(links)}
    found = Environments(tmp_path / "envs", PyEnvSettings(sys.executable, env=env, timeout_s=100))
    await found.open()
    with pytest.raises(ImageFailed, match="failed"):
        await found.prepare(IMAGE)
    assert [p.name for p in (tmp_path / "envs").iterdir() if len(p.name) == 32] == []


async def test_root_without_namespaces_is_refused_unless_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace_runtimes.images.confined.PROGRAMS", ("no-such-program",))
    plain = Image(OWN, (("env", ("A=1",)),))
    refused = Environments(tmp_path / "a", PyEnvSettings(sys.executable, lend=contextlib.nullcontext))
    await refused.open()
    with pytest.raises(PrepareFailed, match=r"no-such-program.*build_allow"):
        await refused.prepare(plain)
    allowed = Environments(tmp_path / "b", PyEnvSettings(sys.executable))
    await allowed.open()
    assert os.access((await allowed.prepare(plain)).python, os.X_OK)
