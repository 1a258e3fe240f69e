"""Mounts: overlays on the host, layers owned as the image says, directories shown in a container."""

from __future__ import annotations

import os
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import syscalls
from headrace_runtimes.oci.syscalls import ATTR_IDMAP, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, MS_NODEV


def overlay(lower: list[Path], upper: Path, work: Path, target: Path) -> None:
    """Mount ``lower`` (top first) with a writable ``upper`` at ``target``. Raises ``OSError``."""
    data = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", target, "overlay", MS_NODEV, data)


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
            syscalls.attach(tree, target)
        finally:
            os.close(tree)
    except OSError as error:
        raise PrepareFailed(f"{source} cannot be shown in the container: {error.strerror}.") from error
