"""Fetches a source into a draft directory: parallel ranged reads, resumed where another fetch was cut."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from headrace_runtimes.weights.parts import STATE, Progress, plan, read_state, state_of, write_whole
from headrace_runtimes.weights.remote import Changed, Interrupted, Remote, RemoteFile
from headrace_runtimes.weights.values import Item, WeightsFailed, WeightsSettings, megabytes

FILES = "files"
SAVE_S = 0.5
BEGIN_AGAIN = 3
"""So often a source may change under our hands."""
PAUSE_MAX_S = 20.0
FREE_LEFT = 256 << 20
"""Bytes of the disk that stay free."""
HASH_CHUNK = 4 << 20
Told = Callable[[int, int], None]
"""(bytes there, bytes of all)."""
Room = Callable[[int], None]
"""Makes room for so many bytes; raises `WeightsFailed`."""


async def fetch(
    item: Item, remote: Remote, draft: Path, settings: WeightsSettings, *, told: Told, room: Room
) -> dict[str, str]:
    """All files of the source below ``draft/files``: path -> SHA-256. Raises `WeightsFailed`."""
    for _ in range(BEGIN_AGAIN):
        try:
            return await _Fetch(item, remote, draft, settings, told=told, room=room).run()
        except Changed:
            # What is there is of another content.
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
    raise WeightsFailed(f"weights {item.shown}: the source changes all the time; name one that does not.")


class _Fetch:
    def __init__(
        self, item: Item, remote: Remote, draft: Path, settings: WeightsSettings, *, told: Told, room: Room
    ) -> None:
        self._item, self._remote, self._draft, self._settings = item, remote, draft, settings
        self._told, self._room = told, room
        self._plan: list[Progress] = []
        self._arrived = 0
        self._total = 0
        self._turns = asyncio.Semaphore(settings.connections)
        self._changed = False

    async def run(self) -> dict[str, str]:
        files = await self._listed()
        if self._item.sha256 and len(files) > 1:
            raise WeightsFailed(f"weights {self._item.shown}: sha256 is of one file, and there are many.")
        self._total = sum(file.size for file in files)
        self._plan = plan(files, await asyncio.to_thread(read_state, self._draft))
        self._arrived = sum(progress.bytes() for progress in self._plan)
        await asyncio.to_thread(self._room, self._total)
        left = self._total - self._arrived
        try:
            opened = await asyncio.to_thread(self._open, left)
        except OSError as error:
            raise self._disk(error) from error
        self._told(self._arrived, self._total)
        saving = asyncio.create_task(self._save_for_ever(opened))
        try:
            async with asyncio.TaskGroup() as group:
                for progress, file in zip(self._plan, opened, strict=True):
                    for index in progress.missing():
                        await self._turns.acquire()
                        group.create_task(self._part(progress, index, file))
        except ExceptionGroup as group_error:
            first = _leaf(group_error)
            raise (self._disk(first) if isinstance(first, OSError) else first) from None
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            try:
                await asyncio.to_thread(self._save, opened)
            finally:
                for file in opened:
                    os.close(file)
        return await asyncio.to_thread(self._checked)

    async def _listed(self) -> list[RemoteFile]:
        for attempt in range(self._settings.attempts):
            try:
                return await self._remote.files()
            except Interrupted as error:
                why = str(error)
                if attempt + 1 < self._settings.attempts:
                    await asyncio.sleep(max(error.after, self._pause(attempt)))
        raise WeightsFailed(f"weights {self._item.shown}: {why}; try again later.")

    async def _part(self, progress: Progress, index: int, file: int) -> None:
        try:
            begin, end = progress.span(index)
            at, failures = begin, 0

            def sink(data: bytes, offset: int) -> None:
                nonlocal at
                view = memoryview(data)
                while view:
                    written = os.pwrite(file, view, offset)
                    view, offset = view[written:], offset + written
                self._arrived += offset - at
                at = offset

            while at < end or begin == end:
                before = at
                try:
                    await self._remote.read(progress.file, at, end, sink)
                    if begin == end:
                        break
                except Interrupted as error:
                    failures = 0 if at > before else failures + 1
                    if failures >= self._settings.attempts:
                        raise WeightsFailed(
                            f"weights {self._item.shown}: {error}; try again later."
                        ) from None
                    await asyncio.sleep(max(error.after, self._pause(failures)))
                    if not progress.file.ranges:
                        self._arrived -= at - begin
                        at = begin
            progress.done.add(index)
            self._told(self._arrived, self._total)
        finally:
            self._turns.release()

    def _pause(self, attempt: int) -> float:
        return float(min(self._settings.pause_s * 2.0**attempt, PAUSE_MAX_S) * random.uniform(0.5, 1.0))  # noqa: S311

    async def _save_for_ever(self, opened: list[int]) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            self._told(self._arrived, self._total)
            await asyncio.to_thread(self._save, opened)

    def _save(self, opened: list[int]) -> None:
        # First what it speaks of, then the state: after a loss of power it may not promise too much.
        state = state_of(self._plan)
        for file in opened:
            os.fdatasync(file)
        write_whole(self._draft / STATE, state)

    def _open(self, left: int) -> list[int]:
        directory = self._draft / FILES
        directory.mkdir(parents=True, exist_ok=True)
        wanted = {progress.file.path for progress in self._plan}
        for path in sorted(directory.rglob("*"), reverse=True):
            if not path.is_dir() and str(path.relative_to(directory)) not in wanted:
                path.unlink()
        if shutil.disk_usage(directory).free < left + FREE_LEFT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        opened: list[int] = []
        try:
            for progress in self._plan:
                path = directory / progress.file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                opened.append(os.open(path, flags, 0o644))
                os.ftruncate(opened[-1], progress.file.size)
        except BaseException:
            for file in opened:
                os.close(file)
            raise
        return opened

    def _checked(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for progress in self._plan:
            path = self._draft / FILES / progress.file.path
            sha256, md5 = _digests(path, progress.file.md5 != "")
            wrong = (self._item.sha256 and self._item.sha256 != sha256) or (
                progress.file.md5 not in ("", md5)
            )
            if wrong:
                # Nothing of it may be gone on with.
                shutil.rmtree(self._draft, ignore_errors=True)
                said = self._item.sha256 or progress.file.md5
                raise WeightsFailed(
                    f"weights {self._item.shown}: {progress.file.path} has SHA-256 {sha256}, not what "
                    f"was said ({said}): correct the checksum or the source."
                )
            found[progress.file.path] = sha256
        return found

    def _disk(self, error: OSError) -> WeightsFailed:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return WeightsFailed(
                f"weights {self._item.shown}: the disk of the host has no room for {megabytes(self._total)}; "
                "make some, or set weights_dir."
            )
        return WeightsFailed(f"weights {self._item.shown}: {error}.")


def _digests(path: Path, with_md5: bool) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(HASH_CHUNK):
            sha256.update(piece)
            if with_md5:
                md5.update(piece)
    return sha256.hexdigest(), md5.hexdigest() if with_md5 else ""


def _leaf(group: ExceptionGroup[Exception]) -> Exception:
    """The one that says most: a refusal before a change."""
    leaves = [_leaf(error) if isinstance(error, ExceptionGroup) else error for error in group.exceptions]
    return min(leaves, key=lambda e: 0 if isinstance(e, WeightsFailed) else 1)
