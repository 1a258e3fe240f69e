"""Builds images from their definitions, step by step, without a daemon; every step is kept as an image.

``pip``, ``apt``, ``run`` and ``copy`` become layers that we make ourselves (`step`, `pack`); a Dockerfile is
buildah's. Measured: a step costs 0.06 s beyond its command, buildah 0.5 s for a file on nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import json
import platform
import shutil
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.definition import Image, check
from headrace_runtimes.images.dockerfile import adopt_layout, run_buildah
from headrace_runtimes.images.hostroot import make_host_root, probe
from headrace_runtimes.images.interpreter import LABEL, find_python, is_musl
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.pack import Entry, write_files, write_tree
from headrace_runtimes.images.reach import Lend
from headrace_runtimes.images.reference import (
    ARCHITECTURES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    diff_ids,
    parse,
    settings,
    variables,
)
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.step import PATH, TOOLS, Step, run_step, sweep
from headrace_runtimes.images.store import Store, Stored, kept_in
from headrace_runtimes.images.view import look
from headrace_runtimes.images.wire import Patience

FILES_DIR = "/opt/headrace/files"
"""Where copies with a relative target are; ``$HEADRACE_FILES`` names it."""
_APT = (
    "set -e; export DEBIAN_FRONTEND=noninteractive; apt-get update -q; "
    'apt-get install -q -y --no-install-recommends -- "$@"; apt-get clean; rm -rf /var/lib/apt/lists/*'
)


@dataclass(frozen=True)
class BuildSettings:
    """What a host builds with."""

    host_python: str
    """Interpreter whose root file system is the base when ``base`` is empty."""
    base: str = ""
    """Reference of ``python(version)``, with ``{version}``: ``docker.io/library/python:{version}-slim``."""
    runc: str = "runc"
    buildah: str = "buildah"
    uv: str | None = None
    """Path of uv; None: looked for."""
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    """By registry; others are looked for where docker keeps them."""
    docker_config: Path | None = None
    step_env: Mapping[str, str] = field(default_factory=dict)
    """For the steps only, never part of an image: where packages are found, proxies."""
    pip_env: Mapping[str, str] = field(default_factory=dict)
    """The same for ``pip`` steps only: indexes, which may hold a password."""
    binds: tuple[tuple[Path, str], ...] = ()
    """Of the host, for the steps only; targets below ``/headrace/build``."""
    timeout_s: float = 1800.0
    """Of one step."""
    seccomp: Mapping[str, Any] | None = None
    """Filter of system calls for the steps: what the driver gives its containers."""
    patience: Patience = field(default_factory=Patience)
    lend: Lend = contextlib.nullcontext
    """The network of each step; the machine's own when nobody says otherwise."""


class Builder:
    """Builds into one store."""

    def __init__(self, store: Store, settings: BuildSettings) -> None:
        self.store, self._settings = store, settings

    async def build(
        self,
        image: Image,
        context: Path | None,
        progress: Progress | None = None,
        hold: contextlib.ExitStack | None = None,
    ) -> Stored:
        """The image, built now or before. ``context`` holds the files of `context.unpack`.

        ``hold`` gets the image's pin (`Store.pin`), so that it stays until that is closed.
        Raises `ImageFailed` with the step and its last words, `RegistryFailed`, `PrepareFailed`.
        """
        check(image)
        name = f"image/{image.digest or 'plain'}"
        if found := self._pinned(name, hold):
            return found
        lock = self.store.directory / "locks" / f"build-{image.digest[:16]}"
        async with alone(lock, f"image {image.digest[:12]}"):
            if found := self._pinned(name, hold):
                return found
            await self.sweep()
            with contextlib.ExitStack() as pins:
                stored, steps = await self._start(image, context, progress)
                pins.enter_context(self.store.pin(stored.digest))
                for number, (kind, words) in enumerate(steps, 1):
                    if progress:
                        progress(f"step {number} of {len(steps)}: {kind} {' '.join(words)[:100]}", 0, 0)
                    stored = await self._step(
                        image, stored, (kind, words), context=context, progress=progress
                    )
                    pins.enter_context(self.store.pin(stored.digest))
                await self.store.name(name, stored.digest)
                if hold is not None:
                    hold.enter_context(self.store.pin(stored.digest))
        return stored

    def _pinned(self, name: str, hold: contextlib.ExitStack | None) -> Stored | None:
        found = self.store.find(name)
        if found is None or hold is None:
            return found
        hold.enter_context(self.store.pin(found.digest))
        # Between the first look and the pin it may have been collected.
        return self.store.find(name)

    async def sweep(self) -> None:
        """Remove what builders that died have left: containers, mounts, directories. At a start, too."""
        await asyncio.to_thread(sweep, self.store.directory / "part", self._settings.runc)

    async def layers(self, stored: Stored) -> tuple[Path, ...]:
        """The unpacked layers, top first."""
        ids = diff_ids(stored.config)
        pairs = zip(stored.manifest.layers, ids, strict=True)
        found = [await self.store.layer(layer, diff_id) for layer, diff_id in pairs]
        return tuple(reversed(found))

    async def python_of(self, stored: Stored, layers: Sequence[Path], version: str | None) -> str:
        """Its interpreter. Raises `ImageFailed`."""
        about = settings(stored.config)
        labels = about.get("Labels") or {}
        return await asyncio.to_thread(find_python, layers, variables(about.get("Env")), labels, version)

    async def _start(
        self, image: Image, context: Path | None, progress: Progress | None
    ) -> tuple[Stored, tuple[tuple[str, tuple[str, ...]], ...]]:
        kind, words = image.steps[0] if image.steps else ("", ())
        if kind == "from_registry":
            return await self.pull(words[0], progress), image.steps[1:]
        if kind == "from_dockerfile":
            return await self._dockerfile(image, words, context, progress), image.steps[1:]
        if self._settings.base:
            version = image.python or await self._host_version()
            return await self.pull(self._settings.base.format(version=version), progress), image.steps
        return await self._host_base(image), image.steps

    async def pull(self, text: str, progress: Progress | None) -> Stored:
        """The image of a reference; one with a digest that is here is not asked for again."""
        reference = parse(text)
        if reference.digest and (found := self.store.find(str(reference))):
            return found
        credentials = self._settings.credentials.get(reference.registry)
        async with Registry(
            reference, credentials=credentials, docker_config=self._settings.docker_config,
            patience=self._settings.patience,
        ) as registry:  # fmt: skip
            return await registry.pull(self.store, progress)

    async def _host_version(self) -> str:
        about: Any = await asyncio.to_thread(probe, self._settings.host_python)
        return ".".join(str(n) for n in about["version"][:2])

    async def _host_base(self, image: Image) -> Stored:
        about: Any = await asyncio.to_thread(probe, self._settings.host_python)
        full = ".".join(str(n) for n in about["version"])
        if image.python and not f"{full}.".startswith(f"{image.python}."):
            raise ImageFailed(
                f"The host's Python is {full}, not {image.python}: deploy again with the setting "
                "python_image (HEADRACE_PYTHON_IMAGE), or start with from_registry."
            )
        made_at = (await asyncio.to_thread(Path(about["python"]).stat)).st_mtime_ns
        name = f"host/{_key(about['python'], full, made_at)}"
        if found := self.store.find(name):
            return found
        async with alone(self.store.directory / "locks/host-root", "the root of the host's Python"):
            if found := self.store.find(name):
                return found
            async with self._scratch() as scratch:
                python = await asyncio.to_thread(make_host_root, self._settings.host_python, scratch / "root")
                with kept_in(scratch.parent):
                    diff_id = await asyncio.to_thread(write_tree, scratch / "root", scratch / "layer")
                empty = {
                    "architecture": _architecture(), "os": "linux",
                    "config": {"Env": [f"PATH={PATH}"], "Labels": {LABEL: python}},
                    "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
                }  # fmt: skip
                return await self._keep(name, empty, (), scratch / "layer", diff_id, done="host python")

    async def _step(
        self, image: Image, below: Stored, step: tuple[str, tuple[str, ...]], *, context: Path | None,
        progress: Progress | None,
    ) -> Stored:  # fmt: skip
        kind, words = step
        content = [digest for path, digest in image.files if kind == "copy" and path == _plain(words[0])]
        name = f"step/{_key(below.digest, kind, words, content)}"
        if found := self.store.find(name):
            return found
        if kind == "env":
            return await self._env(name, below, words)
        async with self._scratch() as scratch:
            layers = await self.layers(below)
            if kind == "copy":
                entries = await asyncio.to_thread(_entries, context, words)
                layer = scratch / "layer"
                with kept_in(scratch.parent):
                    diff_id = await asyncio.to_thread(write_files, entries, layers, layer)
            else:
                command = await self._command(below, layers, kind, words, image.python)
                async with self._settings.lend() as reach:
                    layer, diff_id = await run_step(
                        command, self._settings.runc, scratch, self._settings.timeout_s, progress, reach=reach
                    )
            done = f"{kind} {' '.join(words)}"
            return await self._keep(name, below.config, below.manifest.layers, layer, diff_id, done=done)

    async def _command(
        self, below: Stored, layers: tuple[Path, ...], kind: str, words: tuple[str, ...], version: str | None
    ) -> Step:
        about = settings(below.config)
        env = variables(about.get("Env")) | dict(self._settings.step_env)
        cwd = about.get("WorkingDir") or "/"
        binds = self._settings.binds
        if kind == "pip":
            env |= self._settings.pip_env
            python = await self.python_of(below, layers, version)
            uv = find_uv(self._settings.uv)
            if uv is None or await asyncio.to_thread(is_musl, layers):
                argv = [python, "-m", "pip", "install", "--no-cache-dir", "--no-input", "--compile", *words]
            else:
                binds = (*binds, (Path(uv), f"/{TOOLS}/uv"))
                argv = [
                    f"/{TOOLS}/uv", "pip", "install", "--python", python, "--break-system-packages",
                    "--compile-bytecode", "--no-cache", "--no-progress", "--no-config", *words,
                ]  # fmt: skip
        elif await asyncio.to_thread(look, layers, "/bin/sh") is None:
            what = f"{kind} {words[0]}"
            raise ImageFailed(
                f"The image's step {what!r:.100} needs a shell, and the image has none: start with one that "
                'has, such as Image.from_registry("docker.io/library/python:3.12-slim").'
            )
        elif kind == "apt":
            argv = ["/bin/sh", "-c", _APT, "apt", *words]
        else:
            argv = ["/bin/sh", "-ec", "\n".join(words)]
        return Step(f"{kind} {' '.join(words)}", argv, layers, env, cwd, binds, self._settings.seccomp)

    async def _env(self, name: str, below: Stored, words: tuple[str, ...]) -> Stored:
        about = dict(settings(below.config))
        env = variables(about.get("Env")) | variables(words)
        about["Env"] = [f"{k}={v}" for k, v in env.items()]
        config = dict(below.config) | {"config": about}
        config["history"] = [*(config.get("history") or ()), _history("env", empty=True)]
        return await self._put(name, config, below.manifest.layers)

    async def _keep(
        self, name: str, config: Any, below: Sequence[Descriptor], layer: Path, diff_id: str, *, done: str
    ) -> Stored:
        """Put a new layer on top, and name what comes out."""
        top = await self.store.put_file(layer, f"{OCI_LAYER}+gzip")
        rootfs = {"type": "layers", "diff_ids": [*diff_ids(config), f"sha256:{diff_id}"]}
        history = [*(config.get("history") or ()), _history(done)]
        new = dict(config) | {"rootfs": rootfs, "history": history}
        return await self._put(name, new, (*below, top))

    async def _put(self, name: str, config: Any, layers: Sequence[Descriptor]) -> Stored:
        about = await self.store.put(json.dumps(config).encode(), OCI_CONFIG)
        manifest = {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": about.encode(),
            "layers": [layer.encode() for layer in layers],
        }  # fmt: skip
        kept = await self.store.put(json.dumps(manifest).encode(), OCI_MANIFEST)
        await self.store.name(name, kept.digest)
        return self.store.load(kept.digest)

    async def _dockerfile(
        self, image: Image, words: tuple[str, ...], context: Path | None, progress: Progress | None
    ) -> Stored:
        name = f"dockerfile/{_key(words, image.files)}"
        if found := self.store.find(name):
            return found
        if context is None:
            raise ImageFailed("The Dockerfile is not here: deploy the endpoint again.")
        async with self._scratch() as scratch, self._settings.lend() as reach:
            out = await run_buildah(
                self._settings.buildah, context, words, scratch,
                credentials=self._settings.credentials, docker_config=self._settings.docker_config,
                timeout_s=self._settings.timeout_s, progress=progress, reach=reach,
            )  # fmt: skip
            return await adopt_layout(self.store, out, name)

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        scratch = self.store.scratch()
        with kept_in(self.store.directory):
            path = await asyncio.to_thread(scratch.__enter__)
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.to_thread(scratch.__exit__, None, None, None))


def find_uv(given: str | None) -> str | None:
    """Where uv is: as given, beside our interpreter, or on the PATH."""
    own = Path(sysconfig.get_path("scripts")) / "uv"
    return given or (str(own) if own.exists() else shutil.which("uv"))


def _entries(context: Path | None, words: tuple[str, ...]) -> list[Entry]:
    """Files of a copy step with their targets. Raises `ImageFailed`."""
    if context is None:
        raise ImageFailed(f"{words[0]!r} is not here: deploy the endpoint again.")
    source = context / _plain(words[0])
    target = words[1] if words[1].startswith("/") else f"{FILES_DIR}/{words[1]}"
    if source.is_file():
        name = f"{target}{source.name}" if target.endswith("/") else target
        return [Entry(source, name, bool(source.stat().st_mode & 0o100))]
    if not source.is_dir():
        raise ImageFailed(f"{words[0]!r} is not here: deploy the endpoint again.")
    return [
        Entry(p, f"{target.rstrip('/')}/{p.relative_to(source).as_posix()}", bool(p.stat().st_mode & 0o100))
        for p in sorted(source.rglob("*"))
        if p.is_file()
    ]


def _plain(path: str) -> str:
    return Path(path).as_posix()


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _history(done: str, *, empty: bool = False) -> dict[str, Any]:
    # No time: the same steps on the same base are the same image.
    return {"created": datetime.datetime.fromtimestamp(0, datetime.UTC).isoformat(), "created_by": done} | (
        {"empty_layer": True} if empty else {}
    )


def _architecture() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)
