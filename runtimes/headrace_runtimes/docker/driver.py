"""`DockerDriver`: a container is what the daemon makes of our request, on a disk and in a cgroup of ours."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.containers.sweep import Plan, sweep
from headrace_runtimes.containers.watchdog import Watchdog
from headrace_runtimes.devices.machine import Machine
from headrace_runtimes.devices.machine import find as find_devices
from headrace_runtimes.docker import sweeper
from headrace_runtimes.docker.api import Engine, Refused, socket_of
from headrace_runtimes.docker.collect import collect_for_ever
from headrace_runtimes.docker.container import DockerContainer
from headrace_runtimes.docker.daemon import Daemon, daemon_of, refuse_runtime
from headrace_runtimes.docker.images import Images
from headrace_runtimes.docker.network import move_links
from headrace_runtimes.docker.probe import why_none
from headrace_runtimes.docker.request import ID_LABEL, RUN_LABEL, Place, creation, disk_places
from headrace_runtimes.docker.strays import Strays
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.finish import to_the_end
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.machine import machine_settings
from headrace_runtimes.instance.leftovers import RunDir
from headrace_runtimes.instance.uids import Uids
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.network.rules import RESOLVER
from headrace_runtimes.oci import seccomp
from headrace_runtimes.oci.binary import find
from headrace_runtimes.oci.cgroup import Cgroup, inner_path
from headrace_runtimes.oci.directory import Directory
from headrace_runtimes.oci.disk import Disk
from headrace_runtimes.oci.network import Networks, for_builds
from headrace_runtimes.spec import CAPABILITIES, Capability, Owned, RuntimeSettings
from headrace_runtimes.trees import remove_tree

LOOK_AGAIN_S = 30.0
QUIET_S = ("0", "0", "1.0")
"""The watchdog looks so often, the last time for what a daemon was still making."""


class DockerDriver:
    """See `containers.driver.Driver` and `runtime.DockerRuntime` for the arguments."""

    name: ClassVar[str] = "docker"

    def __init__(
        self,
        address: str | None = None,
        networks: Networks | None = None,
        build: BuildSettings | None = None,
        devices: Path = Path("/"),
    ) -> None:
        self._address, self._devices = address, devices
        self._build = build
        # Never Docker's own: those hold back neither addresses nor the metadata of clouds.
        self._networks: Networks = networks or Egress()
        self._machine: Machine | None = None
        self._engine: Engine | None = None
        self._daemon: Daemon | None = None
        self._images: Images | None = None
        self._watchdog: Watchdog | None = None
        self._template: Path | None = None
        self._look: tuple[float, str] | None = None
        self._living: set[str] = set()
        self._collecting: asyncio.Task[None] | None = None

    def capabilities(self) -> Mapping[Capability, str]:
        """See `Driver.capabilities`."""
        why = ""
        try:
            path = socket_of(self._address)
            if self._engine is None and os.geteuid() == 0:
                why = self._looked(path)
        except PrepareFailed as failed:
            why = str(failed).rstrip(".")
        if not why and os.geteuid() != 0:
            why = "the host does not run as root"
        no: dict[Capability, str] = {
            "fork": "containers are not forked from each other",
            "checkpoint": "Docker's checkpoints are an experiment of its daemon",
        }
        if self._daemon is not None and isinstance(self._networks, Egress):
            no["networks"] = self._networks.why_not()
        if seccomp.profile(platform.machine()) is None:
            no["isolation"] = f"there is no system call filter for {platform.machine()}"
        elif self._daemon is not None and not self._daemon.seccomp:
            no["isolation"] = "the daemon was built without system call filters"
        if not why:
            # Cheap enough to look again: a driver that is loaded late is found by the next host.
            no["devices"] = (self._machine or find_devices(self._devices)).why_none()
        return {name: no.get(name) or why for name in CAPABILITIES}

    def _looked(self, path: str) -> str:
        """Why there is no daemon that can be used: asked once where there is one, else now and then."""
        if self._look is None or (self._look[1] and time.monotonic() > self._look[0] + LOOK_AGAIN_S):
            self._look = time.monotonic(), why_none(path, os.uname().release)
        return self._look[1]

    async def open(self, settings: RuntimeSettings) -> None:
        """See `Driver.open`."""
        if os.geteuid() != 0:
            raise PrepareFailed("The docker runtime cannot run here: the host does not run as root.")
        self._settings = settings
        self._socket = socket_of(self._address)
        self._tag = hashlib.sha256(f"docker {settings.run_dir}".encode()).hexdigest()[:10]
        self._directory = Directory(settings.run_dir / "c")
        self._uids = Uids(settings.uid_lock_dir, settings.first_uid, settings.uid_count)
        engine = Engine(self._socket)
        await engine.open()
        try:
            info = await engine.call("GET", "/info")
            self._daemon = daemon_of(info, os.uname().release)
            refuse_runtime(info, await engine.call("GET", "/version"))
        except BaseException:
            await engine.close()
            raise
        self._engine = engine
        self._cgroups = self._daemon.cgroups(inner_path(settings.cgroup_parent), self._tag)
        kept = settings.images_dir
        self._images_dir = kept or settings.run_dir / "images"
        self._images = Images(
            self._engine, self._images_dir, settings.python, "" if kept is not None else self._tag
        )
        self._living.clear()
        self._strays = Strays(self._engine, self._tag, self._living)
        if kept is not None:
            limit = settings.images_bytes
            self._collecting = asyncio.create_task(
                collect_for_ever(self._engine, limit, self._images.again.keys())
            )
        try:
            lock = await asyncio.to_thread(self._directory.open)
            await asyncio.to_thread(self._prepare_ground)
            # Before there is anything on the machine that it would have to take away.
            self._watchdog = Watchdog(sys.executable, self._plan(QUIET_S), (lock,))
            await self._watchdog.ensure()
            await self._networks.open(settings, self._tag)
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
        if self._engine is None or self._images is None:
            return
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.wait([self._collecting])
            self._collecting = None
        await self._strays.close()
        await asyncio.to_thread(self._sweep)
        await self._networks.close()
        if self._watchdog is not None:
            await self._watchdog.close()
            self._watchdog = None
        self._images.close()
        await self._engine.close()
        self._engine = None
        self._uids.close()
        self._directory.close()
        if self._settings.images_dir is None:
            await asyncio.to_thread(remove_tree, self._images_dir)

    async def prepare(self, image: Image, progress: Progress | None) -> Root:
        """See `Driver.prepare`."""
        assert self._images is not None
        if not image.digest:
            return await self._images.plain()
        build = self._build
        if build is None:
            build = await asyncio.to_thread(
                machine_settings, os.environ, host_python=self._settings.python, runc=find(None)[0] or "runc",
                seccomp=seccomp.profile(platform.machine()),
            )  # fmt: skip
            build = for_builds(self._networks, self._settings, build)
        return await self._images.built(image, progress, build)

    def release(self, root: Root) -> None:
        """See `Driver.release`."""
        if self._images is not None:
            self._images.release(root)

    async def create(self, spec: ContainerSpec) -> DockerContainer:
        """See `Driver.create`."""
        assert self._watchdog is not None
        assert self._engine is not None
        assert self._daemon is not None
        assert self._images is not None
        assert self._machine is not None
        await self._watchdog.ensure()
        uid = self._uids.take()
        assert uid is not None
        directory = self._directory.path / spec.id
        own = Disk(directory / "disk", directory / "image" if self._template is not None else None)
        cgroup = Cgroup(f"{self._cgroups}/{spec.id}" if self._daemon.own_cgroups else self._cgroups)
        container = DockerContainer(
            spec, uid=uid, disk=own, cgroup=cgroup, engine=self._engine, remove=self._clean_up
        )
        container.machine, container.owner = self._machine, uid
        self._living.add(spec.id)
        resolv = directory / "resolv.conf"
        place = Place(
            engine=str(self._settings.engine_dir), disk=str(own.path), uid=uid, tag=self._tag,
            cgroup_parent=self._daemon.parent(self._cgroups, spec.id),
            seccomp=seccomp.profile(platform.machine()), remapped=self._daemon.remapped,
            volumes=self._images.volumes.get(spec.root.reference, ()), edits=self._machine.at_creation(),
            later=self._machine.nodes() if cgroup.unified else (),
        )  # fmt: skip
        try:
            netns = await self._networks.make(spec.id, uid, spec.network)
            if netns is not None:
                place = replace(place, resolv=str(resolv))
            await to_the_end(asyncio.to_thread(lay_out, own, self._template, uid, place))
            await to_the_end(self._start(container, creation(spec, place)))
            if netns is not None:
                await to_the_end(move_links(netns, container.pid))
        except OSError as error:
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
        assert self._engine is not None
        query = {"all": "1", "filters": f'{{"label":["{RUN_LABEL}={self._tag}"]}}'}
        told = await self._engine.call("GET", "/containers/json", query=query)
        found = [Owned("container", str(one["Labels"].get(ID_LABEL, one["Id"]))) for one in told or ()]
        found += await asyncio.to_thread(self._directory.owned, self._cgroups)
        return found + await self._networks.list_owned()

    async def _start(self, container: DockerContainer, request: dict[str, Any]) -> None:
        assert self._engine is not None
        assert self._images is not None
        # Its name at first: when the answer does not come it may be there all the same.
        container.name = f"headrace-{self._tag}-{container.id}"
        ask = partial(
            self._engine.call, "POST", "/containers/create", request, query={"name": container.name}
        )
        try:
            made = await ask()
        except Refused as refused:
            if refused.status == 0:
                self._strays.look()
            # Somebody has removed its image from the daemon.
            if refused.status != 404 or not await self._images.bring_back(request["Image"]):
                raise
            made = await ask()
        container.name = str(made["Id"])
        await self._images.use(request["Image"])
        await self._engine.call("POST", f"/containers/{container.name}/start")
        await container.started()

    async def _clean_up(self, container: DockerContainer) -> None:
        """Take away what is left of one container, whose processes are dead."""
        self._living.discard(container.id)
        if container.name:
            await self._strays.remove(container.name)
        cgroups = container.cgroup.directories()
        gone = await asyncio.to_thread(sweep, Plan(str(container.directory), tuple(map(str, cgroups))))
        await self._networks.remove(container.id)
        if gone:
            self._uids.give_back(container.uid)

    def _prepare_ground(self) -> None:
        self._sweep()
        self._directory.make_again()
        self._machine = find_devices(self._devices)
        self._uids.open()
        self._images_dir.mkdir(0o711, parents=True, exist_ok=True)
        own = self._daemon is not None and self._daemon.own_cgroups
        self._template = self._directory.furnish(self._settings.engine_dir, self._cgroups if own else "")

    def _plan(self, quiet_s: Sequence[str]) -> Plan:
        run_dir = RunDir(self._settings.run_dir)
        hooks = [(sys.executable, "-I", "-S", sweeper.__file__, self._socket, self._tag, s) for s in quiet_s]
        return Plan(
            directory=str(self._directory.path),
            cgroups=tuple(map(str, Cgroup(self._cgroups).places())),
            hooks=(*hooks, *self._networks.sweep_commands(self._settings, self._tag)),
            emptied=(str(run_dir.sandboxes), str(run_dir.sockets)),
        )

    def _sweep(self) -> None:
        self._directory.sweep(self._plan(QUIET_S[:1]), self._cgroups)


def lay_out(own: Disk, template: Path | None, uid: int, place: Place) -> None:
    """Mount the disk, with a directory for each place. Blocks for milliseconds. Raises ``OSError``."""
    # Root alone comes by: what is below is open to all users of the container.
    own.path.parent.mkdir(mode=0o700)
    own.path.mkdir()
    own.mount(template)
    if place.resolv:
        Path(place.resolv).write_text(f"nameserver {RESOLVER}\noptions timeout:3 attempts:3\n")
        Path(place.resolv).chmod(0o644)
    for name in disk_places(place.volumes).values():
        path = own.path / name
        path.mkdir()
        os.chown(path, uid, uid)
        path.chmod(0o1777 if name.endswith("tmp") else 0o755)
