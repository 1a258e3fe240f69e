"""What a container driver calls: an image, ready to be the lower directories of an overlay."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.images.build import FILES_DIR, Builder, BuildSettings
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.reference import settings as settings_of
from headrace_runtimes.images.reference import variables
from headrace_runtimes.images.store import Store


@dataclass(frozen=True)
class Prepared:
    """An image that is here."""

    digest: str
    """Of its manifest: what `Store.pin` takes."""
    layers: tuple[Path, ...]
    """Lower directories, top first, as overlayfs wants them."""
    env: Mapping[str, str]
    """The image's own variables."""
    python: str
    """Path of the interpreter inside."""
    workdir: str
    config: Mapping[str, Any]
    """``Entrypoint``, ``Cmd``, ``User`` and so on, as the image says."""


async def prepare(
    store: Store,
    image: Image,
    progress: Progress | None = None,
    *,
    settings: BuildSettings,
    context: Path | None = None,
    hold: contextlib.ExitStack | None = None,
) -> Prepared:
    """Have the image here, pulled or built, and unpacked; quick when it is.

    ``context`` is the directory that `context.unpack` filled, for definitions with files. ``hold`` gets the
    image's pin: nothing of it is collected until that is closed, when no container uses it any more.
    Raises `ImageFailed`, `RegistryFailed`, `PrepareFailed`.
    """
    builder = Builder(store, settings)
    with contextlib.ExitStack() as pins:
        stored = await builder.build(image, context, progress, pins)
        layers = await builder.layers(stored)
        about = settings_of(stored.config)
        python = await builder.python_of(stored, layers, image.python)
        env = variables(about.get("Env"))
        if any(kind == "copy" and not words[1].startswith("/") for kind, words in image.steps):
            env["HEADRACE_FILES"] = FILES_DIR
        if hold is not None:
            hold.enter_context(pins.pop_all())
    return Prepared(stored.digest, layers, env, python, about.get("WorkingDir") or "/", about)
