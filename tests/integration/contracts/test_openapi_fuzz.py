"""The OpenAPI document against a running platform, with schemathesis: whatever is sent, nothing is answered
that the document doesn't say (statuses, media types, headers, schemas), and no 5xx that it doesn't name.

Nothing is left out: every operation of the document is called, with made-up names and with real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks

from tests.integration.conftest import Platform

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # The platform runs in a thread of its own and draws random numbers while a strategy does.
    pytest.mark.filterwarnings(
        "ignore:Do not use the .random. module:hypothesis.errors.HypothesisDeprecationWarning"
    ),
]

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "chat_openai.py"
SOURCE = """
    @headrace.endpoint(name="add", concurrency=8, timeout=5, scaling=headrace.Scaling(min=1, max=1))
    def add(a: int = 1, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="count", concurrency=4, timeout=5, scaling=headrace.Scaling(min=1, max=1))
    def count(n: int = 3):
        for i in range(min(n, 10)):
            yield {"i": i}

    @headrace.endpoint(name="spare", timeout=5, scaling=headrace.Scaling(max=1))
    def spare() -> str:
        return "there"
"""
EXAMPLES = 10
"""Of each operation, with each seed."""
SEEDS = 3
STREAMED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the river"}]},
    "/v1/completions": {"prompt": "the river"},
}
"""What makes a stream, at the end of a path: nothing that is made up does."""
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
)
MAY_FAIL = ("/e/", "/v1/", "/v2/{endpoint}/openai/")
"""Where a 5xx can be the user's own code: 500 and 502 are right there, and documented."""
LAST = "/api/v1/endpoints/{name}"
"""Called at the end: `spare` may grow until there is room for nothing else, and be deleted."""


Real = dict[str, list[str]]


async def made(platform: Platform, deployment: str) -> dict[str, Real]:
    """What there is, for path parameters, by the beginning of a path."""
    jobs, predictions = [], []
    for name, value in (("add", {"a": 1}), ("add", {"a": "x"}), ("count", {"n": 3})):
        job = await platform.api("POST", "/jobs", {"endpoint": name, "input": value})
        jobs.append(job["id"])
        await platform.api("GET", f"/jobs/{job['id']}?wait=10")
        _, _, run = await platform.request("POST", f"/v2/{name}/runsync", json={"input": value})
        jobs.append(run["id"])
        _, _, found = await platform.request("POST", f"/cog/{name}/predictions", json={"input": value})
        predictions.append(found["id"])
    key = await platform.api("POST", "/keys", {"name": "k", "scopes": ["invoke"]})
    nodes = [item["id"] for item in (await platform.api("GET", "/nodes"))["items"]]
    bundle = (await platform.endpoint("add"))["spec"]["bundle"]
    both = ["add", "count"]
    return {
        "/api/v1/jobs/": {"id": jobs},
        # Management only ever gets hold of `spare`.
        "/api/v1/endpoints/": {"name": ["spare"]},
        "/api/v1/deployments/": {"id": [deployment]},
        "/api/v1/bundles/": {"sha256": [bundle]},
        "/api/v1/keys/": {"id": [key["id"]]},
        "/api/v1/nodes/": {"id": nodes},
        "/v1/": {"model": ["chat", "chat@1"]},
        "/v2/{endpoint}/openai/": {"endpoint": ["chat"], "model": ["chat"]},
        "/v2/": {"endpoint": both, "id": jobs},
        "/cog/": {"endpoint": both, "id": predictions},
        "/e/{endpoint}/{path}": {"endpoint": ["add", "chat"], "path": ["x", "v1", "v1%2Fmodels"]},
        "/e/": {"endpoint": [*both, "add@1"]},
    }


def shortened(query: Any, operation: str) -> None:
    """Waiting for long tells nothing."""
    longest = 1000 if operation.endswith("runsync") else 0.2
    if isinstance(query, dict) and "wait" in query:
        with contextlib.suppress(TypeError, ValueError):
            query["wait"] = min(float(query["wait"]), longest)
    elif isinstance(query, dict) and operation.endswith("runsync"):
        query["wait"] = longest


@pytest.fixture(scope="module", autouse=True)
def all_checks() -> None:
    load_all_checks()


async def test_no_answer_contradicts_the_document(platform: Platform) -> None:
    for source in (SOURCE, EXAMPLE.read_text()):
        found = await platform.deploy(source)
        assert found["state"] == "succeeded", found
    real = await made(platform, found["id"])
    status, _, document = await platform.request("GET", "/api/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    loop = asyncio.get_running_loop()
    report = await loop.run_in_executor(None, fuzzed, platform.cluster.url, platform.auth, document, real)
    assert not report["failures"], "\n\n".join(report["failures"].values())
    assert report["called"] == sum(len(methods_of(item)) for item in document["paths"].values())
    for path in document["paths"]:
        if path.endswith(tuple(STREAMED)):
            assert report["statuses"].get(f"POST {path} 200 streamed"), f"{path}: no stream was answered"
    print(
        json.dumps(
            {
                "operations": report["called"],
                "answers": sum(report["statuses"].values()),
                "by": report["statuses"],
            }
        )
    )
    assert await platform.call("add", {"a": 1, "b": 1}) == 2


def methods_of(item: dict[str, Any]) -> list[str]:
    return [name for name in item if name in ("get", "put", "post", "delete", "head", "patch")]


def fuzzed(url: str, auth: dict[str, str], document: dict[str, Any], real: dict[str, Real]) -> dict[str, Any]:
    """Call every operation; failures by operation."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    operations = sorted(
        (found.ok() for found in schema.get_all_operations()),
        key=lambda o: (o.path.startswith(LAST), o.method == "delete"),
    )
    failures: dict[str, str] = {}
    statuses: dict[str, int] = {}
    for operation in operations:
        known = next((names for start, names in real.items() if operation.path.startswith(start)), {})
        try:
            fuzz(operation, auth, known, statuses)
        except Exception as error:
            failures[operation.label] = f"{operation.label}: {told_of(error)}"
    return {"called": len(operations), "failures": failures, "statuses": statuses}


def told_of(error: BaseException) -> str:
    """An error with its notes and what it holds."""
    inner = [told_of(e) for e in getattr(error, "exceptions", ())] or [str(error.__context__ or "")]
    return "\n".join([str(error), *getattr(error, "__notes__", []), *inner])[:3000]


def fuzz(operation: Any, auth: dict[str, str], real: Real, statuses: dict[str, int]) -> None:
    keys: list[dict[str, str]] = [*[auth] * 8, {}, {"Authorization": "Bearer wrong"}]

    wrong: list[str] = []
    """Gathered, not raised: hypothesis would call again, and a second call may well be answered otherwise."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), data=st.data())
    def run(case: Any, data: Any) -> None:
        for name in case.path_parameters or {}:
            if name in real and data.draw(st.integers(0, 3)):
                case.path_parameters[name] = data.draw(st.sampled_from(real[name]))
        if isinstance(case.body, dict):
            for member in ("model", "endpoint"):
                if member in case.body and data.draw(st.booleans()):
                    case.body[member] = "chat" if member == "model" else "add"
        streamed = next((body for end, body in STREAMED.items() if operation.path.endswith(end)), None)
        if streamed and not data.draw(st.integers(0, 3)):
            case.body = {"model": "chat", "stream": True, **streamed}
        shortened(case.query, operation.label)
        case.headers = {k: v for k, v in (case.headers or {}).items() if k.lower() != "authorization"}
        headers = data.draw(st.sampled_from(keys))
        try:
            check(case, headers)
        except (Exception, BaseExceptionGroup) as error:
            wrong.append(f"{told_of(error)}\n{case.as_curl_command()[:1000]}")

    def check(case: Any, headers: dict[str, str]) -> None:
        response = case.call(headers=headers, timeout=20)
        code = response.status_code
        told = f"{operation.label} {code}"
        statuses[told] = statuses.get(told, 0) + 1
        if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
            statuses[f"{told} streamed"] = statuses.get(f"{told} streamed", 0) + 1
        if not headers and case.operation.definition.raw.get("security") != []:
            assert code == 401, f"without a key: {code} {response.text[:300]}"
        if code >= 500:
            documented = case.operation.definition.raw["responses"]
            assert str(code) in documented, f"undocumented {code}: {response.text[:500]}"
            assert code in (503, 504) or operation.path.startswith(MAY_FAIL), response.text[:500]
        case.validate_response(response, checks=list(CHECKS))

    for number in range(SEEDS):
        # Flaky: the generator, under load, did not draw twice alike. What was seen is in `wrong`.
        with contextlib.suppress(Flaky):
            seed(number)(run)()
    if wrong:
        raise AssertionError("\n".join(wrong[:3]))
