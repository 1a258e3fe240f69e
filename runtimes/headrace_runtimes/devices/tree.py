"""A machine's device files as a directory tree: the machine's own, or one that was made up."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from headrace_runtimes.devices.edits import Node

TEXT_BYTES = 65_536


class Tree:
    """Reads below ``root``. What cannot be read is not there."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def at(self, path: str) -> Path:
        """Where ``path`` of the machine is on ours."""
        return self.root / path.lstrip("/")

    def names(self, directory: str) -> list[str]:
        """Names in a directory, sorted; none when there is no such directory."""
        with contextlib.suppress(OSError):
            return sorted(os.listdir(self.at(directory)))
        return []

    def text(self, path: str) -> str:
        """A small file's text, without space around it; empty when there is none."""
        with contextlib.suppress(OSError), open(self.at(path), errors="replace") as file:
            return file.read(TEXT_BYTES).strip()
        return ""

    def node(self, path: str, seen_as: str | None = None) -> Node | None:
        """The device node at ``path``; None when there is no device."""
        try:
            found = os.stat(self.at(path))
        except OSError:
            return None
        is_block = stat.S_ISBLK(found.st_mode)
        if not is_block and not stat.S_ISCHR(found.st_mode):
            return None
        return Node(
            path=seen_as or path, host=str(self.at(path)), kind="b" if is_block else "c",
            major=os.major(found.st_rdev), minor=os.minor(found.st_rdev),
        )  # fmt: skip

    def nodes(self, *paths: str) -> tuple[Node, ...]:
        """Those of the nodes that are there."""
        return tuple(node for path in paths if (node := self.node(path)) is not None)

    def numbered(self, directory: str, prefix: str) -> dict[int, str]:
        """Number -> path of what is called ``prefix`` and a number, in the order of the numbers."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)")
        found = {
            int(m[1]): f"{directory}/{name}"
            for name in self.names(directory)
            if (m := pattern.fullmatch(name))
        }
        return dict(sorted(found.items()))

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return self.at(path).exists()

    def resolved(self, path: str) -> str:
        """Where the file is on our machine, links followed."""
        return os.path.realpath(self.at(path))
