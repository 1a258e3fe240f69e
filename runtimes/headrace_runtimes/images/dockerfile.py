"""Builds a Dockerfile with buildah, which needs no daemon, in a storage that is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.reference import Descriptor, is_digest, manifest_of
from headrace_runtimes.images.step import PATH
from headrace_runtimes.images.store import Store, Stored
from headrace_runtimes.images.tool import LEASH, run_tool

_libc = ctypes.CDLL(None, use_errno=True)


async def run_buildah(
    buildah: str,
    dockerfile: Path,
    context: Path,
    scratch: Path,
    *,
    credentials: Mapping[str, Credentials],
    docker_config: Path | None,
    timeout_s: float,
    progress: Progress | None,
) -> Path:
    """The OCI layout that was built, below ``scratch``. Raises `ImageFailed`, `PrepareFailed`."""
    if shutil.which(buildah) is None:
        raise PrepareFailed(f"{buildah} is not installed, which builds Dockerfiles: apt-get install buildah.")
    out, auth = scratch / "out", scratch / "auth.json"
    await asyncio.to_thread(_write_auth, auth, credentials, docker_config)
    (scratch / "tmp").mkdir()
    storage = [
        "--root", str(scratch / "storage"), "--runroot", str(scratch / "runroot"),
        "--storage-driver", "overlay",
    ]  # fmt: skip
    build = [
        *LEASH, buildah, *storage, "bud", "--isolation", "chroot", "--network", "host", "--layers=false",
        "--authfile", str(auth), "--tag", "built:latest", "--file", str(dockerfile), str(context),
    ]  # fmt: skip
    push = [*LEASH, buildah, *storage, "push", "built:latest", f"oci:{out}:built"]
    env = {"PATH": PATH, "HOME": str(scratch), "TMPDIR": str(scratch / "tmp")}
    try:
        for argv in (build, push):
            code, words = await run_tool(
                argv, env=env, cwd=context, what="dockerfile", timeout_s=timeout_s, progress=progress
            )
            if code != 0:
                raise ImageFailed(f"The Dockerfile failed with exit code {code}: {words}")
    except TimeoutError as error:
        raise ImageFailed(f"The Dockerfile took more than {timeout_s:g} s.") from error
    except OSError as error:
        raise PrepareFailed(f"buildah cannot be run: {error}. apt-get install buildah.") from error
    finally:
        await asyncio.shield(asyncio.to_thread(_unmount_below, scratch))
    return out


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


def _unmount_below(directory: Path) -> None:
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as table:
        points = [line.split(" ")[1] for line in table]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            _libc.umount2(os.fsencode(point), 2)
