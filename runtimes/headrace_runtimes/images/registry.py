"""Pulls and pushes images by the registry's own protocol (OCI distribution), into and out of a `Store`.

Our own client, not ``skopeo``: errors are types with a status, a download goes on where it was cut, progress
is told by layer, and a password never is an argument of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, RegistryFailed
from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.reference import (
    INDEXES,
    MANIFESTS,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Reference,
    choose,
    diff_ids,
    is_digest,
    manifest_of,
)
from headrace_runtimes.images.store import MAX_DOCUMENT, Blob, Store, Stored
from headrace_runtimes.images.wire import Patience, Refused, Wire

PARALLEL = 3
MAX_LAYER = 64 << 30
"""Bytes of one layer as it is sent: no more than it may have when it is unpacked."""
_RANGE = re.compile(r"bytes (\d+)-")


class Registry:
    """One repository of one registry. Use it as an async context."""

    def __init__(
        self,
        reference: Reference,
        *,
        credentials: Credentials | None = None,
        docker_config: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.reference = reference
        self._wire = Wire(
            f"{reference.scheme}://{reference.host}", credentials=credentials,
            docker_config=docker_config, patience=patience,
        )  # fmt: skip
        self._patience = self._wire.patience

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    async def resolve(self) -> str:
        """The digest that the reference has now: what to pin. Raises `RegistryFailed`."""
        if self.reference.digest:
            return self.reference.digest
        data, _ = await self._manifest(self.reference.wanted)
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def pull(self, store: Store, progress: Progress | None = None) -> Stored:
        """Have the image in the store, unpacked, under its reference. Raises `RegistryFailed`, `ImageFailed`.

        The layers are pulled some at a time, each unpacked when it is there.
        """
        data, media_type = await self._manifest(self.reference.wanted)
        if media_type in INDEXES:
            chosen = choose(json.loads(data))
            data, media_type = await self._manifest(chosen.digest)
        if media_type not in MANIFESTS:
            raise ImageFailed(f"{self.reference} is no image but {media_type!r:.100}: name another.")
        manifest = manifest_of(json.loads(data))
        if manifest.config.size > MAX_DOCUMENT or any(part.size > MAX_LAYER for part in manifest.layers):
            raise ImageFailed(
                f"{self.reference} has a layer of more than {MAX_LAYER >> 30} GiB, or a configuration of "
                f"more than {MAX_DOCUMENT >> 20} MiB: push it anew."
            )
        size = sum(part.size for part in (manifest.config, *manifest.layers))
        limit_s = self._patience.whole_s(size)
        try:
            async with asyncio.timeout(limit_s) as deadline:
                return await self._bring(store, manifest, data, media_type, progress=progress)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise RegistryFailed(
                f"{self._wire.base.authority} has not sent the {size >> 20} MiB of {self.reference} within "
                f"{limit_s:.0f} s. What has come is kept: try again when the network is faster."
            ) from error

    async def _bring(
        self, store: Store, manifest: Manifest, data: bytes, media_type: str, *, progress: Progress | None
    ) -> Stored:
        """What the manifest ``data`` names, and it. Raises as `pull`."""
        await self._blob(store, manifest.config, None)
        kept = await store.put(data, media_type)
        with store.pin(kept.digest):
            ids = diff_ids(store.document(manifest.config.digest))
            if len(ids) != len(manifest.layers):
                raise ImageFailed(f"{self.reference} says two different numbers of layers: push it again.")
            gate = asyncio.Semaphore(PARALLEL)

            async def bring(layer: Descriptor, diff_id: str) -> None:
                async with gate:
                    await self._blob(store, layer, progress)
                await store.layer(layer, diff_id)

            await _all(bring(layer, i) for layer, i in zip(manifest.layers, ids, strict=True))
            await store.name(str(self.reference), kept.digest)
        return store.load(kept.digest)

    async def push(self, store: Store, digest: str, progress: Progress | None = None) -> str:
        """Send the image of that manifest under the reference; its digest. Raises `RegistryFailed`."""
        with store.pin(digest):
            stored = store.load(digest)
            for part in (*stored.manifest.layers, stored.manifest.config):
                await self._send(store, part, progress)
            path = store.blob(digest)
            data = await asyncio.to_thread(path.read_bytes)
            media_type = json.loads(data).get("mediaType") or OCI_MANIFEST

            async def body() -> AsyncIterator[bytes]:
                yield data

            url = self._url(f"manifests/{self.reference.tag or digest}")
            await self._wire.ask(
                "PUT", url, self._scope("pull,push"), str(self.reference), body=body, good=(201,),
                headers={"Content-Type": media_type, "Content-Length": str(len(data))},
            )  # fmt: skip
        return digest

    async def _manifest(self, wanted: str) -> tuple[bytes, str]:
        accept = ", ".join((*INDEXES, *MANIFESTS))
        between = "@" if is_digest(wanted) else ":"
        what = f"{self.reference.registry}/{self.reference.repository}{between}{wanted}"

        async def attempt() -> tuple[bytes, str]:
            url, scope = self._url(f"manifests/{wanted}"), self._scope("pull")
            _, headers, data = await self._wire.ask("GET", url, scope, what, headers={"Accept": accept})
            kind = headers.get("Content-Type", "").partition(";")[0].strip()
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                kind = str(json.loads(data).get("mediaType") or kind)
            return data, kind

        data, kind = await attempt()
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if wanted.startswith("sha256:") and found != wanted:
            raise RegistryFailed(
                f"{self._wire.base.authority} sends {found} for {what}: its content is damaged."
            )
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RegistryFailed(f"{self._wire.base.authority} sends no manifest for {what}.") from error
        return data, kind

    async def _blob(self, store: Store, wanted: Descriptor, progress: Progress | None) -> None:
        """Download unless it is here: resumed after cuts, checked at the end."""
        what = f"{self.reference.repository} {wanted.digest[:19]}"
        async with store.write(wanted) as blob:
            if blob is None:
                if progress:
                    progress(what, wanted.size, wanted.size)
                return
            await asyncio.to_thread(blob.resume)
            resumed = blob.size > 0

            def tell() -> None:
                if progress:
                    progress(what, blob.size, wanted.size)

            while True:
                await self._wire.patiently(
                    what, lambda: self._download(wanted, blob, tell), lambda: blob.size
                )
                if blob.whole():
                    return
                blob.restart()
                if not resumed:
                    raise RegistryFailed(
                        f"{self._wire.base.authority} sends something else than {wanted.digest}: "
                        "its content is damaged, push the image again."
                    )
                # What lay here may have been the wrong part: once more, all of it.
                resumed = False

    async def _download(self, wanted: Descriptor, blob: Blob, tell: Callable[[], None]) -> None:
        if blob.size == wanted.size:
            return
        headers = {"Range": f"bytes={blob.size}-"} if blob.size else {}
        url = self._url(f"blobs/{wanted.digest}")
        scope = self._scope("pull")
        async with self._wire.once("GET", url, scope, headers=headers, good=(200, 206, 416)) as answer:
            if answer.status == 416:
                blob.restart()
                raise Refused("does not go on with what it began", 416, again=True)
            start = _RANGE.match(answer.headers.get("Content-Range", "")) if answer.status == 206 else None
            if blob.size and (start is None or int(start[1]) != blob.size):
                blob.restart()
                if answer.status == 206:
                    raise Refused("goes on somewhere else", 206, again=True)
            pace = _Pace(self._patience, asyncio.get_running_loop().time())
            async for piece in answer.content.iter_chunked(1 << 18):
                if blob.size + len(piece) > wanted.size:
                    blob.restart()
                    raise Refused(f"sends more than the {wanted.size} bytes of {wanted.digest}")
                await asyncio.to_thread(blob.add, piece)
                tell()
                pace.check(len(piece), asyncio.get_running_loop().time())
        if blob.size < wanted.size:
            raise Refused("cut the connection", again=True)

    async def _send(self, store: Store, part: Descriptor, progress: Progress | None) -> None:
        what, scope = f"{self.reference.repository} {part.digest[:19]}", self._scope("pull,push")
        path = store.blob(part.digest)
        url = self._url(f"blobs/{part.digest}")
        status, _, _ = await self._wire.ask("HEAD", url, scope, what, good=(200, 404))
        if status == 200:
            if progress:
                progress(what, part.size, part.size)
            return

        async def body() -> AsyncIterator[bytes]:
            done = 0
            with open(path, "rb") as file:  # noqa: ASYNC230 - opening is quick
                while piece := await asyncio.to_thread(file.read, 1 << 18):
                    yield piece
                    done += len(piece)
                    if progress:
                        progress(what, done, part.size)

        async def attempt() -> None:
            begin = self._url("blobs/uploads/")
            async with self._wire.once("POST", begin, scope, good=(202,)) as answer:
                target = self._wire.follow(begin, answer.headers.get("Location", ""))
            sent = {"Content-Type": "application/octet-stream", "Content-Length": str(part.size)}
            target = target.update_query(digest=part.digest)
            async with self._wire.once("PUT", target, scope, headers=sent, body=body, good=(201,)):
                return

        await self._wire.patiently(what, attempt)

    def _url(self, rest: str) -> Any:
        return self._wire.base.joinpath("v2", *self.reference.repository.split("/"), *rest.split("/"))

    def _scope(self, rights: str) -> str:
        return f"repository:{self.reference.repository}:{rights}"


class _Pace:
    """Notices a registry that sends, but so little that nobody would wait for the end."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience, self._since, self._bytes = patience, now, 0

    def check(self, size: int, now: float) -> None:
        self._bytes += size
        if now - self._since < self._patience.slow_s:
            return
        if self._bytes < self._patience.slow_bytes_s * (now - self._since):
            raise Refused(f"sends less than {self._patience.slow_bytes_s} bytes a second", again=True)
        self._since, self._bytes = now, 0


async def _all(work: Any) -> None:
    """Run all; the first failure ends the others and is raised as itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
