"""Builds a Dockerfile with buildah, which needs no daemon, in a storage that is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images import jail
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.limits import PREFIX, joined, make, remove
from headrace_runtimes.images.reach import Reach, leashed
from headrace_runtimes.images.reference import Descriptor, is_digest, is_loopback, manifest_of
from headrace_runtimes.images.step import PATH
from headrace_runtimes.images.store import Store, Stored
from headrace_runtimes.images.tool import run_tool
from headrace_runtimes.userns import user_namespace

ENV = {"PATH": PATH, "HOME": jail.OWN, "TMPDIR": f"{jail.OWN}/tmp"}  # noqa: S108
AUTH, FILES = "auth.json", f"{jail.OWN}/files"
REGISTRIES = ".config/containers/registries.conf.d/loopback.conf"
"""Below `jail.OWN`, its home: what is said there is added to what the host's own says."""
_LOOPBACK = ('location = "127.0.0.1"', 'location = "localhost"', 'prefix = "*.localhost"')
INSECURE = "".join(f"[[registry]]\n{which}\ninsecure = true\n" for which in _LOOPBACK)
"""Plain http with this machine's own loopback, as `Registry` speaks it."""
_FROM = re.compile(r"^[ \t]*FROM[ \t]+(?:--\S+[ \t]+)*([^\s/$]+)/\S+", re.IGNORECASE | re.MULTILINE)
_BEYOND = (
    "Builds reach public addresses and what the setting build_allow names; with build_allow = host all that "
    "the host reaches, its loopback too."
)
_UNREACHED = re.compile(
    r"connection refused|i/o timeout|no route to host|network is unreachable|no such host"
)
NOT_FOR_STEPS = ("CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT")
"""Rights that buildah would give to a step. With the last it would leave its root, and find `AUTH`."""


async def run_buildah(
    buildah: str,
    files: Path,
    words: Sequence[str],
    scratch: Path,
    *,
    credentials: Mapping[str, Credentials],
    docker_config: Path | None,
    timeout_s: float,
    progress: Progress | None,
    reach: Reach | None = None,
) -> Path:
    """The OCI layout that was built, below ``scratch``. Raises `ImageFailed`, `PrepareFailed`.

    ``words``: the Dockerfile and its context, both below ``files``.
    """
    binary = shutil.which(buildah)
    if binary is None:
        raise PrepareFailed(f"{buildah} is not installed, which builds Dockerfiles: apt-get install buildah.")
    if reach is not None:
        await asyncio.to_thread(_refuse_loopback, files / words[0])
    own, root = scratch / "build", scratch / "root"
    try:
        userns = user_namespace(jail.FIRST_ID, jail.ID_COUNT)
    except OSError as error:
        raise PrepareFailed(f"No user namespace can be made for buildah: {error}.") from error
    cgroup = PREFIX + scratch.name
    try:
        await asyncio.to_thread(root.mkdir)
        # What says that `step.sweep` has something to take away but files.
        await asyncio.to_thread((scratch / "state").mkdir)
        await asyncio.to_thread(_lay_out, own, files, credentials, docker_config)
        places = await asyncio.to_thread(make, cgroup)
        for argv in _commands(words):
            confined = jail.jailed(root, own, binary, userns, argv)
            apart = await asyncio.to_thread(leashed, confined, reach, scratch)
            code, said = await run_tool(
                joined(apart, places), env=ENV, cwd=scratch, what="dockerfile", timeout_s=timeout_s,
                progress=progress, room=scratch, pass_fds=(userns,),
            )  # fmt: skip
            if code != 0:
                hint = f" {_BEYOND}" if reach is not None and _UNREACHED.search(said) else ""
                raise ImageFailed(f"The Dockerfile failed with exit code {code}: {said}{hint}")
    except TimeoutError as error:
        raise ImageFailed(f"The Dockerfile took more than {timeout_s:g} s.") from error
    except OSError as error:
        raise PrepareFailed(f"buildah cannot be run: {error!s:.300}. apt-get install buildah.") from error
    finally:
        os.close(userns)
        await asyncio.shield(asyncio.to_thread(remove, cgroup))
    return own / "out"


def _refuse_loopback(dockerfile: Path) -> None:
    """Raises `ImageFailed` for a ``FROM`` that builds cannot reach: else that takes tries and seconds."""
    try:
        text = dockerfile.read_text(errors="replace")
    except OSError:
        # buildah says so.
        return
    for host in _FROM.findall(text):
        if is_loopback(host):
            raise ImageFailed(
                f"The Dockerfile is FROM {host}, this host's own loopback, which builds do not see. {_BEYOND}"
            )


def _commands(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Build and write out, as they are seen from the jail."""
    storage = [
        jail.TOOL, "--root", f"{jail.OWN}/storage", "--runroot", f"{jail.OWN}/runroot",
        "--storage-driver", "overlay",
    ]  # fmt: skip
    build = [
        *storage, "bud", "--isolation", "chroot", "--network", "host", "--layers=false",
        "--authfile", f"{jail.OWN}/{AUTH}", "--tag", "localhost/built:latest",
        "--ulimit", f"nproc={jail.PROCESSES}:{jail.PROCESSES}",
        *(word for name in NOT_FOR_STEPS for word in ("--cap-drop", name)),
        "--file", f"{FILES}/{words[0]}", f"{FILES}/{words[1]}",
    ]  # fmt: skip
    return build, [*storage, "push", "localhost/built:latest", f"oci:{jail.OWN}/out:built"]


def _lay_out(
    own: Path, files: Path, credentials: Mapping[str, Credentials], docker_config: Path | None
) -> None:
    own.mkdir(mode=0o700)
    (own / "tmp").mkdir()
    # A copy: the host's own may be closed to others, and what a step of it leaves there is nobody's.
    shutil.copytree(files, own / "files", symlinks=True)
    _write_auth(own / AUTH, credentials, docker_config)
    (own / REGISTRIES).parent.mkdir(parents=True)
    (own / REGISTRIES).write_text(INSECURE)
    for path in (own, *own.rglob("*")):
        os.chown(path, jail.FIRST_ID, jail.FIRST_ID, follow_symlinks=False)


async def adopt_layout(store: Store, layout: Path, name: str) -> Stored:
    """Take the only image of an OCI layout into the store, and name it. Raises `ImageFailed`."""
    try:
        text = await asyncio.to_thread((layout / "index.json").read_text)
        digest = json.loads(text)["manifests"][0]["digest"]
        blobs = layout / "blobs/sha256"
        data: Any = json.loads(await asyncio.to_thread(_blob(blobs, digest).read_bytes))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ImageFailed(f"What was built is no image ({error}): build it again.") from error
    manifest = manifest_of(data)
    for part in (*manifest.layers, manifest.config, Descriptor(str(data.get("mediaType", "")), digest, 0)):
        found = await store.put_file(_blob(blobs, part.digest), part.media_type)
        if found.digest != part.digest:
            raise ImageFailed(f"{part.digest} is damaged: build the image again.")
    await store.name(name, digest)
    return store.load(digest)


def _blob(blobs: Path, digest: str) -> Path:
    if not is_digest(digest):
        raise ImageFailed(f"{digest!r:.100} is no SHA-256 digest.")
    return blobs / digest.removeprefix("sha256:")


def _write_auth(path: Path, credentials: Mapping[str, Credentials], docker_config: Path | None) -> None:
    found: Any = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((docker_config or Path.home() / ".docker/config.json").read_bytes())
    auths = dict(found.get("auths") or {}) if isinstance(found, dict) else {}
    auths |= {host: {"auth": c.header().removeprefix("Basic ")} for host, c in credentials.items()}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as out:
        json.dump({"auths": auths}, out)
