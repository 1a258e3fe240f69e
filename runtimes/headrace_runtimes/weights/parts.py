"""What a draft has already: a state file beside it, so that a fetch goes on where another one was cut."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from headrace_runtimes.weights.remote import RemoteFile
from headrace_runtimes.weights.values import part_size

STATE = "state.json"


@dataclass
class Progress:
    """Of one file: which parts are on disk."""

    file: RemoteFile
    part: int
    done: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """How many parts it has."""
        return -(-self.file.size // self.part)

    def span(self, index: int) -> tuple[int, int]:
        """(begin, end) of a part."""
        return index * self.part, min(self.file.size, (index + 1) * self.part)

    def missing(self) -> list[int]:
        """Parts that are not on disk."""
        return [index for index in range(self.count) if index not in self.done]

    def bytes(self) -> int:
        """On disk."""
        return sum(end - begin for begin, end in map(self.span, self.done))


def plan(files: list[RemoteFile], state: bytes | None) -> list[Progress]:
    """What is left to do: ``state`` counts for files that are still the same. Pure."""
    known: dict[str, dict[str, object]] = {}
    try:
        known = {entry["path"]: entry for entry in json.loads(state or b"[]")}
    except (ValueError, TypeError, KeyError):
        known = {}
    found: list[Progress] = []
    for file in files:
        progress = Progress(file, part_size(file.size) if file.ranges else max(1, file.size))
        old = known.get(file.path)
        same = (
            old is not None
            and (old.get("size"), old.get("validator"), old.get("part"))
            == (file.size, file.validator, progress.part)
            # Without one nobody knows whether it is the same.
            and bool(file.validator)
        )
        if same and old is not None:
            done = old.get("done")
            if isinstance(done, list):
                progress.done = {i for i in done if isinstance(i, int) and 0 <= i < progress.count}
        found.append(progress)
    return found


def state_of(all_files: list[Progress]) -> bytes:
    """What `plan` reads."""
    return json.dumps(
        [
            {
                "path": p.file.path, "size": p.file.size, "validator": p.file.validator, "part": p.part,
                "done": sorted(p.done),
            }
            for p in all_files
        ]
    ).encode()  # fmt: skip


def read_state(draft: Path) -> bytes | None:
    """What was saved last, if anything."""
    try:
        return (draft / STATE).read_bytes()
    except OSError:
        return None


def write_whole(path: Path, data: bytes) -> None:
    """Old or new, never half. Raises ``OSError``."""
    temporary = path.with_name(path.name + ".new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    temporary.rename(path)
