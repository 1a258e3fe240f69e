"""Runs a tool that runs what others wrote, in the jail of builds (`jail`), its limits and a lent network."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.base import Progress
from headrace_runtimes.images import jail
from headrace_runtimes.images.limits import PREFIX, joined, make, remove
from headrace_runtimes.images.reach import Reach, leashed
from headrace_runtimes.images.tool import run_tool
from headrace_runtimes.userns import user_namespace

PROGRAMS = ("nsenter", "unshare", "setpriv", "prlimit", "mount", "pivot_root")
ALREADY = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ssl/certs")
"""What every jail shows of the host."""


@dataclass(frozen=True)
class Sight:
    """What the tool sees of the host beside programs, at the same paths."""

    shown: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    """Belong to `jail.FIRST_ID`, as far as it shall write there."""


def why_not() -> str:
    """Why nothing can be confined here; empty when it can."""
    if os.geteuid() != 0:
        return "the host does not run as root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{missing[0]} is not installed (apt-get install util-linux)"
    try:
        os.close(user_namespace(jail.FIRST_ID, jail.ID_COUNT))
    except OSError as error:
        return f"no user namespace can be made ({error})"
    return ""


async def run_confined(
    tool: str,
    arguments: Sequence[str],
    sight: Sight,
    scratch: Path,
    *,
    env: Mapping[str, str],
    what: str,
    timeout_s: float,
    progress: Progress | None = None,
    reach: Reach | None = None,
) -> tuple[int, str]:
    """As `run_tool`, with ``scratch`` (own, empty) for what it needs meanwhile. Raises as that."""
    root, own = scratch / "root", scratch / "build"
    await asyncio.to_thread(_lay_out, root, own)
    userns = user_namespace(jail.FIRST_ID, jail.ID_COUNT)
    name = PREFIX + scratch.name
    try:
        argv = jail.jailed(
            root, own, tool, userns, (jail.TOOL, *arguments), shown=seen(sight.shown), writable=sight.writable
        )
        confined = await asyncio.to_thread(leashed, argv, reach, scratch)
        return await run_tool(
            joined(confined, await asyncio.to_thread(make, name)),
            env={**env, "HOME": jail.OWN, "TMPDIR": f"{jail.OWN}/tmp"},  # noqa: S108
            cwd=scratch, what=what,
            timeout_s=timeout_s, progress=progress, room=scratch, pass_fds=(userns,),
        )  # fmt: skip
    finally:
        os.close(userns)
        await asyncio.shield(asyncio.to_thread(remove, name))


def seen(paths: Sequence[Path]) -> list[Path]:
    """Those that exist and that a jail would not show anyway, each once, outer ones first."""
    found: list[Path] = []
    for path in sorted(set(paths)):
        inside = any(path.is_relative_to(outer) for outer in (*map(Path, ALREADY), *found))
        if path.is_absolute() and len(path.parts) > 1 and not inside and path.exists():
            found.append(path)
    return found


def _lay_out(root: Path, own: Path) -> None:
    root.mkdir()
    own.mkdir(mode=0o700)
    (own / "tmp").mkdir()
    for path in (own, own / "tmp"):
        os.chown(path, jail.FIRST_ID, jail.FIRST_ID)


def give(path: Path) -> None:
    """Make the directory ``path``, and all that is in it, `jail.FIRST_ID`'s. Blocks. Raises ``OSError``."""
    path.mkdir(parents=True, exist_ok=True)
    if path.lstat().st_uid == jail.FIRST_ID:
        return
    # By descriptors: what is in it may be somebody's who changes it meanwhile.
    for _, folders, files, place in os.fwalk(path, topdown=False):
        for name in (*folders, *files):
            os.chown(name, jail.FIRST_ID, jail.FIRST_ID, dir_fd=place, follow_symlinks=False)
    # Last: who was interrupted begins again.
    os.chown(path, jail.FIRST_ID, jail.FIRST_ID, follow_symlinks=False)
