"""Images built step by step: what they hold, what is built again, what failed, and that nothing stays."""

import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images import jail, limits
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.build import Builder, BuildSettings
from headrace_runtimes.images.context import pack, unpack
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.interpreter import LABEL, find_python
from headrace_runtimes.images.pack import write_tree
from headrace_runtimes.images.prepare import prepare
from headrace_runtimes.images.reach import Reach
from headrace_runtimes.images.reference import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, parse
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.store import Store
from headrace_runtimes.images.view import look
from headrace_runtimes.oci.seccomp import profile

from tests.fixtures_registry import HTPASSWD, PASSWORD, real_registry
from tests.fixtures_wheels import wheel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds need root")
TOOLS = ("sh", "cat", "mkdir", "rm", "ln", "chmod", "ls", "mv", "id", "sleep")
HERE = "127.0.0.1:1/tools@"


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "images")
    await store.open()
    yield store
    with open("/proc/self/mounts") as mounts:
        assert str(tmp_path) not in mounts.read()
    assert [p for p in (store.directory / "part").iterdir() if p.is_dir()] == []
    assert list((store.directory / "locks").iterdir()) == []
    assert list((store.directory / "pins").iterdir()) == []


@pytest.fixture
async def base(store, tmp_path):
    """An image with a shell, taken from this machine, under a pinned reference."""
    root = tmp_path / "tools"
    for directory in ("usr/bin", "tmp", "etc", "proc", "dev", "sys", "var/log"):
        (root / directory).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "tmp").chmod(0o1777)
    (root / "var/log").chmod(0o2770)
    (root / "etc/old").write_text("old")
    for tool in TOOLS:
        binary = os.path.realpath(shutil.which(tool))
        shutil.copy2(binary, root / "usr/bin" / tool)
        out = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(?:=> )?(/\S+) \(0x", out):
            target = root / library.removeprefix("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    diff_id = await asyncio.to_thread(write_tree, root, tmp_path / "layer")
    layer = await store.put_file(tmp_path / "layer", OCI_LAYER + "+gzip")
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/bin", "OLD=1"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }  # fmt: skip
    about = await store.put(json.dumps(config).encode(), OCI_CONFIG)
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": about.encode(), "layers": [layer.encode()],
    }  # fmt: skip
    digest = (await store.put(json.dumps(manifest).encode(), OCI_MANIFEST)).digest
    await store.name(HERE + digest, digest)
    return HERE + digest


@pytest.fixture
def settings(tmp_path):
    return BuildSettings(host_python=sys.executable, timeout_s=60.0, seccomp=profile(platform.machine()))


async def shown(store, image, settings, **more):
    """The image with a python, for `prepare` to find."""
    return await prepare(store, image, settings=settings, **more)


PYTHON = "printf 1 > /usr/bin/python3; chmod 755 /usr/bin/python3"


async def test_each_step_is_a_layer_and_is_made_once(store, base, settings, tmp_path):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data/a").write_text("a")
    (project / "tool").write_text("x")
    (project / "tool").chmod(0o755)
    image = Image(
        steps=(
            ("from_registry", (base,)),
            ("run", (PYTHON, "rm /etc/old; mkdir -p /opt/x")),
            ("run", ("cat /proc/1/comm > /opt/x/pid1; ln /opt/x/pid1 /opt/x/l",)),
            ("env", ("NEW=two words", "OLD=2")),
            ("copy", ("data", "/var/log/data")),
            ("copy", ("tool", "/bin/")),
            ("copy", ("tool", "mine/tool")),
        )
    )  # fmt: skip
    whole, data = pack(image, project)
    context = tmp_path / "context"
    context.mkdir()
    assert unpack(data, context) == whole
    told = []
    found = await shown(store, whole, settings, context=context, progress=lambda *a: told.append(a[0]))
    assert len(found.layers) == 6
    assert found.python == "/usr/bin/python3"
    assert (found.env["NEW"], found.env["OLD"]) == ("two words", "2")
    assert found.env["HEADRACE_FILES"] == "/opt/headrace/files"
    assert look(found.layers, "/etc/old") is None
    assert look(found.layers, "/opt/x/pid1").places[0].read_text() == "sh\n"
    assert look(found.layers, "/opt/x/l").stat.st_nlink == 2
    assert look(found.layers, "/var/log/data/a").places[0].read_text() == "a"
    assert stat.S_IMODE(look(found.layers, "/var/log").stat.st_mode) == 0o2770
    assert look(found.layers, "/bin/tool").path == ("usr", "bin", "tool")
    assert look(found.layers, "/opt/headrace/files/mine/tool").stat.st_mode & 0o111
    assert look(found.layers, "/etc/resolv.conf") is None
    assert look(found.layers, "/headrace") is None
    assert next(line.split(":")[0] for line in told if line.startswith("step")) == "step 1 of 6"
    before = len(list((store.directory / "blobs/sha256").iterdir()))
    again = await shown(store, whole, settings, context=None)
    assert again == found
    more = Image(steps=(*whole.steps, ("run", ("rm -r /opt/x; mkdir /opt/x",))), files=whole.files)
    grown = await shown(store, more, settings, context=context)
    assert grown.layers[1:] == found.layers
    assert look(grown.layers, "/opt/x") is not None
    assert look(grown.layers, "/opt/x/l") is None
    assert len(list((store.directory / "blobs/sha256").iterdir())) == before + 3


async def test_what_fails_says_its_step_and_its_last_words(store, base, settings):
    image = Image(
        steps=(("from_registry", (base,)), ("run", ("echo working", "echo no such model >&2; exit 3")))
    )
    with pytest.raises(ImageFailed, match=r"run echo working.*exit code 3.*no such model"):
        await shown(store, image, settings)
    slow = BuildSettings(host_python=sys.executable, timeout_s=0.5)
    with pytest.raises(ImageFailed, match=r"more than 0\.5 s"):
        await shown(store, Image(steps=(("from_registry", (base,)), ("run", ("sleep 600",)))), slow)
    with pytest.raises(ImageFailed, match="no python3 or python"):
        await shown(store, Image(steps=(("from_registry", (base,)),)), settings)
    assert not any(name.startswith("image/") and "plain" in name for name in store.references())


async def test_steps_that_need_a_shell_say_so_where_there_is_none(store, settings):
    for step in (("apt", ("ffmpeg",)), ("run", ("true",))):
        with pytest.raises(ImageFailed, match=r"needs a shell.*from_registry"):
            await shown(store, Image(steps=(step,)), settings)


async def test_a_step_is_not_the_hosts_root(store, base, settings, tmp_path):
    tries = (
        "cat /proc/1/root/etc/shadow", "ls /root/../../../work", "echo 1 > /proc/sys/kernel/panic",
        "cat /dev/vda", "cat /proc/kcore", "echo b > /proc/sysrq-trigger", "cat /sys/firmware/*/*",
    )  # fmt: skip
    for attempt in tries:
        image = Image(steps=(("from_registry", (base,)), ("run", (attempt,))))
        with pytest.raises(ImageFailed):
            await shown(store, image, settings)


def made_of(kind, base, project, seconds):
    """An image whose step says that it is up and then sleeps."""
    if kind == "run":
        return Image(steps=(("from_registry", (base,)), ("run", (f"echo up; sleep {seconds}",)))), None
    names = " ".join(f"{p}" for p in ("usr", "lib", "lib64") if (project / "tools" / p).exists())
    copies = "".join(f"COPY tools/{name} /{name}\n" for name in names.split())
    (project / "files").mkdir()
    shutil.copytree(project / "tools", project / "files/tools", symlinks=True)
    project = project / "files"
    (project / "Dockerfile").write_text(
        f'FROM scratch\n{copies}RUN ["/usr/bin/sh", "-c", "echo up; sleep {seconds}"]\n'
    )
    return Image(steps=(("from_dockerfile", ("Dockerfile", ".")),)), project


async def running(command):
    """Whether a process of exactly that command line is there, after a while given to it to go."""
    for _ in range(100):
        out = subprocess.run(["ps", "axo", "args"], check=True, capture_output=True, text=True).stdout
        if command not in out.splitlines():
            return False
        await asyncio.sleep(0.05)
    return True


@pytest.mark.parametrize("kind", ["run", "dockerfile"])
async def test_a_step_that_is_cancelled_leaves_nothing(store, base, settings, tmp_path, kind):
    image, context = made_of(kind, base, tmp_path, 600)
    up = asyncio.Event()

    def tell(what, *_):
        if what.endswith(": up"):
            up.set()

    task = asyncio.create_task(shown(store, image, settings, context=context, progress=tell))
    await asyncio.wait_for(up.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await running("sleep 600")


async def test_a_dockerfile_has_no_more_memory_than_a_step(store, base, settings, tmp_path, monkeypatch):
    image, context = made_of("dockerfile", base, tmp_path, 0)
    monkeypatch.setattr(limits, "memory_limit", lambda: 200 << 20)
    hog = "x=aaaaaaaa; while :; do x=$x$x; done"
    text = (context / "Dockerfile").read_text().replace("echo up; sleep 0", hog)
    (context / "Dockerfile").write_text(text)
    # Who takes too much is killed, and the machine has no less meanwhile.
    with pytest.raises(ImageFailed, match=r"Dockerfile failed with exit code"):
        await shown(store, image, settings, context=context)
    assert not await asyncio.to_thread(lambda: [*limits.ROOT.glob("**/headrace-build-*")])


KILLED = """
import asyncio, sys
from pathlib import Path
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.definition import decode
from headrace_runtimes.images.prepare import prepare
from headrace_runtimes.images.store import Store
async def main():
    store = Store(Path(sys.argv[1]))
    await store.open()
    image, context = decode(sys.argv[2].encode()), Path(sys.argv[3])
    tell = lambda what, *_: print(what, flush=True)
    await prepare(store, image, tell, settings=BuildSettings(host_python=sys.executable), context=context)
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["run", "dockerfile"])
async def test_a_killed_builder_takes_its_step_along_and_the_rest_is_swept(
    store, base, settings, tmp_path, kind
):
    image, context = made_of(kind, base, tmp_path, 601)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(store.directory), image.encode().decode(), str(context),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        while not (await process.stdout.readline()).endswith(b": up\n"):
            pass
    process.kill()
    await process.wait()
    assert not await running("sleep 601")
    assert list((store.directory / "part").glob("w-*"))
    await store.open()
    await Builder(store, settings).sweep()
    cgroups = subprocess.run(
        ["find", "/sys/fs/cgroup", "-name", "*headrace-build*"], capture_output=True, check=True
    )
    assert cgroups.stdout == b""
    for path in (*(store.directory / "locks").iterdir(), *(store.directory / "pins").iterdir()):
        path.unlink()


async def test_python_packages_are_installed_over_the_hosts_python(store, tmp_path):
    wheels = wheel(tmp_path / "wheels")
    inside = "/headrace/build/wheels"
    settings = BuildSettings(
        host_python=sys.executable, binds=((wheels, inside),), timeout_s=120.0,
        seccomp=profile(platform.machine()),
        step_env={"UV_FIND_LINKS": inside, "UV_OFFLINE": "1"},
    )  # fmt: skip
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    image = Image(version, (("pip", ("tinything==1.0",)),))
    found = await shown(store, image, settings)
    assert len(found.layers) == 2
    assert found.python == os.path.realpath(sys.executable)
    module = next(found.layers[0].rglob("tinything.py"))
    assert list(module.parent.glob("__pycache__/tinything.*.pyc"))
    assert look(found.layers, "/headrace/build") is None
    root = tmp_path / "root"
    root.mkdir()
    lower = ":".join(map(str, found.layers))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", root], check=True)
    try:
        code = "import tinything, ssl, sqlite3; print(tinything.ANSWER)"
        ran = subprocess.run(["chroot", root, found.python, "-c", code], capture_output=True, check=True)
    finally:
        subprocess.run(["umount", root], check=True)
    assert ran.stdout == b"42\n"
    missing = Image(version, (("pip", ("nosuchthing==9",)),))
    with pytest.raises(ImageFailed, match="nosuchthing"):
        await shown(store, missing, settings)
    with pytest.raises(ImageFailed, match=r"The host's Python is"):
        await shown(store, Image("3.2"), settings)


async def test_a_dockerfile_is_built_by_buildah(store, settings, tmp_path):
    project = tmp_path / "project"
    (project / "ctx").mkdir(parents=True)
    (project / "ctx/python3").write_text("#!")
    (project / "ctx/python3").chmod(0o755)
    (project / "ctx/Dockerfile").write_text(
        'FROM scratch\nCOPY python3 /usr/bin/python3\nENV A=1\nWORKDIR /w\nENTRYPOINT ["/x"]\n'
    )
    image, data = pack(
        Image(steps=(("from_dockerfile", ("ctx/Dockerfile", "ctx")), ("env", ("B=2",)))), project
    )
    context = tmp_path / "context"
    context.mkdir()
    unpack(data, context)
    found = await shown(store, image, settings, context=context)
    assert (found.env["A"], found.env["B"], found.workdir) == ("1", "2", "/w")
    assert found.config["Entrypoint"] == ["/x"]
    assert found.python == "/usr/bin/python3"
    (project / "ctx/Dockerfile").write_text("FROM scratch\nCOPY nothing /x\n")
    image, data = pack(Image(steps=(("from_dockerfile", ("ctx/Dockerfile", "ctx")),)), project)
    unpack(data, context)
    with pytest.raises(ImageFailed, match="nothing"):
        await shown(store, image, settings, context=context)


async def test_a_dockerfile_from_a_registry_on_loopback(store, base, settings, tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / "python3").write_text("#!")
    (context / "python3").chmod(0o755)
    image = Image(steps=(("from_dockerfile", ("Dockerfile", ".")),))
    login = Credentials("ali", PASSWORD)
    async with real_registry(tmp_path, HTPASSWD) as host:
        async with Registry(parse(f"{host}/team/tools:1"), credentials=login) as registry:
            await registry.push(store, base.partition("@")[2])
        (context / "Dockerfile").write_text(
            f"FROM {host}/team/tools:1 AS a\nFROM a\nCOPY python3 /usr/bin/\nENV A=1\n"
        )
        known = replace(settings, credentials={host: login})
        found = await shown(store, image, known, context=context)
        assert (found.env["A"], found.env["OLD"]) == ("1", "1")

    @contextlib.asynccontextmanager
    async def apart():
        yield Reach("/proc/self/ns/net", "127.0.0.1")

    # Where builds have a network of their own nothing is tried.
    (context / "Dockerfile").write_text(f"from --platform=linux/amd64 {host}/team/tools:2\n")
    image = Image(steps=(("from_dockerfile", ("Dockerfile", ".")), ("env", ("B=2",))), files="other")
    with pytest.raises(ImageFailed, match=rf"FROM {host}, this host's own loopback, .* build_allow = host"):
        await shown(store, image, replace(settings, lend=apart), context=context)


PROBE = r"""
echo map $(cat /proc/self/uid_map); echo dev $(ls /dev)
while read -r name value; do [ "$name" = CapEff: ] && echo CapEff $value; done < /proc/self/status
while read -r what of soft hard; do [ "$of" = processes ] && echo most $soft; done < /proc/self/limits
for path in /proc/1/root /proc/1/cwd /etc/shadow /build /files /context; do
    ls $path > /dev/null 2>&1 && echo reached $path
done
for path in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/x; do
    (echo x > $path) 2> /dev/null && echo wrote $path
done
echo probed
"""


async def test_a_hostile_dockerfile_finds_nothing_of_the_host(store, base, settings, tmp_path):
    _, context = made_of("dockerfile", base, tmp_path, 0)
    (context / "probe").write_text(PROBE)
    outside = tmp_path / "outside"
    outside.write_text("of the host")
    (context / "way").symlink_to(outside)
    said = []

    async def build(*lines):
        head = (context / "Dockerfile").read_text().partition("RUN")[0] if lines else ""
        (context / "Hostile").write_text(head + "\n".join(lines) + "\n")
        hostile = Image(steps=(("from_dockerfile", ("Hostile", ".")),))
        await shown(store, hostile, settings, context=context, progress=lambda what, *_: said.append(what))

    with pytest.raises(ImageFailed):
        await build("COPY probe /probe", 'RUN ["/usr/bin/sh", "-c", ". /probe; cat nothing"]')
    lines = [line.removeprefix("dockerfile: ") for line in said]
    assert "probed" in lines
    assert f"map 0 {jail.FIRST_ID} {jail.ID_COUNT}" in lines, "its root is root of the host"
    # It cannot leave its root: whoever has CAP_SYS_CHROOT can, and CAP_MKNOD makes disks.
    rights = int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16)
    assert rights & (1 << 18 | 1 << 27 | 1 << 21 | 1 << 13) == 0
    devices = set(next(line for line in lines if line.startswith("dev ")).split()[1:])
    assert devices <= {"fd", "full", "null", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
                       "urandom", "zero", "ptmx", "console", "mqueue"}  # fmt: skip
    assert [line for line in lines if line.startswith(("reached", "wrote"))] == []
    assert f"most {jail.PROCESSES}" in lines
    # Out of the context: by its name, and by a link in it.
    for copy in ("COPY ../outside /got", "COPY way /got", f"COPY {outside} /got"):
        with pytest.raises(ImageFailed):
            await build(copy, 'RUN ["/usr/bin/cat", "/got"]', 'RUN ["/usr/bin/cat", "nothing"]')
    assert not any("of the host" in line for line in said)


@pytest.mark.parametrize("place", ["proc/self/exe", "dev/python", "sys/python"])
def test_no_interpreter_is_what_the_kernel_shows_in_its_place(tmp_path, place):
    layer = tmp_path / "layer"
    (layer / "usr/bin").mkdir(parents=True)
    (layer / place).parent.mkdir(parents=True)
    (layer / place).write_text("x")
    (layer / place).chmod(0o755)
    (layer / "usr/bin/python3").symlink_to(f"/{place}")
    for env, labels in (({}, {}), ({}, {LABEL: f"/{place}"}), ({"PATH": f"/{os.path.dirname(place)}"}, {})):
        with pytest.raises(ImageFailed, match="no python3"):
            find_python([layer], env, labels, None)


def test_looking_into_layers_sees_what_an_overlay_shows(tmp_path):
    top, low = tmp_path / "top", tmp_path / "low"
    for path in ("top/d", "top/o", "low/d", "low/o", "low/real/deep"):
        (tmp_path / path).mkdir(parents=True)
    (low / "d/kept").write_text("1")
    (low / "d/gone").write_text("1")
    (low / "o/hidden").write_text("1")
    (low / "real/deep/f").write_text("deep")
    (low / "way").symlink_to("/real")
    (low / "up").symlink_to("../../../../real/deep")
    (low / "circle").symlink_to("circle")
    os.mknod(top / "d/gone", stat.S_IFCHR)
    os.setxattr(top / "o", "trusted.overlay.opaque", b"y")
    both = (top, low)
    assert look(both, "/d/kept") is not None
    assert look(both, "/d/gone") is None
    assert look(both, "/o/hidden") is None
    assert look(both, "way/deep/f").path == ("real", "deep", "f")
    assert look(both, "/up/f").places == (low / "real/deep/f",)
    assert look(both, "/etc/passwd") is None
    assert look(both, "way", follow=False).path == ("way",)
    with pytest.raises(ImageFailed, match="circle"):
        look(both, "circle/x")
