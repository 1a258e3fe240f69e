"""Keeps loaded containers of one driver on disk, and makes more of them: see `containers.driver.Keeper`.

Ids of another user namespace are written into a copy of the image: so of one checkpoint there may be any
number of containers at a time, each with ids of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from headrace_runtimes.containers.driver import CODE, Container, ContainerSpec, Create, NotKept, Park, Root
from headrace_runtimes.oci.bundle import CRIU_CONFIG
from headrace_runtimes.oci.checkpoint import CheckpointFailed, Checkpoints, Identity
from headrace_runtimes.oci.container import OciContainer
from headrace_runtimes.oci.criu import IMAGE, Versions
from headrace_runtimes.oci.disk import copy_sparse
from headrace_runtimes.spec import Base

log = logging.getLogger("headrace.runtimes")
LEAST_LOAD_S = 2.0
"""A shorter ``load`` is as quick as what a restored container costs."""
DISK, OWN = "disk.img", "own.json"
_FIFREEZE, _FITHAW = 0xC004_5877, 0xC004_5878
_T = TypeVar("_T")

Restore = Callable[[ContainerSpec, Path], Awaitable[OciContainer]]
"""A container of a specification, from the directory of a checkpoint."""


class OciKeeper:
    """Over the ``checkpoints`` of this machine. ``engine``: the directory of our engine."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        versions: Versions,
        engine: Path,
        restore: Restore,
        least_load_s: float,
    ) -> None:
        self.checkpoints, self._versions = checkpoints, versions
        self._engine = engine
        self._restore, self._least_load_s = restore, least_load_s
        self._digest = ""
        self._making: set[str] = set()

    async def restored(self, base: Base, root: Root, up: Callable[[Create], Awaitable[_T]]) -> _T | None:
        """See `Keeper.restored`."""
        identity = await self._identity(base, root)
        if identity is None:
            return None
        return await self.checkpoints.restore(identity, lambda directory: up(self._create(base, directory)))

    async def wants(self, base: Base, root: Root, load_s: float) -> bool:
        """See `Keeper.wants`."""
        if load_s < self._least_load_s:
            return False
        identity = await self._identity(base, root)
        if identity is None or identity.key in self._making:
            return False
        return not await self.checkpoints.why_not(identity) and await self.checkpoints.find(identity) is None

    async def keep(
        self, base: Base, root: Root, container: Container, park: Park, up: Callable[[Create], Awaitable[_T]]
    ) -> _T:
        """See `Keeper.keep`."""
        assert isinstance(container, OciContainer)
        identity = await self._identity(base, root)
        if identity is None:
            raise NotKept("It holds secrets.", ended=False)
        # Mounted into the running container: runc does not know of it.
        told = f"external mnt[{CODE}]:{CODE}\n"
        await asyncio.to_thread((container.directory / CRIU_CONFIG).write_text, told)
        self._making.add(identity.key)
        try:
            return await self.checkpoints.make(
                identity, container.id, lambda directory: up(self._create(base, directory)),
                before=park, beside=lambda directory: asyncio.to_thread(_beside, container, directory),
            )  # fmt: skip
        except CheckpointFailed as failed:
            raise NotKept(str(failed), ended=failed.ended) from failed
        finally:
            self._making.discard(identity.key)

    def outcomes(self) -> Mapping[str, int]:
        """See `Keeper.outcomes`."""
        return asdict(self.checkpoints.counts)

    def _create(self, base: Base, directory: Path) -> Create:
        async def create(spec: ContainerSpec) -> Container:
            assert base.loaded is not None
            return await self._restore(replace(spec, code=base.loaded.code_dir), directory)

        return create

    async def _identity(self, base: Base, root: Root) -> Identity | None:
        """None for a base whose memory holds secrets: they stay in memory."""
        loaded = base.loaded
        if loaded is None or loaded.secrets:
            return None
        if not self._digest:
            self._digest = await asyncio.to_thread(_digest, self._engine)
        more = (
            base.key, base.preload, base.imports, base.network.mode, loaded.entry, loaded.handler,
            root.python, root.reference, sorted(root.env.items()),
        )  # fmt: skip
        return Identity(
            self._versions,
            str(loaded.code_dir),
            root.digest,
            self._digest,
            json.dumps(more),
            dict(loaded.env),
        )


def _beside(container: OciContainer, directory: Path) -> None:
    """What of a container is not in its memory. Blocks. Raises ``OSError``."""
    disk = container.disk
    if disk.image is None:
        raise OSError("its disk is in memory")
    with _frozen(disk.path):
        copy_sparse(disk.image, directory / DISK)
    (directory / OWN).write_text(json.dumps({"first_id": container.place.first_id}))


@contextmanager
def _frozen(path: Path) -> Iterator[None]:
    """All that was written is in the file system's file, and nothing is written."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(top, _FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(top, _FITHAW, 0)
    finally:
        os.close(top)


def first_id_of(directory: Path) -> int:
    """The host's id of the root of what a checkpoint is of. Raises ``OSError``, ``ValueError``."""
    return int(json.loads((directory / OWN).read_text())["first_id"])


def image_for(directory: Path, target: Path, first_id: int) -> None:
    """The image of a checkpoint in ``target/image``, for the ids of another namespace. Raises ``OSError``."""
    old = first_id_of(directory)
    image = target / IMAGE
    image.mkdir(mode=0o700, parents=True)
    # CRIU reads it as us, and then as the root of the namespace; nobody else gets through the directory.
    os.chown(image, 0, first_id)
    image.chmod(0o710)
    for path in (directory / IMAGE).iterdir():
        made = image / path.name
        if path.name.startswith("userns-"):
            made.write_bytes(with_ids(path.read_bytes(), old, first_id))
            continue
        try:
            os.link(path, made)
        except OSError:
            shutil.copyfile(path, made)


def with_ids(image: bytes, old: int, new: int) -> bytes:
    """CRIU's image of a user namespace whose ids begin at ``new`` instead of ``old`` on the host.

    Numbers between 2^28 and 2^31 take five bytes: lengths stay as they are. Raises ``OSError``.
    """
    told = image.count(_varint(old))
    if told != _MAPPINGS or len(_varint(old)) != len(_varint(new)):
        raise OSError(f"the image names the ids {told} times instead of {_MAPPINGS}")
    return image.replace(_varint(old), _varint(new))


_MAPPINGS = 2
"""One for users, one for groups."""


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def _digest(engine: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(engine.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()
