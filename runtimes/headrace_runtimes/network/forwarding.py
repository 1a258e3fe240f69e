"""Lets the machine pass on the packets of sandboxes: on the links that they use, while a host needs it.

``net.ipv4.ip_forward`` stays as it is: the kernel asks the link that a packet comes in by. Who switched on
which link is kept in files, so that the last host puts it back, or its watchdog, which runs this as a script:

    python -I -S forwarding.py <directory> <tag>

It needs nothing but the standard library. All of it is about the namespace of the calling thread, and blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROUTES = Path("/proc/thread-self/net/route")
EVERYWHERE = Path("/proc/sys/net/ipv4/ip_forward")
LINKS = Path("/proc/sys/net/ipv4/conf")
_UP = 1


def routed() -> set[str]:
    """The links that packets of this machine leave by, and so come back by."""
    fields = (line.split() for line in ROUTES.read_text().splitlines()[1:])
    return {found[0] for found in fields if int(found[3], 16) & _UP and found[0] != "lo"}


def switch_on(directory: Path, tag: str, names: Iterable[str]) -> list[str]:
    """Pass on what comes in by the links ``names``, for the host ``tag``; which of them did not before.

    ``directory`` is the same for all hosts of the machine. Raises ``OSError``.
    """
    switched = []
    with _records(directory) as known:
        for name in sorted(names):
            link = LINKS / name / "forwarding"
            try:
                off = link.read_text().strip() == "0"
                # One that another host of ours has switched on must stay on when that one ends.
                if off or name in known.values():
                    (directory / f"{tag}@{name}").touch()
                if off:
                    link.write_text("1")
                    switched.append(name)
            except FileNotFoundError:
                continue
    return switched


def switch_off(directory: Path, tag: str) -> None:
    """The host ``tag`` needs it no more: what nobody of us needs is put back. Raises ``OSError``.

    Not where the machine passes packets on everywhere by now: somebody else has asked for that meanwhile.
    """
    if not directory.is_dir():
        return
    with _records(directory) as known:
        mine = {record: name for record, name in known.items() if record.startswith(f"{tag}@")}
        others = {name for record, name in known.items() if record not in mine}
        everywhere = EVERYWHERE.read_text().strip() != "0"
        for record, name in mine.items():
            if name not in others and not everywhere:
                with contextlib.suppress(FileNotFoundError):
                    (LINKS / name / "forwarding").write_text("0")
            (directory / record).unlink(missing_ok=True)


@contextlib.contextmanager
def _records(directory: Path) -> Iterator[dict[str, str]]:
    """File name -> link, while no other host looks or changes."""
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield {name: name.partition("@")[2] for name in os.listdir(directory) if "@" in name}
    finally:
        os.close(lock)


if __name__ == "__main__":
    switch_off(Path(sys.argv[1]), sys.argv[2])
