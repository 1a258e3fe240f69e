"""Lets go of images in a daemon: of those that we put there, what is long unused, or too much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from headrace_runtimes.docker.api import Engine, Refused
from headrace_runtimes.docker.request import IMAGE_LABEL
from headrace_runtimes.images.gc import Kept, to_forget

log = logging.getLogger("headrace.runtimes")

FIRST_S = 300.0
EVERY_S = 3600.0
MAX_AGE_S = 14 * 86400.0
"""As with the images that the host keeps itself."""


async def collect_for_ever(engine: Engine, limit_bytes: int, own: Collection[str]) -> None:
    """`collect` now and then, until cancelled."""
    await asyncio.sleep(FIRST_S)
    while True:
        try:
            gone = await collect(engine, limit_bytes, MAX_AGE_S, own)
            if gone:
                log.info("%d images that nobody uses are removed from Docker", len(gone))
        except Refused as refused:
            log.warning("images in Docker cannot be collected: %s", refused)
        await asyncio.sleep(EVERY_S)


async def collect(engine: Engine, limit_bytes: int, max_age_s: float, own: Collection[str] = ()) -> list[str]:
    """One round; names of the images that went. Those that have our label, that no container was made from,
    and that are not in ``own``. Raises `Refused`."""
    query = {"filters": json.dumps({"label": [IMAGE_LABEL]})}
    found = [await _kept(engine, told) for told in await engine.call("GET", "/images/json", query=query)]
    used = {str(c["ImageID"]) for c in await engine.call("GET", "/containers/json", query={"all": "1"})}
    used |= {image.digest for image in found if image.reference in own}
    gone = []
    for name in to_forget(found, used, time.time(), limit_bytes, max_age_s):
        # Not by force: from one that is in use by now the daemon does not part.
        with contextlib.suppress(Refused):
            await engine.call("DELETE", f"/images/{name}")
            gone.append(name)
    return gone


async def _kept(engine: Engine, told: Mapping[str, Any]) -> Kept:
    id = str(told["Id"])
    about = await engine.call("GET", f"/images/{id}/json")
    history = await engine.call("GET", f"/images/{id}/history")
    tags = [tag for tag in told.get("RepoTags") or () if tag != "<none>:<none>"]
    return Kept(tags[0] if tags else id, id, used_at(about, time.time()), parts_of(about, history))


def used_at(about: Mapping[str, Any], now: float) -> float:
    """When it was last given its name, which we do at each use; ``now`` when nobody knows. Pure."""
    text = str((about.get("Metadata") or {}).get("LastTagTime") or "")
    with contextlib.suppress(ValueError):
        # Nanoseconds are more than Python reads.
        seconds, _, _ = text.rstrip("Z").partition(".")
        told = datetime.fromisoformat(f"{seconds[:19]}+00:00").timestamp()
        if told > 0:
            return told
    return now


def parts_of(about: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Layers with their bytes, as far as the daemon tells which are whose: else the whole. Pure."""
    layers = [str(layer) for layer in (about.get("RootFS") or {}).get("Layers") or ()]
    sizes = [int(step["Size"]) for step in reversed(history) if step.get("Size")]
    if len(layers) == len(sizes):
        return dict(zip(layers, sizes, strict=True))
    return {str(about["Id"]): int(about.get("Size") or 0)}
