"""Checks of specs that come in: what the platform can run now, said before anything is stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from headrace.errors import BadRequest, BundleError, SpecError, UnsupportedOption, ValidationFailed
from headrace.sdk.options import check_spec
from headrace.sdk.spec import SPEC_VERSION, EndpointSpec, dump_spec, needs_asgi

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
            for needed in filter(None, (spec.bundle, spec.image.context)):
                if needed not in known:
                    known[needed] = has_bundle(needed)
            _need_bundle(spec, known)
        except (SpecError, UnsupportedOption, BundleError) as error:
            raise ValidationFailed(f"endpoint {spec.name!r}: {error.message}", hint=error.hint) from error
        found.append(spec if spec.project == project else msgspec.structs.replace(spec, project=project))
    return found


def slim(spec: EndpointSpec) -> EndpointSpec:
    """The spec without its OpenAPI document: what control keeps in memory."""
    return msgspec.structs.replace(spec, openapi={}) if spec.openapi else spec


def packed(spec: EndpointSpec) -> tuple[bytes, bytes]:
    """(canonical JSON, `digest`)."""
    return dump_spec(spec), digest(spec)


def digest(spec: EndpointSpec) -> bytes:
    """What tells versions apart, short enough to be kept for every endpoint.

    What nobody has set does not count: an option that the platform learns makes no version new.
    """
    chosen = _chosen(spec)
    if spec.cpu_limit == spec.cpu and "cpu" in chosen:
        # Cores that were asked for are the limit as well: that says nothing more, and older specs lack it.
        del chosen["cpu_limit"]
    return hashlib.sha256(_canonical.encode(chosen)).digest()


_canonical = msgspec.json.Encoder(order="deterministic")


@cache
def _defaults(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (f.name, f.default if f.default_factory is msgspec.NODEFAULT else f.default_factory())
        for f in msgspec.structs.fields(kind)
    )


def _chosen(value: Any) -> Any:
    """Without the members that are as they are when nobody sets them."""
    if isinstance(value, msgspec.Struct):
        members = ((name, getattr(value, name), default) for name, default in _defaults(type(value)))
        return {name: _chosen(found) for name, found, default in members if found != default}
    if isinstance(value, list | tuple):
        return [_chosen(item) for item in value]
    return value


def _need_bundle(spec: EndpointSpec, there: Mapping[str, bool]) -> None:
    hint = "Upload it first: PUT /bundles/{sha256}."
    if not there.get(spec.bundle):
        raise BundleError(f"bundle {spec.bundle or '(none)'} is not here.", hint=hint)
    if spec.image.context and not there[spec.image.context]:
        raise BundleError(f"the image's files {spec.image.context} are not here.", hint=hint)


def _refuse(spec: EndpointSpec) -> None:
    image = spec.image
    if bool(image.digest) != bool(image.layers or image.python) or bool(image.context) != bool(image.digest):
        raise SpecError(
            "its image has steps but was not packed, or the other way round.",
            hint="`headrace deploy` packs it: use the same version on both sides.",
        )
    if image.digest and not (_SHA256.fullmatch(image.digest) and _SHA256.fullmatch(image.context)):
        raise SpecError("image: digest and context must be SHA-256 in lower-case hex.")
    if spec.api == "openai" and spec.handler != "asgi":
        raise SpecError(needs_asgi(spec.name, spec.handler))


def as_json(data: bytes) -> Any:
    """A request's body. Raises `BadRequest`."""
    try:
        return msgspec.json.decode(data) if data else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}.") from error
