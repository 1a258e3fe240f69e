"""Tags of images are looked up once, at the deployment: every host and every later start has the same bytes.

The digest becomes a part of the image's definition, and that of the version: going back means the old one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images import context
from headrace_runtimes.images.definition import STARTS, Image
from headrace_runtimes.images.pins import moving, own_python, pinned, started_from
from headrace_runtimes.images.reference import Reference, parse

from headrace import wire
from headrace.control.blobs import Blobs
from headrace.control.model import Host, World
from headrace.control.support import PROCESS
from headrace.errors import LinkError, ValidationFailed
from headrace.sdk.image import definition_of
from headrace.sdk.spec import EndpointSpec

HOST_WAIT_S = 15.0
"""A deployment waits so long for a host that can ask the registry (its credentials are there)."""
ANSWER_S = 25.0
AT_ONCE = 16
"""Questions of one deployment: each is one to a registry, with the rights of a host."""
POLL_S = 0.1


@dataclass(frozen=True)
class _Start:
    """Where the image of an endpoint starts."""

    image: Image
    base: str = ""
    """The registry's Python that it starts from instead of the hosts' own; empty: as the endpoint says."""
    why: str = ""
    """Why that one."""

    @property
    def moving(self) -> Reference | None:
        return moving(self.image)


async def pin_images(
    world: World, blobs: Blobs, specs: Sequence[EndpointSpec], python_image: str
) -> list[EndpointSpec]:
    """The specs with the digests of the tags they name, and of the Python that the hosts' own is not enough
    for (``python_image``: the setting). Raises `ValidationFailed` when one is not found.
    """
    # What was not packed has been refused, and so has what is no reference.
    starts = await asyncio.gather(*(_start(world, spec, python_image) for spec in specs))
    # One question for each, however many endpoints start from it: they get the same.
    runtimes = {
        reference: spec.runtime
        for spec, start in zip(specs, starts, strict=True)
        if (reference := start.moving) is not None
    }
    gate = asyncio.Semaphore(AT_ONCE)

    async def find(runtime: str, reference: Reference) -> wire.FoundImage:
        async with gate:
            return await _find(world, runtime, reference)

    answers = await asyncio.gather(*(find(runtime, name) for name, runtime in runtimes.items()))
    found = dict(zip(runtimes, answers, strict=True))
    result = []
    for spec, start in zip(specs, starts, strict=True):
        if (reference := start.moving) is None:
            result.append(spec)
            continue
        answer = found[reference]
        if answer.why:
            told = f"{start.why}: {answer.why}" if start.why else answer.why
            raise ValidationFailed(f"endpoint {spec.name!r}: image: {told.rstrip('.')}.")
        result.append(await _with_digest(blobs, spec, start.base, answer.digest))
    return result


async def _start(world: World, spec: EndpointSpec, template: str) -> _Start:
    image = definition_of(spec.image)
    if spec.runtime == PROCESS or not template or not spec.image.digest:
        return _Start(image)
    bare = own_python(image, ())
    if (image.steps and image.steps[0][0] in STARTS) or (bare and image.python is None):
        return _Start(image)
    pythons = await _pythons(world, spec.runtime)
    if not pythons or own_python(image, pythons):
        # Without hosts nobody knows: the trial says what is missing.
        return _Start(image)
    version = image.python or ".".join(pythons[0].split(".")[:2])
    base = template.replace("{version}", version)
    if bare:
        reason = f"hosts have Python {', '.join(pythons)}, not {version}"
    else:
        reason = "apt and run need more than the hosts' own Python"
    try:
        parse(base)
    except ImageFailed as error:
        raise ValidationFailed(f"setting python_image: {error}") from error
    why = f"it starts from {base} (setting python_image), for {reason}"
    return _Start(started_from(image, base), base, why)


async def _pythons(world: World, runtime: str) -> list[str]:
    """Versions of the Pythons of the hosts with this runtime, sorted; waits a while for the first host."""
    loop = asyncio.get_running_loop()
    until = loop.time() + HOST_WAIT_S
    while True:
        hosts = [host for host in world.living_hosts() if _can_ask(host, runtime)]
        if hosts or loop.time() >= until:
            return sorted({host.hello.python for host in hosts if host.hello.python})
        await asyncio.sleep(POLL_S)


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


async def _with_digest(blobs: Blobs, spec: EndpointSpec, base: str, digest: str) -> EndpointSpec:
    """Its image under its new name, the files with it."""
    _, data = await blobs.read(spec.image.context, 0, context.MAX_BYTES * 2)

    def repack() -> tuple[EndpointSpec, bytes]:
        image = context.definition_in(data)
        image = pinned(started_from(image, base) if base else image, digest)
        packed = context.with_definition(data, image)
        named = msgspec.structs.replace(
            spec.image,
            python=image.python,
            layers=image.steps,
            digest=image.digest,
            context=hashlib.sha256(packed).hexdigest(),
        )
        return msgspec.structs.replace(spec, image=named), packed

    try:
        new, packed = await asyncio.to_thread(repack)
    except ImageFailed as error:
        raise ValidationFailed(f"endpoint {spec.name!r}: image: {error}") from error
    await blobs.put(new.image.context, packed)
    return new
