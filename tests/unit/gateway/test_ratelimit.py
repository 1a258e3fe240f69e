from __future__ import annotations

import hashlib

import pytest
from headrace.errors import Forbidden, RateLimited, from_problem
from headrace.gateway.auth import Keys, may_call, named_endpoint, require_endpoint
from headrace.gateway.ratelimit import RateLimits, TokenBucket, whole_seconds
from headrace.wire import KeyRecord
from hypothesis import given
from hypothesis import strategies as st


def record(name: str = "k", **changes) -> KeyRecord:
    return KeyRecord(id=name, hash=hashlib.sha256(name.encode()).hexdigest(), scopes=("invoke",), **changes)


def test_a_burst_passes_and_then_the_rate_holds():
    bucket = TokenBucket(rate=2.0, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) == pytest.approx(0.5)
    assert bucket.take(100.4) == pytest.approx(0.1)
    assert bucket.take(100.5) == 0.0
    assert bucket.take(100.5) > 0


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    bucket = TokenBucket(rate=1000.0, burst=1, now=50.0)
    assert bucket.take(50.0) == 0.0
    assert bucket.take(49.0) > 0
    assert bucket.take(50.0) > 0


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_never_more_than_burst_and_rate_allow(rate, burst, gaps):
    now = 0.0
    bucket = TokenBucket(rate, burst, now)
    passed = 0
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        if wait == 0.0:
            passed += 1
        else:
            # After the wait that it names there is a token.
            assert 0 < wait <= 1.0 / rate + 1e-9
        assert passed <= burst + now * rate + 1e-6


def test_whoever_waits_as_long_as_told_gets_a_token():
    bucket = TokenBucket(rate=3.0, burst=1, now=0.0)
    now = 0.0
    for _ in range(50):
        wait = bucket.take(now)
        if wait:
            now += wait + 1e-9
            assert bucket.take(now) == 0.0


def test_what_was_used_survives_news_of_other_keys():
    limits, mine = RateLimits(), record(rate=1.0, burst=1)
    assert limits.take(mine, 0.0) == 0.0
    limits.keep([mine, record("other", rate=5.0, burst=5)])
    assert limits.take(mine, 0.0) > 0
    limits.keep([record(rate=2.0, burst=1)])
    assert limits.take(record(rate=2.0, burst=1), 0.0) == 0.0
    limits.keep([])
    assert len(limits) == 0


def test_keys_refuse_with_the_time_to_come_again():
    keys = Keys()
    keys.replace([record("slow", rate=0.25, burst=1), record("free")])
    keys.who(b"Bearer slow")
    with pytest.raises(RateLimited) as caught:
        keys.who(b"slow")
    assert 1 <= caught.value.extra["retry_after"] <= 4
    for _ in range(20):
        keys.who(b"free")
    again = from_problem(429, caught.value.to_problem())
    assert isinstance(again, RateLimited)


@pytest.mark.parametrize(("seconds", "shown"), [(0.001, 1), (1.0, 1), (1.2, 2), (1e9, 86_400)])
def test_retry_after_is_whole_seconds(seconds, shown):
    assert whole_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/e/hello", "hello"),
        ("/e/hello@3/deep/path", "hello"),
        ("/e/he%6Clo/x", "hello"),
        ("/v2/hello/run", "hello"),
        ("/v2/hello/openai/v1/models", "hello"),
        ("/cog/hello/predictions/1/cancel", "hello"),
        ("/api/v1/endpoints/hello/purge", "hello"),
        ("/api/v1/endpoints/hello", ""),
        ("/api/v1/jobs/job_1", ""),
        ("/v1/models", ""),
        ("/metrics", ""),
        ("/", ""),
        ("/e", ""),
    ],
)
def test_the_endpoint_of_a_path(path, name):
    assert named_endpoint(path) == name


def test_only_what_the_key_may_call_is_named():
    few = record(endpoints=("alpha", "beta"))
    require_endpoint(few, "alpha")
    require_endpoint(record(), "anything")
    assert may_call(few, "beta")
    assert not may_call(few, "secret")
    with pytest.raises(Forbidden) as caught:
        require_endpoint(few, "alpah")
    assert "Did you mean 'alpha'?" in str(caught.value)
    with pytest.raises(Forbidden) as caught:
        require_endpoint(few, "q" * 500)
    assert "alpha, beta" in str(caught.value)
    assert len(str(caught.value)) < 300
