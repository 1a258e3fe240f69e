"""Runs one step of a build: runc, a writable overlay over the layers so far, and what it wrote is the layer.

The container has the network that it is lent (`reach`), and the rights that package managers need (its root
is the machine's, with few capabilities): builds are for those who may deploy. A build that a dead host has
left is removed by `sweep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.limits import CORE_BYTES, PIDS_LIMIT, PREFIX, memory_limit, remove
from headrace_runtimes.images.pack import write_tree
from headrace_runtimes.images.reach import Reach, leashed
from headrace_runtimes.images.store import dead_scratches
from headrace_runtimes.images.tool import run_tool
from headrace_runtimes.images.view import look
from headrace_runtimes.trees import remove_tree

CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETFCAP", "CAP_SETGID",
    "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = "headrace/build"
"""Where what a step needs of the host appears, read-only; never part of a layer."""
HOST_FILES = ("etc/resolv.conf", "etc/hosts")
MADE = ("proc", "dev", "sys", "run", "tmp", "headrace")
CLEAN_S = 30.0
_MASKED = (
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_AF_NETLINK, _NETLINK_AUDIT = 16, 9
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Step:
    """One command on top of ``layers`` (top first)."""

    what: str
    argv: Sequence[str]
    layers: Sequence[Path]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    binds: tuple[tuple[Path, str], ...] = ()
    """Of the host, read-only; targets below `TOOLS`."""
    seccomp: Mapping[str, Any] | None = None
    """``linux.seccomp`` of the OCI runtime specification."""


async def run_step(
    step: Step, runc: str, scratch: Path, timeout_s: float, progress: Progress | None, *,
    reach: Reach | None = None,
) -> tuple[Path, str]:  # fmt: skip
    """The layer's file in ``scratch``, and its diff_id (hex). Raises `ImageFailed` with its last words."""
    if shutil.which(runc) is None or os.geteuid() != 0:
        raise PrepareFailed("Images are built by runc and root: apt-get install runc, run the host as root.")
    name = f"{PREFIX}{scratch.name}"
    try:
        await asyncio.to_thread(_lay_out, step, scratch)
        argv = [runc, "--root", str(scratch / "state"), "run", "--bundle", str(scratch), name]
        code, words = await run_tool(
            await asyncio.to_thread(leashed, argv, reach, scratch), env={"PATH": PATH}, cwd=scratch,
            what=step.what, timeout_s=timeout_s, progress=progress, room=scratch,
        )  # fmt: skip
        if code != 0:
            raise ImageFailed(f"The image's step {step.what!r:.200} failed with exit code {code}: {words}")
        await asyncio.to_thread(_unmount, scratch / "root")
        layer = scratch / "layer"
        made = await asyncio.to_thread(_left_by_runc, step, scratch)
        return layer, await asyncio.to_thread(write_tree, scratch / "upper", layer, made)
    except TimeoutError as error:
        raise ImageFailed(f"The image's step {step.what!r:.200} took more than {timeout_s:g} s.") from error
    except OSError as error:
        raise PrepareFailed(f"The image's step {step.what!r:.200} cannot be run here: {error}.") from error
    finally:
        await asyncio.shield(asyncio.to_thread(_clean, scratch, runc))


def sweep(part: Path, runc: str) -> None:
    """Remove the builds below ``part`` whose builder has died: containers, mounts, directories. Blocks."""
    for scratch in dead_scratches(part):
        _clean(scratch, runc)
        remove_tree(scratch)


def configuration(step: Step) -> dict[str, Any]:
    """``config.json`` of the OCI runtime specification."""
    quiet = ["nosuid", "noexec", "nodev"]

    def mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    filter_ = {} if step.seccomp is None else {"seccomp": _without_audit(step.seccomp)}
    shown = [f"/{path}" for path in HOST_FILES]
    return {
        "ociVersion": "1.0.2", "hostname": "build",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": list(step.argv), "cwd": step.cwd,
            "env": [f"{k}={v}" for k, v in ({"PATH": PATH, "HOME": "/root"} | dict(step.env)).items()],
            "noNewPrivileges": True,
            "capabilities": {k: list(CAPABILITIES) for k in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": CORE_BYTES, "hard": CORE_BYTES}], "oomScoreAdj": 200,
        },
        "root": {"path": "root", "readonly": False},
        "mounts": [
            mount("/proc", "proc", "proc", *quiet),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=64k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666"),
            mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", "size=64m"),  # noqa: S108
            mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
            mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777"),  # noqa: S108
            *(mount(f, "bind", f, "bind", "ro", *quiet) for f in shown if Path(f).exists()),
            *(mount(t, "bind", str(s), "rbind", "ro", "nosuid", "nodev") for s, t in step.binds),
        ],
        "linux": filter_ | {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(_MASKED), "readonlyPaths": list(_READ_ONLY), "rootfsPropagation": "private",
            "resources": {
                "pids": {"limit": PIDS_LIMIT}, "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": memory_limit()},
            },
        },
    }  # fmt: skip


def _without_audit(profile: Mapping[str, Any]) -> dict[str, Any]:
    """``groupadd`` and its kin give up when the audit socket is forbidden, and go on when there is none."""
    none = {
        "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPROTONOSUPPORT,
        "args": [
            {"index": 0, "value": _AF_NETLINK, "op": "SCMP_CMP_EQ"},
            {"index": 2, "value": _NETLINK_AUDIT, "op": "SCMP_CMP_EQ"},
        ],
    }  # fmt: skip
    return dict(profile) | {"syscalls": [*profile.get("syscalls", ()), none]}


def _lay_out(step: Step, scratch: Path) -> None:
    for name in ("root", "upper", "work", "state"):
        (scratch / name).mkdir(mode=0o755)
    lower = step.layers or [scratch / "empty"]
    if not step.layers:
        (scratch / "empty").mkdir()
    data = (
        f"lowerdir={':'.join(map(str, lower))},upperdir={scratch / 'upper'},workdir={scratch / 'work'},"
        "redirect_dir=off,metacopy=off,index=off"
    )
    if len(data) > 4000:
        raise PrepareFailed("The image has too many layers to build upon: join some of its run steps.")
    if _libc.mount(b"overlay", os.fsencode(scratch / "root"), b"overlay", 4, data.encode()) != 0:
        raise OSError(ctypes.get_errno(), "overlay cannot be mounted")
    (scratch / "config.json").write_text(json.dumps(configuration(step)))


def _left_by_runc(step: Step, scratch: Path) -> set[str]:
    """Places of mounts: runc makes them where the image has none."""
    found = {TOOLS}
    for path in (*HOST_FILES, *MADE, "dev/pts", "dev/shm", "dev/mqueue"):
        here = scratch / "upper" / path
        if look(step.layers, path) is None and here.exists():
            empty = here.stat().st_size == 0 if here.is_file() else not set(os.listdir(here)) - {"build"}
            if empty:
                found.add(path)
    return found


def _clean(scratch: Path, runc: str) -> None:
    name = f"{PREFIX}{scratch.name}"
    if (scratch / "state" / name).exists():
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                [runc, "--root", str(scratch / "state"), "delete", "--force", name],
                capture_output=True, timeout=CLEAN_S, check=False,
            )  # fmt: skip
    _unmount(scratch / "root")
    remove(name)


def _unmount(path: Path) -> None:
    if os.path.ismount(path):
        _libc.umount2(os.fsencode(path), 2)
