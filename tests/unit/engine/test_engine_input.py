"""From request to arguments and from result to answer: what is mapped, what is refused, and how."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pydantic
import pytest


class Item(pydantic.BaseModel):
    name: str
    tags: list[str] = []


@dataclasses.dataclass
class Point:
    x: float
    at: dt.datetime


def two(a: int, b: str = "b") -> list[Any]:
    return [a, b]


def texts(texts: list[str]) -> int:
    return len(texts)


def item(item: Item) -> Item:
    return Item(name=item.name, tags=[*item.tags, "seen"])


def untyped(x, y=2):
    return {"x": x, "y": y}


def anything(data):
    return data


def options(**kwargs):
    return kwargs


def positional(a: int, /, b: int = 1) -> int:
    return a - b


def nothing():
    return "ok"


def default(x: int = 7) -> int:
    return x


def raw(data: bytes | None) -> int:
    return len(data or b"")


@pytest.mark.parametrize(
    ("handler", "body", "expected"),
    [
        (two, {"a": 1, "b": "x"}, [1, "x"]),
        (two, {"a": "1"}, [1, "b"]),
        (texts, {"texts": ["a", "b"]}, 2),
        (texts, ["a", "b", "c"], 3),
        (item, {"item": {"name": "n"}}, {"name": "n", "tags": ["seen"]}),
        (item, {"name": "n"}, {"name": "n", "tags": ["seen"]}),
        (untyped, {"x": [1]}, {"x": [1], "y": 2}),
        (anything, {"any": 1}, {"any": 1}),
        (anything, {"data": 1}, 1),
        (anything, 3, 3),
        (anything, {}, {}),
        (options, {"a": 1}, {"a": 1}),
        (positional, {"a": 5, "b": 2}, 3),
        (default, {}, 7),
        (nothing, {}, "ok"),
        (raw, "abc", 3),
    ],
)
async def test_json_is_mapped_by_name_or_given_whole(serve, handler, body, expected):
    answer = await (await serve(handler)).call(body)
    assert (answer.status, answer.json()) == (200, expected)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("handler", "body", "loc", "kind"),
    [
        (texts, {"texts": [5]}, ["texts", 0], "string_type"),
        (texts, {"texts": "x"}, ["texts"], "list_type"),
        (texts, {"text": ["x"]}, ["texts"], "missing"),
        (texts, 5, [], "list_type"),
        (item, {"nam": "x"}, ["name"], "missing"),
        (two, {"b": "x"}, ["a"], "missing"),
        (two, {"a": 1, "c": 2}, ["c"], "extra_forbidden"),
        (two, {"a": "one"}, ["a"], "int_parsing"),
        (two, [1], [], "object_type"),
        (untyped, {"z": 1}, ["x"], "missing"),
        (nothing, {"x": 1}, ["x"], "extra_forbidden"),
        (nothing, 5, [], "object_type"),
    ],
)
async def test_wrong_input_is_told_with_the_fields_path(serve, handler, body, loc, kind):
    running = await serve(handler)
    answer = await running.call(body)
    problem = answer.json()
    assert (answer.status, problem["type"]) == (422, "urn:headrace:validation-failed")
    assert (problem["errors"][0]["loc"], problem["errors"][0]["type"]) == (loc, kind)
    assert set(problem["errors"][0]) == {"loc", "msg", "type"}
    if loc:
        assert problem["detail"].startswith(str(loc[0]))
    assert running.server.in_flight == 0


async def test_a_wrong_name_is_answered_with_the_closest(serve):
    problem = (await (await serve(texts)).call({"txts": ["x"]})).json()
    assert "did you mean 'texts'" in problem["errors"][1]["msg"]


@pytest.mark.parametrize(
    "body", [b"{", b"[1,]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b"1" * 5000, b"nul", b"\xef\xbb\xbf1"]
)
async def test_what_is_not_json_is_422(serve, body):
    answer = await (await serve(anything)).call(body=body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.json()["errors"][0]["type"]) == (422, "json_invalid")


@pytest.mark.parametrize(
    ("handler", "body"),
    [
        (two, {f"name-{n}": n for n in range(20_000)}),
        (two, {"x" * 500_000: 1}),
        (two, {"a": "x" * 500_000}),
        (texts, list(range(100_000))),
        (texts, {"texts": list(range(100_000))}),
        (item, {"name": 5, "tags": [["x"]] * 100_000}),
    ],
    ids=["names", "name", "value", "values", "field", "model"],
)
async def test_what_is_told_of_wrong_input_is_less_than_the_input(serve, handler, body):
    answer = await (await serve(handler)).call(body)
    assert answer.status == 422
    assert answer.json()["errors"]
    assert len(answer.body) < 20_000


async def test_content_types(serve):
    plain, binary = await serve(anything), await serve(raw)
    png = {"Content-Type": "image/png"}
    assert (await plain.call(body=b"\x89PNG", headers=png)).status == 415
    assert (await plain.call(body=b"{}")).status == 415
    assert (await binary.call(body=b"\x89PNG", headers=png)).json() == 4
    assert (await binary.call(body=b"\x89PN")).json() == 3
    assert (
        await plain.call(body=b"[1]", headers={"Content-Type": "Application/LD+JSON; charset=utf-8"})
    ).json() == [1]


async def test_without_a_body_a_get_takes_the_query_and_a_post_nothing(serve):
    running = await serve(two)
    assert (await running.call(method="GET", path="/?a=4&b=%C3%A4")).json() == [4, "ä"]
    assert (await running.call(method="GET", path="/?a=x")).status == 422
    assert (await running.call(method="POST", path="/?a=4")).status == 422
    assert (await (await serve(default)).call()).json() == 7
    assert (await running.call(method="OPTIONS")).status == 405


@pytest.mark.parametrize(
    ("value", "kind", "body"),
    [
        (None, "application/json", b"null"),
        ("ä\ud800", "application/json", b'"\\u00e4\\ud800"'),
        ("ä", "application/json", '"ä"'.encode()),
        ((1, 2.5, True), "application/json", b"[1,2.5,true]"),
        (b"\x00\x01", "application/octet-stream", b"\x00\x01"),
        (bytearray(b"x"), "application/octet-stream", b"x"),
    ],
)
async def test_results_become_json_or_bytes(serve, value, kind, body):
    answer = await (await serve(lambda: value)).call()
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, kind, body)


def _loop():
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        ([1, {"a": Point}], "type"),
        (float("nan"), "NaN"),
        (_loop(), "list"),
    ],
)
async def test_results_that_are_not_json_are_refused_by_type(serve, value, named):
    answer = await (await serve(lambda: value)).call()
    assert (answer.status, answer.json()["type"]) == (500, "urn:headrace:output-invalid")
    assert named in answer.json()["detail"]
    assert "x-headrace-exception" not in answer.headers


async def test_annotated_results_are_checked_and_written_as_declared(serve):
    def point() -> Point:
        return Point(1, dt.datetime(2024, 5, 6, tzinfo=dt.UTC))

    def wrong() -> list[int]:
        return ["x"]  # type: ignore[list-item]

    def nan() -> list[float]:
        return [float("inf")]

    assert (await (await serve(point)).call()).json() == {"x": 1.0, "at": "2024-05-06T00:00:00Z"}
    for handler in (wrong, nan):
        answer = await (await serve(handler)).call()
        assert (answer.status, answer.json()["type"]) == (500, "urn:headrace:output-invalid")
    assert "0: Input should be a valid integer" in (await (await serve(wrong)).call()).json()["detail"]


async def test_hints_that_pydantic_cannot_take_leave_the_value_alone(serve):
    class Opaque:
        def __class_getitem__(cls, _):
            return cls

    def handler(x: Opaque, y: Unknown = 1):  # type: ignore[name-defined]  # noqa: F821
        return [x, y]

    assert (await (await serve(handler)).call({"x": 5})).json() == [5, 1]
