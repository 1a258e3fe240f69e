"""`OciDriver`: a container is an overlay, a configuration, and a call of runc or its kin."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import ClassVar

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.containers.sweep import Plan, sweep
from headrace_runtimes.containers.watchdog import Watchdog
from headrace_runtimes.devices.machine import Machine
from headrace_runtimes.devices.machine import find as find_devices
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.finish import to_the_end
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.hostroot import host_root
from headrace_runtimes.images.machine import machine_settings
from headrace_runtimes.images.prepare import prepare
from headrace_runtimes.images.store import Store
from headrace_runtimes.instance.leftovers import RunDir
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.network.rules import RESOLVER
from headrace_runtimes.oci import criu, loopback, seccomp
from headrace_runtimes.oci.binary import Binary, find
from headrace_runtimes.oci.cgroup import Cgroup, inner_path
from headrace_runtimes.oci.checkpoint import Checkpoints
from headrace_runtimes.oci.container import OciContainer
from headrace_runtimes.oci.criu import chosen as chosen_criu
from headrace_runtimes.oci.directory import Directory
from headrace_runtimes.oci.keeper import DISK, LEAST_LOAD_S, OciKeeper, first_id_of, image_for
from headrace_runtimes.oci.layout import Ground, Own, can_map, lay_out, lay_out_again, own_of
from headrace_runtimes.oci.network import Networks, for_builds
from headrace_runtimes.oci.slots import Slots
from headrace_runtimes.spec import CAPABILITIES, Capability, Owned, RuntimeSettings
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.runtimes")


class OciDriver:
    """See `containers.driver.Driver`. ``binary``: a name or path, None for the first that is installed.

    ``networks`` makes network namespaces, None: `network.egress.Egress`. ``build`` says with what
    images are built; None: on the host's own Python. ``devices``: the root of the tree
    whose accelerators can be assigned. ``least_load_s``: no checkpoint of what loads in a shorter
    time. ``criu``: what makes them, a path or a name; empty: see `criu.chosen`.
    """

    name: ClassVar[str] = "oci"

    def __init__(
        self,
        binary: str | None = None,
        networks: Networks | None = None,
        build: BuildSettings | None = None,
        devices: Path = Path("/"),
        *,
        least_load_s: float = LEAST_LOAD_S,
        criu: str = "",
    ) -> None:
        self.keeper: OciKeeper | None = None
        """Since `open`, where checkpoints can be made (see `capabilities`)."""
        self._least_load_s = least_load_s
        self._criu = chosen_criu(criu)
        self._build = build
        self._devices = devices
        self._machine: Machine | None = None
        self._why_no_checkpoints = ""
        self._opened = False
        self._store: Store | None = None
        self._pins: dict[str, contextlib.ExitStack] = {}
        self._chosen = binary
        self._networks: Networks = networks or Egress()
        self._watchdog: Watchdog | None = None

    def capabilities(self) -> Mapping[Capability, str]:
        """See `Driver.capabilities`."""
        path, why = find(self._chosen)
        if not why and os.geteuid() != 0:
            why = "the host does not run as root"
        no: dict[Capability, str] = {
            "fork": "containers are not forked from each other",
        }
        if not why and seccomp.profile(platform.machine()) is None:
            no["isolation"] = f"there is no system call filter for {platform.machine()}"
        if not why:
            no["networks"] = self._networks.why_not()
            # Cheap enough to look again: a driver that is loaded late is found by the next host.
            no["devices"] = (self._machine or find_devices(self._devices)).why_none()
            no["checkpoint"] = self._why_no_checkpoints if self._opened else self._support(path)[1]
        return {name: no.get(name) or why for name in CAPABILITIES}

    async def open(self, settings: RuntimeSettings) -> None:
        """See `Driver.open`."""
        path, why = find(self._chosen)
        if not path or os.geteuid() != 0:
            raise PrepareFailed(f"The oci runtime cannot run here: {why or 'the host does not run as root'}.")
        self._settings = settings
        self._directory = Directory(settings.run_dir / "c")
        self._binary = Binary(path, self._directory.path / ".state", self._criu)
        self._tag = tag = hashlib.sha256(str(settings.run_dir).encode()).hexdigest()[:10]
        self._cgroups = f"{inner_path(settings.cgroup_parent)}/headrace/{tag}"
        self._images = settings.images_dir or settings.run_dir / "images"
        self._slots = Slots(settings.uid_lock_dir)
        lock = await asyncio.to_thread(self._directory.open)
        try:
            await asyncio.to_thread(self._prepare_ground)
            await self._open_checkpoints()
            # Before there is anything on the machine that it would have to take away.
            self._watchdog = Watchdog(sys.executable, self._plan(), (lock,))
            await self._watchdog.ensure()
            await self._networks.open(settings, tag)
        except OSError as error:
            await asyncio.shield(self.close())
            raise PrepareFailed(
                f"Cannot use {self._directory.path}: {error}. Choose another run directory."
            ) from error
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def close(self) -> None:
        """See `Driver.close`."""
        if not hasattr(self, "_directory"):
            return
        await asyncio.to_thread(self._sweep)
        await self._networks.close()
        if self._watchdog is not None:
            await self._watchdog.close()
            self._watchdog = None
        for pin in self._pins.values():
            pin.close()
        self._pins.clear()
        self._store = None
        self._slots.close()
        self._directory.close()
        if self._settings.images_dir is None:
            await asyncio.to_thread(remove_tree, self._images)
        if self._settings.checkpoints_dir is None:
            await asyncio.to_thread(remove_tree, self._settings.run_dir / "checkpoints")

    async def prepare(self, image: Image, progress: Progress | None) -> Root:
        """See `Driver.prepare`."""
        if image.digest:
            return await self._built(image, progress)
        target = await host_root(self._settings.python, self._images)
        prefix = Path(self._settings.python).parent.parent
        binds = ((prefix, str(prefix)),) if (prefix / "pyvenv.cfg").exists() else ()
        return Root(image.digest, self._settings.python, reference=str(target), binds=binds)

    async def _built(self, image: Image, progress: Progress | None) -> Root:
        """Files of the definition lie where `context_dir` says."""
        if self._store is None:
            self._store = Store(self._images)
            await self._store.open()
        settings = self._build
        if settings is None:
            settings = await asyncio.to_thread(
                machine_settings, os.environ, host_python=self._settings.python, runc=self._binary.path,
                seccomp=seccomp.profile(platform.machine()),
            )  # fmt: skip
            settings = for_builds(self._networks, self._settings, settings)
        context = context_dir(self._images, image)
        pin = contextlib.ExitStack()
        made = await prepare(
            self._store, image, progress, settings=settings, hold=pin,
            context=context if await asyncio.to_thread(context.is_dir) else None,
        )  # fmt: skip
        with self._pins.pop(image.digest, contextlib.nullcontext()):
            self._pins[image.digest] = pin
        reference = ":".join(map(str, made.layers))
        return Root(image.digest, made.python, env=dict(made.env), reference=reference)

    def release(self, root: Root) -> None:
        """See `Driver.release`."""
        self._pins.pop(root.digest, contextlib.ExitStack()).close()

    async def create(self, spec: ContainerSpec) -> OciContainer:
        """See `Driver.create`."""

        async def start(own: Own, resolver: str) -> None:
            await to_the_end(asyncio.to_thread(lay_out, self._ground, spec, own, resolver))
            await self._binary.run(spec.id, own.directory)

        return await self._create(spec, start)

    async def _restore(self, spec: ContainerSpec, checkpoint: Path) -> OciContainer:
        async def start(own: Own, resolver: str) -> None:
            first_id = await asyncio.to_thread(first_id_of, checkpoint)
            await to_the_end(
                asyncio.to_thread(lay_out_again, self._ground, spec, own, checkpoint / DISK, first_id)
            )
            images = own.directory / "checkpoint"
            await to_the_end(asyncio.to_thread(image_for, checkpoint, images, own.first_id))
            await criu.restore(self._binary, spec.id, own.directory, images, checkpoint)
            if spec.network.mode != "host":
                pid = int(await asyncio.to_thread((own.directory / "pid").read_text))
                await asyncio.to_thread(loopback.bring_up, pid)

        return await self._create(spec, start)

    async def _create(
        self, spec: ContainerSpec, start: Callable[[Own, str], Awaitable[None]]
    ) -> OciContainer:
        assert self._watchdog is not None
        await self._watchdog.ensure()
        first_id = self._slots.take()
        own = own_of(self._ground, self._directory.path / spec.id, f"{self._cgroups}/{spec.id}", first_id)
        container = OciContainer(spec, own, self._binary, self._clean_up)
        if self._machine is not None:
            container.machine, container.owner, container.root = self._machine, first_id, first_id
        try:
            netns = await self._networks.make(spec.id, first_id, spec.network)
            await start(own, RESOLVER if netns is not None else "")
            container.started()
            if netns is not None:
                await self._networks.attach(spec.id, container.pid)
        except (OSError, ValueError) as error:
            # Of a process that has ended meanwhile there is nothing to look at; how it ended says more.
            ended = await container.ended_early() if container.gone() else None
            await asyncio.shield(container.remove())
            raise ended or PrepareFailed(f"The container {spec.id} cannot be made: {error}.") from error
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        return container

    async def list_owned(self) -> list[Owned]:
        """See `Driver.list_owned`."""
        return [*await asyncio.to_thread(self._owned), *await self._networks.list_owned()]

    async def _clean_up(self, container: OciContainer) -> None:
        """Take away what is left of one container, whose processes are dead."""
        plan = Plan(str(container.directory), tuple(map(str, container.cgroup.directories())))
        gone = await asyncio.to_thread(sweep, plan)
        await asyncio.to_thread(remove_tree, self._binary.state / container.id)
        await self._networks.remove(container.id)
        if gone:
            self._slots.give_back(container.place.first_id)

    def _prepare_ground(self) -> None:
        self._sweep()
        self._binary.version()
        self._machine = find_devices(self._devices)
        for problem in self._machine.problems:
            log.warning("The CDI specification %s; its devices are not known from it.", problem)
        self._slots.open()
        self._images.mkdir(0o711, parents=True, exist_ok=True)
        self._binary.state.mkdir(0o711)
        self._ground = Ground(
            engine=self._settings.engine_dir,
            template=self._directory.furnish(self._settings.engine_dir, self._cgroups),
            seccomp=seccomp.profile(platform.machine()),
            idmap=can_map(self._images, self._directory.path / ".probe"),
            edits=self._machine.at_creation(),
            later=self._machine.nodes() if Cgroup(self._cgroups).unified else (),
        )

    async def _open_checkpoints(self) -> None:
        versions, why = await asyncio.to_thread(self._support, self._binary.path)
        if versions is not None and self._ground.template is None:
            versions, why = None, "the disks of containers are in memory here"
        self._why_no_checkpoints, self._opened = why, True
        if versions is None:
            return
        where = self._settings.checkpoints_dir or self._settings.run_dir / "checkpoints"
        checkpoints = Checkpoints(where, self._binary)
        await checkpoints.open(versions)
        self.keeper = OciKeeper(
            checkpoints, versions, self._settings.engine_dir, self._restore, self._least_load_s
        )

    def _support(self, path: str) -> tuple[criu.Versions | None, str]:
        return criu.support(Binary(path, Path(), self._criu))

    def _plan(self) -> Plan:
        run_dir = RunDir(self._settings.run_dir)
        return Plan(
            directory=str(self._directory.path),
            cgroups=tuple(map(str, Cgroup(self._cgroups).places())),
            commands=(self._binary.start,),
            hooks=self._networks.sweep_commands(self._settings, self._tag),
            emptied=(str(run_dir.sandboxes), str(run_dir.sockets)),
        )

    def _sweep(self) -> None:
        self._directory.sweep(self._plan(), self._cgroups)

    def _owned(self) -> list[Owned]:
        names = self._directory.containers()
        return [*(Owned("container", name) for name in names), *self._directory.owned(self._cgroups)]


def context_dir(images: Path, image: Image) -> Path:
    """Where the files that a definition names are, as `images.context.unpack` lays them out."""
    return images / "contexts" / image.digest
