"""Images as the daemon knows them: the host's own Python as one layer, and what the store has built."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import Root
from headrace_runtimes.docker.api import Engine, Refused
from headrace_runtimes.docker.request import IMAGE_LABEL, RUN_LABEL
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.archive import write_docker_archive
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.context import directory as context_directory
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.hostroot import host_root
from headrace_runtimes.images.prepare import prepare
from headrace_runtimes.images.store import Store

PLAIN = "headrace/plain"
BUILT = "headrace/image"
NOTE_EVERY_S = 3600.0


class Images:
    """Those of one driver. ``tag``: not empty when nobody else shall use them; they go with the runtime's
    containers then (see `docker.sweeper`)."""

    def __init__(self, engine: Engine, directory: Path, python: str, tag: str = "") -> None:
        self._engine, self._directory, self._python = engine, directory, python
        self._suffix = f"-{tag}" if tag else ""
        self._labels = {IMAGE_LABEL: "1"} | ({RUN_LABEL: tag} if tag else {})
        self._store: Store | None = None
        self._pins: dict[str, contextlib.ExitStack] = {}
        self._touched: dict[str, float] = {}
        self._bringing = asyncio.Lock()
        self.again: dict[str, Callable[[], Awaitable[object]]] = {}
        """Those that are in use here -> how each is put there once more."""
        self.volumes: dict[str, tuple[str, ...]] = {}
        """Reference -> places that the image wants to be writable."""

    async def plain(self) -> Root:
        """The host's own Python. Raises `PrepareFailed`."""
        root = await host_root(self._python, self._directory)
        told = root.with_name(f"{root.name}.sha256")
        digest = await asyncio.to_thread(_read, told)
        if not digest or not await self._has(f"{PLAIN}:{digest}{self._suffix}"):
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=".docker-") as scratch:
                archive = Path(scratch, "root.tar")
                digest = await asyncio.to_thread(write_root, root, archive)
                name = f"{PLAIN}:{digest}{self._suffix}"
                if not await self._has(name):
                    labels = "LABEL " + " ".join(f"{name}={value}" for name, value in self._labels.items())
                    where = {"fromSrc": "-", "repo": PLAIN, "tag": f"{digest}{self._suffix}"}
                    await self._engine.send("/images/create", archive, where | {"changes": labels})
            await asyncio.to_thread(told.write_text, digest)
        name = f"{PLAIN}:{digest}{self._suffix}"
        self.again[name] = self.plain
        await self.use(name)
        prefix = Path(self._python).parent.parent
        binds = ((prefix, str(prefix)),) if (prefix / "pyvenv.cfg").exists() else ()
        return Root("", self._python, reference=name, binds=binds)

    async def built(self, image: Image, progress: Progress | None, settings: BuildSettings) -> Root:
        """An image of layers. Raises `PrepareFailed` and its kin."""
        if self._store is None:
            self._store = Store(self._directory)
            await self._store.open()
        context = context_directory(self._directory, image.digest)
        pin = contextlib.ExitStack()
        made = await prepare(
            self._store, image, progress, settings=settings, hold=pin,
            context=context if await asyncio.to_thread(context.is_dir) else None,
        )  # fmt: skip
        with self._pins.pop(image.digest, contextlib.nullcontext()):
            self._pins[image.digest] = pin
        tag = made.digest.removeprefix("sha256:") + self._suffix
        name = f"{BUILT}:{tag}"
        if not await self._has(name):
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=".docker-") as scratch:
                archive = Path(scratch, "image.tar")
                stored = self._store.load(made.digest)
                await write_docker_archive(self._store, stored, name, archive, self._labels)
                await self._engine.send("/images/load", archive, {"quiet": "1"})
        if not await self._has(name):
            raise PrepareFailed(f"Docker has taken {name} and does not have it: look into the daemon's log.")
        self.again[name] = partial(self.built, image, None, settings)
        await self.use(name)
        return Root(image.digest, made.python, env=dict(made.env), reference=name)

    async def use(self, name: str) -> None:
        """Have the daemon note its use, now and then: who collects begins with what is long unused."""
        now = time.monotonic()
        if now < self._touched.get(name, -NOTE_EVERY_S) + NOTE_EVERY_S:
            return
        self._touched[name] = now
        repository, _, tag = name.partition(":")
        with contextlib.suppress(Refused):
            await self._engine.call("POST", f"/images/{name}/tag", query={"repo": repository, "tag": tag})

    async def bring_back(self, name: str) -> bool:
        """Put an image there that somebody has removed from the daemon; whether it is one of ours.

        Raises `PrepareFailed` and its kin.
        """
        again = self.again.get(name)
        if again is None:
            return False
        async with self._bringing:
            self._touched.pop(name, None)
            await again()
        return True

    def release(self, root: Root) -> None:
        """Nothing uses it here: who collects may take it, from the daemon too."""
        self.again.pop(root.reference, None)
        self._touched.pop(root.reference, None)
        self._pins.pop(root.digest, contextlib.ExitStack()).close()

    def close(self) -> None:
        """Let go of what is kept on this machine."""
        for pin in self._pins.values():
            pin.close()
        self._pins.clear()
        self._store = None

    async def _has(self, name: str) -> bool:
        try:
            told = await self._engine.call("GET", f"/images/{name}/json")
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        self.volumes[name] = volumes_of(told)
        return True


def volumes_of(told: object) -> tuple[str, ...]:
    """What an image says must be writable, as ``GET /images/{name}/json`` tells it."""
    config = told.get("Config") if isinstance(told, dict) else None
    found = config.get("Volumes") if isinstance(config, dict) else None
    return tuple(sorted(str(path) for path in found)) if isinstance(found, dict) else ()


def write_root(root: Path, target: Path) -> str:
    """A tar archive of a directory, the same for the same content: its SHA-256 (hex). Blocks for a second.

    Raises `PrepareFailed`.
    """
    try:
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
            for path in _sorted(root):
                info = archive.gettarinfo(str(path), str(path.relative_to(root)))
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                # Bytecode names the second of its source; a link's own time is of no use to anybody.
                info.mtime = int(info.mtime) if info.isfile() else 0
                if info.isfile():
                    with path.open("rb") as file:
                        archive.addfile(info, file)
                else:
                    archive.addfile(info)
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PrepareFailed(f"{root} cannot be packed for Docker: {error}.") from error


def _sorted(root: Path) -> Sequence[Path]:
    return sorted(
        Path(at, name) for at, directories, files in os.walk(root) for name in (*directories, *files)
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
