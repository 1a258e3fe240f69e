"""What one container is on disk before its binary is called: layers, a disk, a configuration."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.containers.driver import CODE, DOOR_DIR, ENGINE, HOME, SECRETS, ContainerSpec
from headrace_runtimes.devices.edits import Edits, Node
from headrace_runtimes.oci import mounts, syscalls
from headrace_runtimes.oci.bundle import Place, configuration
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.oci.disk import Disk
from headrace_runtimes.oci.slots import FIRST_ID, ID_COUNT

TMP = "/tmp"  # noqa: S108 - of the container, on its own disk
OWN = (HOME, CODE, ENGINE, DOOR_DIR, SECRETS, TMP)
"""Directories that every container has, whatever its image holds."""


@dataclass(frozen=True)
class Ground:
    """What all containers of a driver stand on. ``template``: the empty disk, None for one in memory."""

    engine: Path
    template: Path | None
    seccomp: Mapping[str, Any] | None
    idmap: bool
    """Whether layers can be shown with their owners shifted; else those appear as nobody's."""
    edits: Edits = field(default_factory=Edits)
    """What accelerators need from a container's creation on."""
    later: Sequence[Node] = ()
    """See `Place`."""


@dataclass(frozen=True)
class Own:
    """What one container has of its own."""

    directory: Path
    disk: Disk
    cgroup: str
    """As in ``cgroupsPath``."""
    first_id: int
    """The host's id of its root."""


def own_of(ground: Ground, directory: Path, cgroup: str, first_id: int) -> Own:
    """Names only; nothing is made."""
    image = directory / "image" if ground.template is not None else None
    return Own(directory, Disk(directory / "disk", image), cgroup, first_id)


def lay_out(ground: Ground, spec: ContainerSpec, own: Own, resolver: str = "") -> None:
    """Fill its directory. Blocks for milliseconds. Raises ``OSError``: part of it may be there then."""
    directory, first_id = own.directory, own.first_id
    _make(directory)
    own.disk.mount(ground.template)
    upper, work = own.disk.path / "upper", own.disk.path / "work"
    for made in (upper, work, *(upper / name.lstrip("/") for name in OWN)):
        made.mkdir(parents=True, exist_ok=True)
    (upper / "etc").mkdir()
    for name, text in _name_files(spec.network.mode == "host", resolver).items():
        (upper / "etc" / name).write_text(text)
    for path in (upper, *upper.rglob("*")):
        os.chown(path, first_id, first_id)
        path.chmod(0o755)
    (upper / TMP.lstrip("/")).chmod(0o1777)
    _finish(ground, spec, own)


def lay_out_again(ground: Ground, spec: ContainerSpec, own: Own, disk: Path, first_id: int) -> None:
    """As `lay_out`, on a copy of the disk of a container whose root's id on the host was ``first_id``."""
    _make(own.directory)
    own.disk.mount(disk)
    if first_id != own.first_id:
        _shift(own.disk.path / "upper", own.first_id - first_id)
    _finish(ground, spec, own)


def _name_files(host: bool, resolver: str) -> dict[str, str]:
    """Files of ``/etc`` by which names are found, whatever the image has there."""
    own = {"hosts": "127.0.0.1\tlocalhost\n127.0.0.1\tsandbox\n"}
    if host:
        for name in ("hosts", "resolv.conf"):
            with contextlib.suppress(OSError, UnicodeError):
                own[name] = Path("/etc", name).read_text()
    elif resolver:
        own["resolv.conf"] = f"nameserver {resolver}\noptions timeout:3 attempts:3\n"
    return own


def _make(directory: Path) -> None:
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)
    for name in ("root", "disk", "lower"):
        (directory / name).mkdir()


def _shift(top: Path, by: int) -> None:
    """All files below, and ``top``, belong to the same users of another namespace."""
    for path in (top, *top.rglob("*")):
        found = path.lstat()
        os.lchown(path, found.st_uid + by, found.st_gid + by)
        if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
            # Who changes hands loses them.
            path.chmod(stat.S_IMODE(found.st_mode))


def _finish(ground: Ground, spec: ContainerSpec, own: Own) -> None:
    directory, first_id = own.directory, own.first_id
    upper, work = own.disk.path / "upper", own.disk.path / "work"
    # Its own root comes by, and no other user of the machine: what is below is open to all users inside.
    os.chown(directory, 0, first_id)
    directory.chmod(0o710)
    # Before there is a process whose sockets nobody counts.
    Cgroup(own.cgroup).limit_sockets()
    layers = [Path(layer) for layer in spec.root.reference.split(":")]
    mounts.overlay(_lower(ground, layers, directory, first_id), upper, work, directory / "root")
    place = Place(
        root=directory / "root", engine=ground.engine, cgroup=own.cgroup, uid=first_id,
        seccomp=ground.seccomp, edits=ground.edits, later=ground.later,
    )  # fmt: skip
    (directory / "config.json").write_text(json.dumps(configuration(spec, place)))


def can_map(layer: Path, directory: Path) -> bool:
    """Whether ``layer`` can be shown with its owners shifted. Blocks; ``directory`` is made and removed."""
    directory.mkdir()
    try:
        userns = syscalls.user_namespace(FIRST_ID, ID_COUNT)
        try:
            mounts.mapped(layer, directory, userns)
        finally:
            os.close(userns)
        syscalls.unmount(directory)
    except OSError:
        return False
    finally:
        directory.rmdir()
    return True


def _lower(ground: Ground, layers: list[Path], directory: Path, first_id: int) -> list[Path]:
    if not ground.idmap:
        return layers
    userns = syscalls.user_namespace(first_id, ID_COUNT)
    try:
        shown = []
        for number, layer in enumerate(layers):
            target = directory / "lower" / str(number)
            target.mkdir()
            mounts.mapped(layer, target, userns)
            shown.append(target)
    finally:
        os.close(userns)
    return shown
