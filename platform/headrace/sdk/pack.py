"""Packs an endpoint's image for a deploy: its definition and the files that it copies, under their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images import context

from headrace.errors import BundleError
from headrace.sdk.bundle import MAX_BYTES
from headrace.sdk.image import definition_of
from headrace.sdk.spec import ImageSpec


class PackedImage(NamedTuple):
    """An image ready to be sent."""

    spec: ImageSpec
    """With ``digest`` and ``context``."""
    data: bytes
    """The zip that ``context`` is the hash of."""
    files: tuple[str, ...]
    """What is in it, relative to the project's root."""


def pack_image(spec: ImageSpec, root: Path) -> PackedImage | None:
    """The image with its files below ``root``; None when it asks for nothing.

    Raises `BundleError` for files that are missing, outside of the project, or too large.
    """
    definition = definition_of(spec)
    if not definition.digest:
        return None
    try:
        whole, data = context.pack(definition, root)
    except ImageFailed as error:
        raise BundleError(f"image: {error}") from error
    if len(data) > MAX_BYTES:
        raise BundleError(
            f"the image's files have {len(data) >> 20} MiB, and {MAX_BYTES >> 20} MiB is the limit.",
            hint="Fetch large ones in a run step, or keep them as weights.",
        )
    packed = msgspec.structs.replace(spec, digest=whole.digest, context=hashlib.sha256(data).hexdigest())
    return PackedImage(packed, data, context.names(data))
