"""``headrace images``: what this machine has built or pulled, and its way to a registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from headrace_runtimes.errors import ImageFailed, RuntimeFailure
from headrace_runtimes.images.reference import Reference, parse
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.shelf import Shelved, matching, shelved
from headrace_runtimes.images.store import Store
from headrace_runtimes.images.wire import Patience

from headrace.cli.app import SUMMARIES
from headrace.cli.options import json_option
from headrace.cli.output import Output, moment, size, table
from headrace.config import load_settings
from headrace.errors import SetupError, UsageError

MIB = 1 << 20
SHORT = 12
TELL_EVERY_S = 0.5


@click.group("images", help=SUMMARIES["images"])
def images_command() -> None:
    """Those of the setting images_dir on this machine; what `process` builds is no image and stays here."""


@images_command.command("list")
@json_option
def images_list(out: Output) -> None:
    """List images that can be pushed: built for endpoints, or pulled."""
    where, found = _found()
    rows = [
        (i.name[:SHORT] if i.built else i.name, i.made_of, size(i.bytes), moment(i.used_at)) for i in found
    ]
    document = {"items": [asdict(item) for item in found], "next": None}
    columns = ("IMAGE", "MADE OF", "SIZE", "USED")
    out.answer(document, lambda: table(columns, rows, f"no images in {where}"))


@images_command.command("push")
@click.argument("image")
@click.argument("reference")
@json_option
def images_push(out: Output, image: str, reference: str) -> None:
    """Send IMAGE (as `headrace images list` or `describe` show it, or its digest) to a registry.

    REFERENCE is host/name:tag. Who we are there is what `docker login` has kept for this user.
    """
    try:
        target = parse(reference)
    except ImageFailed as error:
        raise UsageError(str(error)) from error
    if target.digest:
        raise UsageError(f"{reference}: the digest comes out of the push.", hint="Name it by a tag.")
    where, found = _found()
    chosen = _choose(matching(found, image), image, where)
    with out.progress(f"pushing {target}") as change:
        try:
            asyncio.run(_push(where, chosen, target, change))
        except (RuntimeFailure, OSError) as error:
            raise SetupError(f"{target} was not pushed: {error}") from error
    pinned = f"{target}@{chosen.digest}"
    document = {"image": chosen.name, "reference": str(target), "digest": chosen.digest, "pinned": pinned}
    out.answer(document, f'pushed: headrace.Image.from_registry("{pinned}")')


async def _push(where: Path, image: Shelved, target: Reference, change: Callable[[str], None]) -> None:
    told = 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            change(f"pushing {what} ({done // MIB} of {total // MIB} MiB)")

    limit_s = Patience().whole_s(image.bytes)
    try:
        async with asyncio.timeout(limit_s) as deadline, Registry(target) as registry:
            await registry.push(Store(where), image.digest, tell)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise RuntimeFailure(
            f"{target.host} has not taken it within {limit_s:.0f} s. What it has is kept: push again."
        ) from error


def _found() -> tuple[Path, list[Shelved]]:
    where = load_settings().images
    try:
        return where, shelved(Store(where))
    except OSError as error:
        raise SetupError(f"{where} cannot be read: {error}.", hint="Ask as the platform's user.") from error


def _choose(found: list[Shelved], wish: str, where: Path) -> Shelved:
    if not found:
        raise UsageError(f"there is no image {wish} in {where}.", hint="`headrace images list` shows all.")
    if len({item.digest for item in found}) > 1:
        names = ", ".join(sorted(item.name for item in found)[:5])
        raise UsageError(f"{wish} may be {names}.", hint="Give more of its name.")
    return found[0]
