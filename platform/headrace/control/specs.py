"""Checks of specs that come in: what the platform can run now, said before anything is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from headrace.errors import BadRequest, BundleError, SpecError, UnsupportedOption, ValidationFailed
from headrace.sdk.options import check_spec
from headrace.sdk.spec import SPEC_VERSION, EndpointSpec, dump_spec, needs_asgi


class DeploymentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /deployments``."""

    specs: list[EndpointSpec]
    verify: bool = True


def parse_deployment(body: bytes) -> DeploymentRequest:
    """Raises `BadRequest` for what is not JSON, `ValidationFailed` naming the field else."""
    try:
        request = msgspec.json.decode(body, type=DeploymentRequest)
    except msgspec.ValidationError as error:
        raise ValidationFailed(
            f"the deployment: {error}.", hint="`headrace deploy` makes the body."
        ) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}.") from error
    except (SpecError, UnsupportedOption) as error:
        raise ValidationFailed(f"the deployment: {error.message}", hint=error.hint) from error
    for spec in request.specs:
        _check(spec)
    if not request.specs:
        raise ValidationFailed("the deployment names no endpoint.", hint="Give at least one spec.")
    names = [spec.name for spec in request.specs]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ValidationFailed(f"endpoint {twice!r} is there twice.", hint='Name them with name="...".')
    return request


def _check(spec: EndpointSpec) -> None:
    """What the SDK has checked, if it was the SDK that made it. Raises `ValidationFailed`."""
    if spec.spec_version != SPEC_VERSION:
        raise ValidationFailed(
            f"endpoint {spec.name!r}: its spec is not of this platform's version {SPEC_VERSION}.",
            hint="Use the same version of headrace on both sides.",
        )
    try:
        check_spec(spec)
    except (SpecError, UnsupportedOption) as error:
        raise ValidationFailed(f"endpoint {spec.name!r}: {error.message}", hint=error.hint) from error


def checked(
    specs: Iterable[EndpointSpec], project: str, has_bundle: Callable[[str], bool]
) -> list[EndpointSpec]:
    """The specs in this project. Raises `ValidationFailed` for one that cannot run here."""
    known: dict[str, bool] = {}
    found: list[EndpointSpec] = []
    for spec in specs:
        try:
            _refuse(spec)
            if spec.bundle not in known:
                known[spec.bundle] = has_bundle(spec.bundle)
            _need_bundle(spec, known[spec.bundle])
        except (SpecError, UnsupportedOption, BundleError) as error:
            raise ValidationFailed(f"endpoint {spec.name!r}: {error.message}", hint=error.hint) from error
        found.append(spec if spec.project == project else msgspec.structs.replace(spec, project=project))
    return found


def slim(spec: EndpointSpec) -> EndpointSpec:
    """The spec without its OpenAPI document: what control keeps in memory."""
    return msgspec.structs.replace(spec, openapi={}) if spec.openapi else spec


def packed(spec: EndpointSpec) -> tuple[bytes, bytes]:
    """(canonical JSON, its digest)."""
    data = dump_spec(spec)
    return data, digest(data)


def digest(data: bytes) -> bytes:
    """Short enough to be kept for every endpoint."""
    return hashlib.sha256(data).digest()


def _need_bundle(spec: EndpointSpec, there: bool) -> None:
    if not there:
        what = f"bundle {spec.bundle or '(none)'} is not here."
        raise BundleError(what, hint="Upload it first: PUT /bundles/{sha256}.")


def _refuse(spec: EndpointSpec) -> None:
    later = "is not built yet"
    if spec.runtime != "process":
        raise UnsupportedOption(f'runtime="{spec.runtime}" {later}.', hint='Use runtime="process".')
    if spec.image.layers or spec.image.python:
        raise UnsupportedOption(
            f"an image with layers or a Python version {later}.",
            hint="Endpoints run in the platform's own Python environment: install packages there.",
        )
    if spec.api == "openai" and spec.handler != "asgi":
        raise SpecError(needs_asgi(spec.name, spec.handler))


def as_json(data: bytes) -> Any:
    """A request's body. Raises `BadRequest`."""
    try:
        return msgspec.json.decode(data) if data else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}.") from error
