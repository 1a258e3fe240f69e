"""A registry of the suite's own, and an image in it that has a Python and a shell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headrace_runtimes.images.build import Builder, BuildSettings
from headrace_runtimes.images.context import pack
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.reference import parse
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.store import Store

PASSWORD = "open sesame"
HTPASSWD = "ali:$2b$05$y4a1nFs4NTXS.Ht8U31h/epdFF5CWO896bwudlwoIrjLTPcUVjM1W\n"
"""Of ``ali``, with that password."""


@contextlib.asynccontextmanager
async def real_registry(tmp_path: Path, htpasswd: str | None = None) -> AsyncIterator[str]:
    """Debian's docker-registry on loopback; its host and port."""
    binary = shutil.which("docker-registry")
    assert binary, "apt-get install docker-registry"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config: dict[str, Any] = {
        "version": "0.1", "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }  # fmt: skip
    if htpasswd:
        (tmp_path / "htpasswd").write_text(htpasswd)
        config["auth"] = {"htpasswd": {"realm": "here", "path": str(tmp_path / "htpasswd")}}
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        binary, "serve", str(tmp_path / "registry.yml"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def push_python(folder: Path, *references: str) -> None:
    """Push the root of this machine's Python with ``/bin/sh``, under each reference."""
    files = folder / "files"
    files.mkdir(parents=True)
    shutil.copy(os.path.realpath("/bin/sh"), files / "sh")
    image, _ = pack(Image(steps=(("copy", ("sh", "/bin/sh")),)), files)
    store = Store(folder / "store")
    await store.open()
    stored = await Builder(store, BuildSettings(host_python=sys.executable)).build(image, files)
    for reference in references:
        async with Registry(parse(reference)) as registry:
            await registry.push(store, stored.digest)
