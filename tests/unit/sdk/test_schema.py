"""What type hints become: OpenAPI documents, and validation with the field's path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import headrace
import pydantic
import pytest
from headrace.errors import SpecError, ValidationFailed
from headrace.sdk.schema import signature_of


@dataclass
class Point:
    x: float
    y: float = 0.0


class Model(pydantic.BaseModel):
    name: str
    points: list[Point] = []


def scalars(text: str, count: int = 3, *, flag: bool | None = None) -> dict[str, int]:
    """Count things.

    More about it.
    """
    return {}


def one(model: Model) -> list[Point]:
    return []


def raw(image: bytes) -> bytes:
    return image


def raw_or_text(image: Annotated[bytes | None, "an image"]) -> str:
    return ""


def nothing() -> None: ...


_DEFAULT = object()


def anything(x, y=_DEFAULT):  # type: ignore[no-untyped-def]
    return x


def stream(n: int) -> Iterator[Point]:
    yield Point(n)


async def astream(n: int) -> AsyncIterator[str]:
    yield ""


def extra(**options: Any) -> int:
    return 1


class Batched:
    def __call__(self, texts: list[str]) -> list[Point]:
        return []


def operation(target: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    document = headrace.endpoint(name="thing", **options)(target).openapi()
    assert document["openapi"] == "3.1.0"
    (path,) = document["paths"]
    assert path == "/e/thing"
    return document["paths"][path]["post"], document["components"]["schemas"]


def answer(op: dict[str, Any]) -> dict[str, Any]:
    return op["responses"]["200"]["content"]  # type: ignore[no-any-return]


def test_scalars_and_defaults() -> None:
    op, schemas = operation(scalars)
    body = op["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["text"]
    assert body["properties"]["text"] == {"type": "string"}
    assert body["properties"]["count"] == {"type": "integer", "default": 3}
    assert body["properties"]["flag"]["default"] is None
    assert body["additionalProperties"] is False
    assert answer(op)["application/json"]["schema"] == {
        "additionalProperties": {"type": "integer"},
        "type": "object",
    }
    assert op["summary"] == "Count things."
    assert "422" in op["responses"]
    assert op["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"].endswith(
        "/Problem"
    )
    assert "Problem" in schemas


def test_models_are_shared_schemas() -> None:
    op, schemas = operation(one)
    by_name, whole = op["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert whole == {"$ref": "#/components/schemas/Model"}
    assert by_name["properties"]["model"] == whole
    assert {"Model", "Point", "Problem"} <= set(schemas)
    assert schemas["Point"]["required"] == ["x"]


@pytest.mark.parametrize("target", [raw, raw_or_text])
def test_bytes_are_octet_streams(target: Any) -> None:
    op, _ = operation(target)
    assert set(op["requestBody"]["content"]) == {"application/octet-stream", "application/json"}
    assert ("application/octet-stream" in answer(op)) is (target is raw)


def test_streams_have_items() -> None:
    op, _ = operation(stream)
    assert set(answer(op)) == {"application/x-ndjson", "text/event-stream"}
    assert answer(op)["application/x-ndjson"]["schema"] == {"$ref": "#/components/schemas/Point"}
    op, _ = operation(astream)
    assert answer(op)["application/x-ndjson"]["schema"] == {"type": "string"}


def test_no_input_no_body() -> None:
    op, _ = operation(nothing)
    assert "requestBody" not in op
    assert answer(op)["application/json"]["schema"] == {"type": "null"}


def test_no_hints_mean_anything() -> None:
    op, _ = operation(anything)
    body = op["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"] == {"x": {}, "y": {}}


def test_keywords_mean_any_further_field() -> None:
    op, _ = operation(extra)
    body = op["requestBody"]["content"]["application/json"]["schema"]
    assert body["additionalProperties"] is True


def test_a_batch_is_described_as_one_request_of_it() -> None:
    op, _ = operation(Batched, batch=headrace.Batch())
    by_name, whole = op["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert whole == {"type": "string"}
    assert by_name["properties"]["texts"] == whole
    assert answer(op)["application/json"]["schema"] == {"$ref": "#/components/schemas/Point"}


def test_asgi_apps_have_any_path() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    document = headrace.endpoint(name="api")(app).openapi()
    assert list(document["paths"]) == ["/e/api/{path}"]


def test_hints_that_cannot_be_resolved_say_nothing() -> None:
    def handler(x: NotImported, y: int) -> Gone: ...  # type: ignore[name-defined]  # noqa: F821

    op, _ = operation(handler)
    body = op["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"] == {"x": {}, "y": {"type": "integer"}}


def test_types_that_json_cannot_hold_are_refused() -> None:
    class Array: ...

    def takes(x: Array) -> int: ...

    def gives() -> Array: ...

    takes.__annotations__["x"] = Array
    gives.__annotations__["return"] = Array
    with pytest.raises(SpecError, match="parameter 'x' is hinted Array"):
        headrace.endpoint(takes).openapi()
    with pytest.raises(SpecError, match="the result is hinted Array"):
        headrace.endpoint(gives).openapi()


def test_validation_converts_and_names_every_wrong_field() -> None:
    signature = signature_of(headrace.endpoint(one))
    values = signature.validate({"model": {"name": "n", "points": [{"x": 1}]}})
    assert values["model"].points == [Point(1.0)]
    with pytest.raises(ValidationFailed) as caught:
        signature.validate({"model": {"name": 3, "points": [{"y": "z"}]}, "more": 1})
    errors = {tuple(item["loc"]): item["type"] for item in caught.value.extra["errors"]}
    assert errors == {
        ("more",): "extra_forbidden",
        ("model", "name"): "string_type",
        ("model", "points", 0, "x"): "missing",
        ("model", "points", 0, "y"): "float_parsing",
    }
    with pytest.raises(ValidationFailed, match="1 of the input's fields"):
        signature.validate({})
