"""Mounts: overlays on the host, layers owned as the image says, directories shown in a container."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from headrace_runtimes.devices.edits import Bind, Node
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import syscalls
from headrace_runtimes.oci.syscalls import (
    ATTR_IDMAP,
    ATTR_NODEV,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MS_NODEV,
    MS_NOSUID,
)


def overlay(lower: list[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount ``lower`` (top first) with a writable ``upper`` at ``target``. Raises ``OSError``."""
    data = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    # For the host's users: inside, nobody gains rights by a file anyhow.
    syscalls.mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, data)


def mapped(source: Path, target: Path, userns: int) -> None:
    """Mount ``source`` read-only at ``target``, its owners shifted into a user namespace.

    Raises ``OSError``: where the kernel or the file system cannot.
    """
    tree = syscalls.open_tree(source)
    try:
        syscalls.set_attributes(tree, ATTR_RDONLY | ATTR_NODEV | ATTR_IDMAP, userns, deep=False)
        syscalls.attach(tree, target)
    finally:
        os.close(tree)


def show(pid: int, source: Path, target: str) -> None:
    """Show ``source`` read-only at ``target`` in the mount namespace of ``pid``. Raises `PrepareFailed`.

    Must run in a thread of its own that ends afterwards: it leaves the file system context of the process.
    """
    try:
        tree = syscalls.open_tree(source)
        try:
            syscalls.set_attributes(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
            syscalls.enter_mounts_of(pid)
            # In the container's own writable layer, before any code of its user runs.
            _make_dirs(Path(target))
            syscalls.attach(tree, target)
        finally:
            os.close(tree)
    except OSError as error:
        raise PrepareFailed(f"{source} cannot be shown in the container: {error.strerror}.") from error


def show_devices(
    pid: int, nodes: Sequence[Node], binds: Sequence[Bind], stage: Path, *, owner: int, root: int
) -> None:
    """Show device nodes and what belongs to them in the mount namespace of ``pid``. Raises `PrepareFailed`.

    The nodes are made anew, for ``owner`` (an id of the host) alone, in memory that only the container keeps:
    the host's own may be anybody's, on a file system that a container must not see. ``root`` makes the places
    they appear at: the container's root. ``stage`` is made and removed. Must run in a thread like `show`.
    """
    trees: list[tuple[int, str, bool]] = []
    what = "The device nodes"
    try:
        try:
            _make_nodes(nodes, stage, owner, trees)
            for bind in binds:
                what = bind.source
                tree = syscalls.open_tree(Path(bind.source))
                trees.append((tree, bind.target, os.path.isdir(bind.source)))
                syscalls.set_attributes(
                    tree, ATTR_NOSUID | ATTR_NODEV | (ATTR_RDONLY if bind.read_only else 0)
                )
            syscalls.enter_mounts_of(pid)
            syscalls.act_as(root)
            for tree, target, is_directory in trees:
                what = target
                _make_place(target, is_directory)
                syscalls.attach(tree, target)
        finally:
            for tree, _, _ in trees:
                os.close(tree)
    except OSError as error:
        raise PrepareFailed(f"{what} cannot be shown in the container: {error.strerror}.") from error


def _make_nodes(nodes: Sequence[Node], stage: Path, owner: int, trees: list[tuple[int, str, bool]]) -> None:
    if not nodes:
        return
    stage.mkdir(0o700)
    try:
        syscalls.mount("devices", stage, "tmpfs", MS_NOSUID, "mode=700,size=64k")
        try:
            for number, node in enumerate(nodes):
                made = stage / str(number)
                kind = stat.S_IFBLK if node.kind == "b" else stat.S_IFCHR
                os.mknod(made, kind | 0o600, os.makedev(node.major, node.minor))
                os.chown(made, owner, owner)
                trees.append((syscalls.open_tree(made), node.path, False))
        finally:
            syscalls.unmount(stage)
    finally:
        stage.rmdir()


def _make_place(target: str, is_directory: bool) -> None:
    """Have something to mount on. Whatever else is there (a link, what was left in its way) goes."""
    os.makedirs(target if is_directory else os.path.dirname(target), 0o755, exist_ok=True)
    if is_directory:
        return
    try:
        if stat.S_ISREG(os.lstat(target).st_mode):
            return
        os.unlink(target)
    except FileNotFoundError:
        pass
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _make_dirs(path: Path) -> None:
    """A directory to mount at, open to the container's users whatever our umask is."""
    for part in (*reversed(path.parents), path):
        if not part.exists():
            part.mkdir()
            part.chmod(0o755)
