"""Images on this host: definitions and files fetched from control, then pulled or built by a runtime."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images import context
from headrace_runtimes.images.definition import Image, decode
from headrace_runtimes.images.pins import look_up
from headrace_runtimes.images.reference import parse
from headrace_runtimes.images.wire import Patience
from headrace_runtimes.trees import remove_tree

from headrace import wire
from headrace.host.bundles import Bundles
from headrace.host.runtimes import Runtimes

TELL_EVERY_S = 0.5
"""Progress of one step is told at most so often."""
FIND_S = 20.0
"""Somebody waits at a deployment."""
_PATIENCE = Patience(attempts=3, connect_s=5.0, stall_s=10.0, pause_max_s=5.0)
MIB = 1 << 20

OnProgress = Callable[[str, str, str], None]
"""(runtime, image, how far)."""


class Images:
    """Keeps what definitions name in ``root`` (shared by all platforms of a machine: content-addressed)."""

    def __init__(self, root: Path, runtimes: Runtimes, bundles: Bundles, on_progress: OnProgress) -> None:
        self._root, self._runtimes, self._bundles = root, runtimes, bundles
        self._on_progress = on_progress
        self._ready: set[tuple[str, str]] = set()
        self._making: dict[tuple[str, str], asyncio.Task[None]] = {}

    def has(self, spec: wire.BaseSpec) -> bool:
        """Whether the image of a base is prepared here; no image always is."""
        if not spec.image:
            return True
        key = spec.runtime, spec.image
        has_image = getattr(self._runtimes.now(spec.runtime), "has_image", None)
        if key in self._ready and has_image is not None and not has_image(spec.image):
            # Nobody used it for long: its runtime has let go of it.
            self._ready.discard(key)
        return key in self._ready

    async def ensure(self, spec: wire.BaseSpec) -> None:
        """Have the image prepared; one preparation for all who wait.

        Raises what `Runtime.prepare` does, `BundleError`, `LinkError` or ``TimeoutError`` when its files
        cannot be had.
        """
        if self.has(spec):
            return
        key = spec.runtime, spec.image
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.create_task(self._make(spec))
            task.add_done_callback(lambda done: self._made(key, done))
        await asyncio.shield(task)

    async def close(self) -> None:
        """Stop what is being made."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _made(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._making.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            self._ready.add(key)

    async def _make(self, spec: wire.BaseSpec) -> None:
        tell = self._teller(spec)
        tell("its files are fetched", 0, 0)
        image = await self._definition(spec)
        runtime = await self._runtimes.get(spec.runtime)
        tell("it is prepared", 0, 0)
        await runtime.prepare(image, tell)

    async def _definition(self, spec: wire.BaseSpec) -> Image:
        known = self._root / "contexts" / f"{spec.image}.json"
        found = await asyncio.to_thread(_read, known)
        if found is not None and found.digest == spec.image:
            return found
        data = await self._bundles.archive(spec.context)
        return await asyncio.to_thread(self._keep, spec.image, data)

    def _keep(self, digest: str, data: bytes) -> Image:
        """The directory first, then the definition beside it: who sees that has both."""
        place = context.directory(self._root, digest)
        place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        draft = place.with_name(f".{digest[:16]}-{secrets.token_hex(4)}")
        draft.mkdir(mode=0o755)
        try:
            image = context.unpack(data, draft)
            if image.digest != digest:
                raise ImageFailed("The image's files are those of another image: deploy the endpoint again.")
            try:
                draft.rename(place)
            except OSError:
                # Another host of this machine was faster: the same digest is the same content.
                if not place.is_dir():
                    raise
            mark = draft.with_suffix(".json")
            mark.write_bytes(image.encode())
            os.replace(mark, place.with_name(f"{digest}.json"))
        finally:
            remove_tree(draft)
        return image

    def _teller(self, spec: wire.BaseSpec) -> Callable[[str, int, int], None]:
        loop = asyncio.get_running_loop()
        last = ("", 0.0)

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if what == last[0] and now - last[1] < TELL_EVERY_S:
                return
            last = what, now
            far = f" ({done // MIB} of {total // MIB} MiB)" if total else ""
            # Some steps are done in threads.
            loop.call_soon_threadsafe(
                self._on_progress, spec.runtime, spec.image, f"its image is made: {what}{far}"
            )

        return tell


async def find_image(reference: str) -> wire.FoundImage:
    """What a tag means now, asked with this host's rights. Never raises."""
    try:
        async with asyncio.timeout(FIND_S):
            return wire.FoundImage(digest=await look_up(parse(reference), patience=_PATIENCE))
    except TimeoutError:
        return wire.FoundImage(why=f"{reference}: the registry did not answer within {FIND_S:g} s")
    except PrepareFailed as error:
        return wire.FoundImage(why=str(error))


def _read(path: Path) -> Image | None:
    try:
        image = decode(path.read_bytes())
        # Who uses it keeps it from being collected.
        os.utime(path)
    except (OSError, ImageFailed):
        return None
    return image
