"""A wrong method is answered 405, with the right ones in ``Allow`` (RFC 9110, 15.5.6)."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="add")
    def add(a: int, b: int = 1) -> int:
        return a + b
"""
ANY = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
WRONG = [
    ("OPTIONS", "/e/add", "POST, GET, PUT, PATCH, DELETE"),
    ("HEAD", "/e/add", "POST, GET, PUT, PATCH, DELETE"),
    ("TRACE", "/e/add", ANY),
    ("POST", "/healthz", "GET, HEAD"),
    ("DELETE", "/", "GET, HEAD"),
    ("POST", "/metrics", "GET, HEAD"),
    ("PUT", "/api/v1/jobs", "GET, POST, HEAD"),
    ("DELETE", "/api/v1/jobs/x", "GET, HEAD"),
    ("GET", "/api/v1/jobs/x/cancel", "POST"),
    ("GET", "/api/v1/endpoints/add/purge", "POST"),
    ("DELETE", "/v2/add/status/x", "GET"),
    ("GET", "/v2/add/run", "POST"),
    ("GET", "/cog/add/predictions", "POST"),
    ("DELETE", "/cog/add/predictions/x", "GET, PUT"),
    ("GET", "/v1/chat/completions", "POST"),
    ("POST", "/v1/models", "GET, HEAD"),
    ("DELETE", "/v2/add/openai/v1/models", "GET, HEAD"),
    ("POST", "/api/v1/status", "GET"),
    ("PATCH", "/api/v1/endpoints/add", "GET, DELETE"),
    ("PUT", "/api/v1/endpoints/add/scale", "POST"),
    ("GET", "/api/v1/bundles/abc", "HEAD, PUT"),
    ("PUT", "/api/v1/keys", "GET, POST"),
    ("POST", "/api/openapi.json", "GET"),
]


@pytest.mark.parametrize(("method", "path", "allow"), WRONG)
async def test_a_wrong_method_is_told_the_right_ones(
    platform: Platform, method: str, path: str, allow: str
) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
    status, headers, found = await platform.request(method, path)
    assert (status, headers.getall("Allow", [])) == (405, [allow]), found
    if method != "HEAD" and "/v1/" not in path.replace("/api/v1/", ""):
        assert found["type"] == "urn:headrace:method-not-allowed"
        assert found["allow"] == allow.split(", ")
