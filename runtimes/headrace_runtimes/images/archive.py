"""An image as the archive that ``docker load`` takes, for engines that keep images of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.store import Store, Stored


async def write_docker_archive(
    store: Store, stored: Stored, name: str, target: Path, labels: Mapping[str, str] | None = None
) -> None:
    """Write ``target``; the engine will know the image as ``name`` (``repository:tag``), with these labels.

    Layers stay compressed: the engine unpacks and checks them against the configuration's digests.
    Raises `PrepareFailed`.
    """
    with store.pin(stored.digest):
        try:
            await asyncio.to_thread(_write, store, stored, name, target, labels)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(target)
            raise PrepareFailed(f"The image cannot be written to {target}: {error}.") from error


def _write(store: Store, stored: Stored, name: str, target: Path, labels: Mapping[str, str] | None) -> None:
    about = store.blob(stored.manifest.config.digest).read_bytes()
    if labels:
        about = labelled(about, labels)
    config = hashlib.sha256(about).hexdigest()
    layers = [f"{layer.digest.removeprefix('sha256:')}/layer.tar" for layer in stored.manifest.layers]
    entry = {"Config": f"{config}.json", "RepoTags": [name], "Layers": layers}
    with tarfile.open(target, "w") as archive:
        _add(archive, "manifest.json", json.dumps([entry]).encode())
        _add(archive, f"{config}.json", about)
        for path, layer in dict(zip(layers, stored.manifest.layers, strict=True)).items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = layer.size, 0o644
            with open(store.blob(layer.digest), "rb") as file:
                archive.addfile(info, file)


def labelled(config: bytes, labels: Mapping[str, str]) -> bytes:
    """An image's configuration with more labels. Pure."""
    about = json.loads(config)
    inner = about["config"] = about.get("config") or {}
    inner["Labels"] = {**(inner.get("Labels") or {}), **labels}
    return json.dumps(about).encode()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))
