"""What of a store may go: a decision by age and size, and the removal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.reference import diff_ids
from headrace_runtimes.images.store import SHORT, Store
from headrace_runtimes.trees import remove_tree

GRACE_S = 600.0
"""What is younger stays even when no name leads to it: somebody is just bringing the rest."""


@dataclass(frozen=True)
class Kept:
    """One named image, for the decision."""

    reference: str
    digest: str
    used_at: float
    parts: Mapping[str, int]
    """Blobs and layers that it needs, with their bytes: shared ones count once."""


def to_forget(
    images: Collection[Kept], pinned: Collection[str], now: float, limit_bytes: int, max_age_s: float
) -> list[str]:
    """References to forget: those unused for ``max_age_s``, then the longest unused until all fits."""
    gone = [i for i in images if i.digest not in pinned and now - i.used_at > max_age_s]
    left = sorted((i for i in images if i not in gone), key=lambda i: i.used_at)
    while _total(left) > limit_bytes:
        victim = next((i for i in left if i.digest not in pinned), None)
        if victim is None:
            break
        left.remove(victim)
        gone.append(victim)
    return [i.reference for i in gone]


def _total(images: Collection[Kept]) -> int:
    parts: dict[str, int] = {}
    for image in images:
        parts.update(image.parts)
    return sum(parts.values())


async def collect(
    store: Store, limit_bytes: int, max_age_s: float, pins: Collection[str] = (), grace_s: float = GRACE_S
) -> list[str]:
    """Forget what is old or too much, and remove what no image needs; the references that went.

    ``pins`` are manifest digests to keep beside those that living processes hold (`Store.pin`).
    """
    pinned = {*pins, *await asyncio.to_thread(store.pinned)}
    images = await asyncio.to_thread(_images, store)
    gone = to_forget(images, pinned, time.time(), limit_bytes, max_age_s)
    await store.forget(gone)
    keep: set[str] = set()
    for image in await asyncio.to_thread(_images, store):
        keep.update(image.parts)
    for digest in pinned:
        with contextlib.suppress(ImageFailed):
            keep.update(_parts(store, digest))
    before = time.time() - grace_s
    for path in await asyncio.to_thread(_unneeded, store.directory, keep, before):
        async with alone(store.directory / "locks" / path.name, path.name):
            await asyncio.to_thread(_remove, store.directory, path)
    return gone


def _images(store: Store) -> list[Kept]:
    found = []
    for reference, digest in store.references().items():
        with contextlib.suppress(ImageFailed, OSError):
            used = store.blob(digest).stat().st_mtime
            found.append(Kept(reference, digest, used, _parts(store, digest)))
    return found


def _parts(store: Store, digest: str) -> dict[str, int]:
    stored = store.load(digest)
    descriptors = (stored.manifest.config, *stored.manifest.layers)
    parts = {store.blob(d.digest).name: d.size for d in descriptors}
    parts[store.blob(digest).name] = 0
    for diff_id in diff_ids(stored.config):
        short = diff_id.removeprefix("sha256:")[:SHORT]
        parts[short] = store.layer_bytes(short)
    return parts


def _unneeded(directory: Path, keep: Collection[str], before: float) -> list[Path]:
    found = []
    for place, marker in (("blobs/sha256", "blobs/sha256"), ("l", "done")):
        for path in (directory / place).iterdir():
            if path.name in keep:
                continue
            with contextlib.suppress(FileNotFoundError):
                if os.stat(directory / marker / path.name).st_mtime > before:
                    continue
            found.append(path)
    return found


def _remove(directory: Path, path: Path) -> None:
    if path.parent.name == "l":
        # The mark goes first: what is being removed is no layer any more.
        (directory / "done" / path.name).unlink(missing_ok=True)
        aside = directory / "part" / f"gone-{os.urandom(8).hex()}"
        os.rename(path, aside)
        remove_tree(aside)
    else:
        path.unlink(missing_ok=True)
