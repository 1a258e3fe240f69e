"""A private view of the file system for processes that drop their uid.

A sandbox's uid must be able to read the interpreter, its libraries and the code even when they lie below a
directory that only root may enter (``/root/.pyenv``), and must not see the platform's own directories.
`plan` decides which mounts that takes, `apply` makes them.
"""

from __future__ import annotations

import os
import stat
from typing import Callable, Dict, List, NamedTuple, Sequence, Set, Tuple

import hr_sys


class Step(NamedTuple):
    """One mount, in the order of `plan`: ``cover`` hides what is below ``path``, ``bind`` brings it back."""

    kind: str
    path: str
    mode: int


def _ancestors(path: str) -> List[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found[::-1]


def is_below(path: str, top: str) -> bool:
    """Whether ``path`` is ``top`` or lies below it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def traversable(path: str) -> bool:
    """Whether any uid may go through this directory."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IXOTH)
    except OSError:
        return True


def plan(
    expose: Sequence[str], hide: Sequence[str], may_enter: Callable[[str], bool] = traversable
) -> List[Step]:
    """Mounts that make ``expose`` reachable and ``hide`` empty; both hold resolved, existing paths."""
    exposed, hidden = sorted(set(expose)), set(hide)
    blocked: Set[str] = {up for path in exposed for up in _ancestors(path) if up != "/" and not may_enter(up)}
    wanted: List[Tuple[str, str]] = [("cover", p) for p in blocked | hidden]
    wanted += [("bind", p) for p in exposed if p not in hidden]
    # By depth: what is nearest above a path decides about it. Covers come before binds of the same path.
    wanted.sort(key=lambda item: (item[1].count("/") if item[1] != "/" else 0, item[0] != "cover", item[1]))
    steps: List[Step] = []
    for kind, path in wanted:
        above = [step for step in steps if is_below(path, step.path)]
        covered = bool(above) and above[-1].kind == "cover"
        if kind == "bind":
            if covered:
                steps.append(Step("bind", path, 0))
        elif not covered:
            inside = any(is_below(p, path) and p != path for p in exposed)
            steps.append(Step("cover", path, 0o711 if inside else 0o700))
    return steps


def links_on_way(path: str) -> Dict[str, str]:
    """Symbolic links that are followed on the way to ``path``: place -> what it says."""
    found: Dict[str, str] = {}
    todo = [part for part in os.path.abspath(path).split("/") if part]
    here = "/"
    while todo and len(found) < 40:
        part = todo.pop(0)
        if part == "..":
            here = os.path.dirname(here)
            continue
        place = os.path.join(here, part)
        try:
            target = os.readlink(place)
        except OSError:
            here = place
            continue
        found[place] = target
        todo = [p for p in target.split("/") if p and p != "."] + todo
        if target.startswith("/"):
            here = "/"
    return found


def _cover(step: Step) -> None:
    if os.path.isdir(step.path):
        flags = hr_sys.MS_NOSUID | hr_sys.MS_NODEV | hr_sys.MS_NOEXEC
        hr_sys.mount("tmpfs", step.path, "tmpfs", flags, f"mode={step.mode:o},size=64k")
    elif os.path.exists(step.path):
        hr_sys.mount(os.devnull, step.path, None, hr_sys.MS_BIND)


def _bind(source: int, path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(path, mode=0o711, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    hr_sys.mount(f"/proc/self/fd/{source}", path, None, hr_sys.MS_BIND | hr_sys.MS_REC)


def apply(steps: Sequence[Step], links: Dict[str, str]) -> None:
    """Make the mounts in a namespace of our own. Raises `OSError`."""
    hr_sys.unshare_mounts()
    # The sources are opened after the unshare (a mount of another namespace can't be bound) and before the
    # covers hide them.
    sources = {s.path: os.open(s.path, os.O_PATH | os.O_CLOEXEC) for s in steps if s.kind == "bind"}
    old_mask = os.umask(0)
    try:
        for step in steps:
            if step.kind == "cover":
                _cover(step)
            else:
                _bind(sources[step.path], step.path)
        for place, target in links.items():
            nearest = [s for s in steps if is_below(place, s.path)]
            if (
                nearest
                and nearest[-1].kind == "cover"
                and nearest[-1].mode == 0o711
                and not os.path.lexists(place)
            ):
                os.makedirs(os.path.dirname(place), mode=0o711, exist_ok=True)
                os.symlink(target, place)
    finally:
        os.umask(old_mask)
        for fd in sources.values():
            os.close(fd)


def reachable(expose: Sequence[str]) -> bool:
    """Whether any uid reaches all of ``expose`` without a shield."""
    return all(traversable(up) for path in expose for up in _ancestors(os.path.realpath(path)))


def raise_shield(expose: Sequence[str], hide: Sequence[str]) -> Tuple[bool, str]:
    """Shield this process and its children: (whether it stands, what to know about it). Never raises."""
    if os.geteuid() != 0:
        return False, "not root: sandboxes run as this user and see its files"
    real_expose = [os.path.realpath(p) for p in expose if os.path.exists(p)]
    real_hide = [os.path.realpath(p) for p in hide if os.path.exists(p)]
    steps = plan(real_expose, real_hide)
    closed = [p for p in real_expose if os.path.isdir(p) and not traversable(p)]
    note = f"only root may enter {', '.join(closed)}: chmod o+x" if closed else ""
    if not steps:
        return True, note or "no mounts were needed"
    links: Dict[str, str] = {}
    for path in expose:
        links.update(links_on_way(path))
    try:
        apply(steps, links)
    except OSError as error:
        return (
            False,
            f"no private mounts ({error.strerror or error}): hiding files from sandboxes takes CAP_SYS_ADMIN",
        )
    return True, note or f"{len(steps)} mounts"
