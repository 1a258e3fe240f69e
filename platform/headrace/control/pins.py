"""Tags of images are looked up once, at the deployment: every host and every later start has the same bytes.

The digest becomes a part of the image's definition, and that of the version: going back means the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images import context
from headrace_runtimes.images.pins import moving, pinned
from headrace_runtimes.images.reference import Reference

from headrace import wire
from headrace.control.blobs import Blobs
from headrace.control.model import Host, World
from headrace.errors import LinkError, ValidationFailed
from headrace.sdk.image import definition_of
from headrace.sdk.spec import EndpointSpec

HOST_WAIT_S = 15.0
"""A deployment waits so long for a host that can ask the registry (its credentials are there)."""
ANSWER_S = 25.0
POLL_S = 0.1


async def pin_images(world: World, blobs: Blobs, specs: Sequence[EndpointSpec]) -> list[EndpointSpec]:
    """The specs with the digests of the tags they name. Raises `ValidationFailed` when one is not found."""
    wanted = {reference for spec in specs if (reference := _moving(spec)) is not None}
    if not wanted:
        return list(specs)
    # One question for each, however many endpoints start from it: they get the same.
    runtimes = {_moving(spec): spec.runtime for spec in specs}
    names = sorted(wanted, key=str)
    answers = await asyncio.gather(*(_find(world, runtimes[name], name) for name in names))
    found = dict(zip(names, answers, strict=True))
    result = []
    for spec in specs:
        reference = _moving(spec)
        if reference is None:
            result.append(spec)
            continue
        answer = found[reference]
        if answer.why:
            raise ValidationFailed(f"endpoint {spec.name!r}: image: {answer.why.rstrip('.')}.")
        result.append(await _with_digest(blobs, spec, answer.digest))
    return result


def _moving(spec: EndpointSpec) -> Reference | None:
    # What was not packed has been refused, and so has what is no reference.
    return moving(definition_of(spec.image)) if spec.image.digest else None


async def _find(world: World, runtime: str, reference: Reference) -> wire.FoundImage:
    loop = asyncio.get_running_loop()
    until = loop.time() + HOST_WAIT_S
    asked: set[str] = set()
    while True:
        for host in [h for h in world.living_hosts() if h.id not in asked and _can_ask(h, runtime)]:
            asked.add(host.id)
            assert host.link is not None
            try:
                answer = await host.link.call(wire.FindImage(reference=str(reference)), ANSWER_S)
            except (LinkError, TimeoutError):
                continue
            if isinstance(answer, wire.FoundImage):
                return answer
        if loop.time() >= until:
            why = f'no host with runtime "{runtime}" is there to ask what {reference} means now'
            return wire.FoundImage(why=f"{why}: deploy when one is, or name the image by its digest")
        await asyncio.sleep(POLL_S)


def _can_ask(host: Host, runtime: str) -> bool:
    return host.usable and runtime in host.hello.runtimes


async def _with_digest(blobs: Blobs, spec: EndpointSpec, digest: str) -> EndpointSpec:
    """Its image under its new name, the files with it."""
    _, data = await blobs.read(spec.image.context, 0, context.MAX_BYTES * 2)

    def repack() -> tuple[EndpointSpec, bytes]:
        image = pinned(context.definition_in(data), digest)
        packed = context.with_definition(data, image)
        named = msgspec.structs.replace(
            spec.image, layers=image.steps, digest=image.digest, context=hashlib.sha256(packed).hexdigest()
        )
        return msgspec.structs.replace(spec, image=named), packed

    try:
        new, packed = await asyncio.to_thread(repack)
    except ImageFailed as error:
        raise ValidationFailed(f"endpoint {spec.name!r}: image: {error}") from error
    await blobs.put(new.image.context, packed)
    return new
