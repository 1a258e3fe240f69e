"""``headrace doctor``: checks of this machine, each with what to do; changes nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from headrace.cli.app import DONE, FAILED, SUMMARIES
from headrace.cli.options import json_option, read_up
from headrace.cli.output import Output, size, table
from headrace.cli.support import in_words, support
from headrace.config import Settings, load_settings

Level = Literal["ok", "note", "problem"]
FREE_DISK_WANTED = 2 << 30
FREE_MEMORY_WANTED = 2 << 30


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``todo`` says what to do when it is not ``ok``."""

    check: str
    level: Level
    detail: str
    todo: str = ""


@click.command("doctor", help=SUMMARIES["doctor"])
@click.option("--data-dir", metavar="DIR", help="Data directory to check (default: ~/.headrace).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway.")
@json_option
def doctor_command(out: Output, data_dir: str | None, port: int | None) -> int:
    """Run all checks; exit code 1 when one found a problem."""
    settings = load_settings({"data_dir": data_dir, "port": port})
    findings: list[Finding] = []
    with out.progress("checking") as step:
        for words, check in CHECKS.items():
            step(f"checking {words}")
            findings.extend(_guarded(words, check, settings))
    problems = sum(finding.level == "problem" for finding in findings)
    matrix = {
        item.name: asdict(item) for item in support(settings.runtimes, settings.oci_binary, settings.criu)[0]
    }
    document = {
        "problems": problems,
        "findings": [asdict(finding) for finding in findings],
        "runtimes": matrix,
    }
    out.answer(document, lambda: _text(findings))
    return FAILED if problems else DONE


def _guarded(words: str, check: Callable[[Settings], Iterable[Finding]], settings: Settings) -> list[Finding]:
    """A check that cannot be made is a finding, not the end of the others."""
    try:
        return list(check(settings))
    except Exception as error:
        return [Finding(words, "note", f"could not be checked: {type(error).__name__}: {error}")]


def _text(findings: list[Finding]) -> str:
    rows = [(f.level, f.check, f.detail + (f" -> {f.todo}" if f.todo else "")) for f in findings]
    return table(("RESULT", "CHECK", "DETAIL"), rows, "nothing was checked")


def check_python(_settings: Settings) -> Iterable[Finding]:
    """Version, and whether the packages are compiled to bytecode (3 s per Ray worker when not)."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        yield Finding(
            "bytecode",
            "note",
            "PYTHONDONTWRITEBYTECODE is set here (`headrace up` drops it).",
            "Unset it before you install packages.",
        )
    missing = [name for name in ("ray", "pydantic", "click") if not _compiled(name)]
    if missing:
        yield Finding(
            "bytecode",
            "problem",
            f"no bytecode for {', '.join(missing)}: every Ray worker starts 3 s later.",
            f"Run `{sys.executable} -m compileall -q {Path(sys.prefix) / 'lib'}` once.",
        )
    else:
        yield Finding("bytecode", "ok", "packages are compiled")


def _compiled(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return False
    return Path(importlib.util.cache_from_source(spec.origin)).exists()


def check_data_dir(settings: Settings) -> Iterable[Finding]:
    """That the data directory can be written, is private, and has room."""
    data = settings.data
    parent = next(p for p in (data, *data.parents) if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        yield Finding(
            "data directory", "problem", f"{data} cannot be written.", "Choose another with --data-dir."
        )
        return
    if data.exists():
        mode = stat.S_IMODE(data.stat().st_mode)
        if mode & 0o077:
            yield Finding("data directory", "problem", f"{data} has mode {mode:04o}.", f"chmod 700 {data}")
        else:
            yield Finding("data directory", "ok", f"{data} is private")
        for name in ("admin.key", "cluster.token", "control.sock"):
            yield from _private(data / name)
    else:
        yield Finding("data directory", "ok", f"{data} is made by `headrace up`")
    free = shutil.disk_usage(parent).free
    level: Level = "ok" if free >= FREE_DISK_WANTED else "problem"
    todo = "" if level == "ok" else f"Free {size(FREE_DISK_WANTED - free)}, or choose another --data-dir."
    yield Finding("disk", level, f"{size(free)} free at {parent}", todo)


def _private(path: Path) -> Iterable[Finding]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        yield Finding("key files", "problem", f"{path} has mode {mode:04o}.", f"chmod 600 {path}")
    elif found.st_uid != os.geteuid():
        yield Finding("key files", "problem", f"{path} belongs to uid {found.st_uid}.", "Run as that user.")
    else:
        yield Finding("key files", "ok", f"{path.name} is private")


def check_ports(settings: Settings) -> Iterable[Finding]:
    """That the ports are free, unless it is our own platform that listens there."""
    up = read_up(settings.data)
    if up is not None and _alive(up.get("pid")):
        yield Finding("ports", "ok", f"the platform runs (pid {up['pid']}) at {up.get('url', '?')}")
        return
    wanted = {
        "--port": settings.port,
        "--control-port": settings.control_port,
        "--ray-port": settings.ray_port,
    }
    for option, port in wanted.items():
        if port == 0 or _free(settings.host, port):
            yield Finding("ports", "ok", f"{option} {port} is free")
        else:
            yield Finding("ports", "problem", f"{option} {port} is in use.", f"Choose another with {option}.")


def _alive(pid: Any) -> bool:
    return isinstance(pid, int) and Path(f"/proc/{pid}").exists()


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def check_isolation(_settings: Settings) -> Iterable[Finding]:
    """What instances can be confined with on this machine."""
    if os.geteuid() == 0:
        yield Finding("isolation", "ok", "root: each instance gets a uid of its own")
    else:
        yield Finding(
            "isolation",
            "note",
            "not root: instances run as you, and code that you deploy can read what you can.",
            "Run `headrace up` as root where you deploy code of others.",
        )
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    if controllers.exists() and "memory" in controllers.read_text() and os.access("/sys/fs/cgroup", os.W_OK):
        yield Finding("cgroups", "ok", "cgroup v2 with memory is writable: memory limits are exact")
    else:
        yield Finding(
            "cgroups", "note", "cgroup v2 with memory is not writable: memory limits are polled by the host."
        )


def check_memory(_settings: Settings) -> Iterable[Finding]:
    """That Ray and a few instances fit."""
    import psutil  # noqa: PLC0415 - 20 ms that only doctor needs

    free = psutil.virtual_memory().available
    level: Level = "ok" if free >= FREE_MEMORY_WANTED else "problem"
    yield Finding("memory", level, f"{size(free)} available", "" if level == "ok" else "End other programs.")


def check_listeners(settings: Settings) -> Iterable[Finding]:
    """Listeners of the running platform that other machines can reach (Ray opens some on all interfaces)."""
    from headrace.cluster import supervisor  # noqa: PLC0415 - only needed here

    ports = getattr(supervisor, "doctor_ports", None)
    found: Iterable[Mapping[str, Any] | Any] = ports() if ports is not None else ()
    exposed = [str(entry) for entry in found]
    if exposed:
        yield Finding(
            "listeners",
            "note",
            f"reachable from other machines: {', '.join(exposed)}",
            "Close them with a firewall.",
        )
    else:
        yield Finding("listeners", "ok", "nothing of the platform listens on other interfaces")


def check_runtimes(settings: Settings) -> Iterable[Finding]:
    """What each runtime can do on this machine."""
    found, wrong = support(settings.runtimes, settings.oci_binary, settings.criu)
    for item in found:
        detail, todo = in_words(item, settings.runtimes)
        yield Finding(f"runtime {item.name}", "note" if item.why_not else "ok", detail, todo)
    if wrong:
        yield Finding("runtimes", "problem", wrong, "Correct the setting `runtimes`.")


CHECKS: dict[str, Callable[[Settings], Iterable[Finding]]] = {
    "python": check_python,
    "data directory": check_data_dir,
    "ports": check_ports,
    "isolation": check_isolation,
    "runtimes": check_runtimes,
    "memory": check_memory,
    "listeners": check_listeners,
}
