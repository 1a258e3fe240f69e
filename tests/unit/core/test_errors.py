"""The error tree and its problem documents."""

from __future__ import annotations

import pytest
from headrace import errors


def leaves(cls: type[errors.RequestError]) -> list[type[errors.RequestError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in leaves(sub))]


@pytest.mark.parametrize("cls", leaves(errors.RequestError))
def test_a_problem_document_comes_back_as_its_type(cls: type[errors.RequestError]) -> None:
    problem = cls("what happened.", hint="Do this next.", endpoint="x").to_problem("r-1")
    back = errors.from_problem(cls.status, problem)
    assert type(back) is cls
    assert (back.message, back.hint) == ("what happened.", "Do this next.")
    assert back.extra["endpoint"] == "x"
    assert problem["status"] == cls.status
    assert str(problem["type"]).startswith("urn:headrace:")


def test_types_are_unique() -> None:
    slugs = [cls.type for cls in leaves(errors.RequestError)]
    assert len(slugs) == len(set(slugs))


def test_an_unknown_problem_is_still_a_request_error() -> None:
    error = errors.from_problem(599, {"type": "about:blank", "title": "Odd"})
    assert type(error) is errors.RequestError
    assert error.message == "Odd"
    assert error.extra["http_status"] == 599


@pytest.mark.parametrize("cls", [errors.StoreUnavailable, errors.BlobsUnavailable])
def test_what_passes_by_itself_says_when_to_come_again(cls: type[errors.RequestError]) -> None:
    assert cls("away.").to_problem()["retry_after"] == 1
    assert errors.from_problem(503, cls("away.", retry_after=7).to_problem()).extra["retry_after"] == 7
