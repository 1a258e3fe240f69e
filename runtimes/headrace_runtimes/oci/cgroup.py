"""One container's cgroup, on version 1, version 2 or both side by side: limits, use, freezing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from headrace_runtimes.spec import Stats

ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
SOCKET_BYTES, LEAST_SOCKET_BYTES = 64 << 20, 8 << 20
"""On version 1, beside the memory."""
BLOCK_DEVICES = Path("/sys/dev/block")


class Cgroup:
    """The cgroup ``path`` (as in ``cgroupsPath``) in all hierarchies."""

    def __init__(self, path: str, root: Path = ROOT) -> None:
        self._path = path.lstrip("/")
        self._root = root
        self.unified = (root / "cgroup.controllers").exists()

    def _dir(self, controller: str) -> Path:
        return self._root / self._path if self.unified else self._root / controller / self._path

    def places(self) -> list[Path]:
        """Where it is, or would be: one directory of each hierarchy."""
        if self.unified:
            return [self._root / self._path]
        with contextlib.suppress(OSError):
            # ``cpu`` may be a link to ``cpu,cpuacct``.
            return [h / self._path for h in sorted(self._root.iterdir()) if h.is_dir() and not h.is_symlink()]
        return []

    def directories(self) -> list[Path]:
        """All that exist."""
        return [path for path in self.places() if path.is_dir()]

    def limit_memory(self, count: int) -> None:
        """Bytes, swap included. Raises ``OSError``."""
        if self.unified:
            self._write("memory", "memory.max", count)
            with contextlib.suppress(OSError):
                self._write("memory", "memory.swap.max", 0)
            with contextlib.suppress(OSError):
                # One who is killed for memory leaves the others broken: all of them go.
                self._write("memory", "memory.oom.group", 1)
            return
        # With swap is never less than without: whichever way it goes, one of them has to be first.
        with contextlib.suppress(OSError):
            self._write("memory", "memory.memsw.limit_in_bytes", count)
        self._write("memory", "memory.limit_in_bytes", count)
        self.limit_sockets(min(SOCKET_BYTES, max(LEAST_SOCKET_BYTES, count // 8)))
        with contextlib.suppress(OSError):
            self._write("memory", "memory.memsw.limit_in_bytes", count)

    def limit_sockets(self, count: int = SOCKET_BYTES) -> None:
        """Bytes that wait in its internet sockets; the memory's directory is made if it is not there.

        Version 2 counts them as memory. Version 1 does so for nobody until a limit is set, then for sockets
        made later: without one, a sandbox fills what the kernel has for the whole machine.
        """
        if self.unified or not (self._root / "memory").is_dir():
            return
        self._dir("memory").mkdir(parents=True, exist_ok=True)
        # A kernel may be built without.
        with contextlib.suppress(OSError):
            self._write("memory", "memory.kmem.tcp.limit_in_bytes", count)

    def limit_cpu(self, cores: float) -> None:
        """Raises ``OSError``."""
        quota = max(1000, int(cores * CPU_PERIOD_US))
        if self.unified:
            self._write("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}")
        else:
            self._write("cpu", "cpu.cfs_period_us", CPU_PERIOD_US)
            self._write("cpu", "cpu.cfs_quota_us", quota)

    def limit_pids(self, count: int) -> None:
        """Raises ``OSError``."""
        self._write("pids", "pids.max", count)

    def limit_io(self, bytes_s: int, devices: Iterable[str]) -> None:
        """Reading and writing each, on block devices ``major:minor``. Raises ``OSError``.

        Version 1 counts what is written through the page cache for nobody: there only reads, and writes
        that go to the device at once, are held back.
        """
        for device in devices:
            if self.unified:
                self._write("io", "io.max", f"{device} rbps={bytes_s} wbps={bytes_s}")
            else:
                for name in ("read", "write"):
                    self._write("blkio", f"blkio.throttle.{name}_bps_device", f"{device} {bytes_s}")

    def allow_device(self, rule: str) -> None:
        """Let it use a device, as ``c 195:0 rw``. Raises ``OSError``.

        Version 2 asks a program that was given at the creation: there the rule must have been in it.
        """
        if not self.unified:
            self._write("devices", "devices.allow", rule)

    def oom_killed(self) -> bool:
        """Whether the kernel has killed in it for memory."""
        name = "memory.events" if self.unified else "memory.oom_control"
        pairs = (line.split() for line in self._read("memory", name).splitlines())
        return any(p[0] == "oom_kill" and p[1] != "0" for p in pairs if len(p) == 2)

    def use(self) -> Stats | None:
        """What all of its processes use; None when it is gone. Page cache that can go is not counted."""
        if self.unified:
            held = self._number("memory", "memory.current")
            pairs = dict(
                p for line in self._read("cpu", "cpu.stat").splitlines() if len(p := line.split()) == 2
            )
            cpu_s = int(pairs.get("usage_usec", 0)) / 1e6
        else:
            held = self._number("memory", "memory.usage_in_bytes")
            cpu_s = (self._number("cpuacct", "cpuacct.usage") or 0) / 1e9
        if held is None:
            return None
        stat = dict(
            p for line in self._read("memory", "memory.stat").splitlines() if len(p := line.split()) == 2
        )
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        count = self._number("pids", "pids.current")
        return Stats(max(0, held - cache), cpu_s, io_bytes=self._io(), processes=count)

    def freeze(self, on: bool) -> None:
        """Stop or go on. Raises ``OSError``."""
        if self.unified:
            self._write("freezer", "cgroup.freeze", int(on))
        else:
            self._write("freezer", "freezer.state", "FROZEN" if on else "THAWED")

    def frozen(self) -> bool:
        """Whether all of its processes stand still."""
        if self.unified:
            return "frozen 1" in self._read("freezer", "cgroup.events")
        return self._read("freezer", "freezer.state").strip() == "FROZEN"

    def pids(self) -> list[int]:
        """Its processes, and those of the cgroups below it."""
        for controller in ("pids", "memory", "freezer"):
            top, found = self._dir(controller), list[int]()
            if not top.is_dir():
                continue
            for directory, _, _ in os.walk(top):
                with contextlib.suppress(OSError):
                    found += [int(x) for x in Path(directory, "cgroup.procs").read_text().split()]
            return found
        return []

    def _io(self) -> int | None:
        name = "io.stat" if self.unified else "blkio.throttle.io_service_bytes"
        text = self._read("io" if self.unified else "blkio", name)
        if self.unified:
            fields = (f.partition("=") for line in text.splitlines() for f in line.split()[1:])
            return sum(int(v) for k, _, v in fields if k in {"rbytes", "wbytes"})
        rows = (line.split() for line in text.splitlines())
        return sum(int(r[2]) for r in rows if len(r) == 3 and r[1] in {"Read", "Write"})

    def _number(self, controller: str, name: str) -> int | None:
        text = self._read(controller, name).strip()
        return int(text) if text.isdigit() else None

    def _read(self, controller: str, name: str) -> str:
        try:
            return (self._dir(controller) / name).read_text()
        except OSError:
            return ""

    def _write(self, controller: str, name: str, value: object) -> None:
        (self._dir(controller) / name).write_text(str(value))


def disk_of(device: int, known: Path = BLOCK_DEVICES) -> str:
    """``major:minor`` of the whole disk that ``device`` (of ``st_dev``) is on; empty when it is on none."""
    try:
        place = (known / f"{os.major(device)}:{os.minor(device)}").resolve(strict=True)
        return ((place.parent if (place / "partition").exists() else place) / "dev").read_text().strip()
    except OSError:
        return ""


def inner_path(parent: Path | None, root: Path = ROOT) -> str:
    """What a delegated cgroup directory is called within its hierarchy; empty for none."""
    if parent is None or not parent.is_relative_to(root):
        return ""
    parts = parent.relative_to(root).parts
    unified = (root / "cgroup.controllers").exists()
    return "".join(f"/{part}" for part in (parts if unified else parts[1:]))
