"""The pure parts of jobs in a gateway: items of streams, answers, verdicts, windows, documents."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from headrace.errors import (
    BodyTooLarge,
    CircuitOpen,
    DeadlineExceeded,
    EndpointFailed,
    EndpointNotFound,
    InstanceDied,
    InstanceKilled,
    NoCapacity,
    QueueFull,
    RequestError,
)
from headrace.gateway.circuit import Circuit
from headrace.gateway.head import Head
from headrace.gateway.jobs import items, sink
from headrace.gateway.jobs.attempt import deadline_passed, request_of, sent_before, timeout_of
from headrace.gateway.jobs.documents import document, seen, waiting_of
from headrace.gateway.jobs.items import EventParser, LineParser, parser_for
from headrace.gateway.jobs.lanes import GIVE_BACK_S, MAX_AHEAD, OUTRANKED_S, Lane, Run
from headrace.gateway.jobs.outcome import REFUSED, Ended, Release, judge, receipt_of
from headrace.gateway.jobs.sink import JobClient, Outcome
from headrace.gateway.request import Request
from headrace.jobs.model import Job, Lease, Payload, Waiting
from hypothesis import given
from hypothesis import strategies as st


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j1", "project": "default", "endpoint": "echo", "api": "native", "state": "running",
        "priority": "normal", "version": None, "method": "POST", "path": "/", "key_id": "k",
        "fingerprint": "",
        "input": Payload(data=b"{}", size=2), "webhook": None, "execution_timeout_s": 10.0, "max_attempts": 3,
        "retention_s": 60.0, "traceparent": "", "context": {}, "created_at": 100.0, "deadline_at": None,
        "started_at": 101.0, "attempts": 1,
    }  # fmt: skip
    return Job(**(values | changes))


# -- items ----------------------------------------------------------------------------------------


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(json_values), st.lists(st.integers(0, 10_000)), st.sampled_from([b"\n", b"\r\n"]))
def test_items_come_out_however_the_stream_is_cut(values: list[Any], places: list[int], end: bytes) -> None:
    encoded = [msgspec.json.encode(v) for v in values]
    for parser, data in (
        (EventParser(), b"".join(b": note" + end * 2 + b"data: " + e + end * 2 for e in encoded)),
        (LineParser(), b"".join(e + end for e in encoded)),
    ):
        found = [item for piece in cut(data, places) for item in parser.feed(piece)] + parser.flush()
        assert found == encoded
        assert parser.problem is None


def test_an_error_ends_a_stream_and_is_no_item() -> None:
    problem = {"type": "urn:headrace:handler-error", "status": 500}
    events = EventParser()
    assert events.feed(b"data: 1\n\nevent: error\ndata: " + msgspec.json.encode(problem) + b"\n\n") == [b"1"]
    assert events.problem == problem
    lines = LineParser()
    assert lines.feed(b'{"error": "mine"}\n' + msgspec.json.encode({"error": problem}) + b"\n") == [
        b'{"error": "mine"}'
    ]
    assert lines.problem == problem
    odd = EventParser()
    odd.feed(b"event: error\ndata: it broke\n\n")
    assert odd.problem is not None
    assert odd.problem["detail"] == "it broke"


def test_what_is_not_json_becomes_a_string_and_lines_of_data_are_joined() -> None:
    assert EventParser().feed(b"data: [DONE]\n\n") == [b'"[DONE]"']
    assert EventParser().feed(b"data: [1,\ndata: 2]\n\n") == [b"[1,\n2]"]
    assert EventParser().feed(b"id: 3\nretry: 5\n\n") == []


def test_one_item_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MAX_ITEM_BYTES", 10)
    for parser in (EventParser(), LineParser()):
        with pytest.raises(BodyTooLarge):
            parser.feed(b"data: 12345678901")


@pytest.mark.parametrize(
    ("media", "kind"),
    [
        ("text/event-stream; charset=utf-8", EventParser),
        ("application/x-ndjson", LineParser),
        ("text/plain", None),
    ],
)
def test_media_types(media: str, kind: type | None) -> None:
    found = parser_for(media)
    assert found is None if kind is None else isinstance(found, kind)


# -- sink -----------------------------------------------------------------------------------------


class Exchange:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def cancel(self) -> None:
        self.calls.append("cancel")

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


def sinks(*, streams: bool = True) -> tuple[JobClient, Request, Exchange, list[Outcome], list[bytes]]:
    outcomes: list[Outcome] = []
    seen: list[bytes] = []
    client = JobClient(outcomes.append, seen.extend if streams else None)
    request = request_of(job(), client)
    exchange = Exchange()
    request.exchange = exchange
    client.serves(request)
    return client, request, exchange, outcomes, seen


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Mine: a\r\nX-Headrace-Request-Id: r\r\n"
    b'Server-Timing: queue;dur=1.50, tier;desc="warm", handler;dur=2.00, total;dur=4\r\n\r\n'
)


def test_a_whole_answer() -> None:
    client, request, _, outcomes, _ = sinks()
    client.reply(request, HEAD % b"application/json" + b"[1]")
    client.end(request)
    (outcome,) = outcomes
    assert (outcome.status, outcome.content_type, outcome.body) == (200, "application/json", b"[1]")
    assert outcome.headers == [("X-Mine", "a")]
    assert outcome.timings == {"queue_ms": 1.5, "tier": "warm", "handler_ms": 2.0, "total_ms": 4.0}


def test_a_stream_is_stored_as_items_and_kept_whole() -> None:
    client, request, _, outcomes, seen = sinks()
    client.write(HEAD % b"text/event-stream" + b"data: 1\n\nda")
    client.write(b"ta: 2\n\n")
    client.end(request)
    assert seen == [b"1", b"2"]
    assert (outcomes[0].body, outcomes[0].items, outcomes[0].content_type) == (
        b"[1,2]",
        2,
        "application/json",
    )


def test_a_stream_waits_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "PAUSE_BYTES", 10)
    client, _, exchange, _, seen = sinks()
    client.write(HEAD % b"application/x-ndjson")
    client.write(b'"123456789"\n"abcdefghi"\n')
    assert (exchange.calls, client.writable) == (["pause"], False)
    client.stored(sum(len(item) for item in seen))
    assert (exchange.calls, client.writable) == (["pause", "resume"], True)


def test_outputs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAX_OUTPUT_BYTES", 10)
    client, _, exchange, outcomes, _ = sinks()
    client.write(HEAD % b"text/plain")
    client.write(b"x" * 11)
    client.write(b"x" * 11)
    assert isinstance(outcomes[0].error, BodyTooLarge)
    assert (len(outcomes), exchange.calls) == (1, ["cancel"])


def test_a_long_stream_has_items_and_no_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAX_AGGREGATE_BYTES", 10)
    client, request, _, outcomes, seen = sinks()
    client.write(HEAD % b"application/x-ndjson" + b'"1234567"\n"1234567"\n')
    client.end(request)
    assert (len(seen), outcomes[0].whole, outcomes[0].body) == (2, False, b"")
    found = judge(job(), outcomes[0], idempotent=True, receipt={})
    assert isinstance(found, Ended)
    assert (found.result.state, found.body, found.stored_bytes) == ("succeeded", None, 18)


def test_items_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAX_OUTPUT_BYTES", 20)
    client, _, exchange, outcomes, seen = sinks()
    client.write(HEAD % b"application/x-ndjson" + b'"1234567"\n"1234567"\n')
    client.write(b'"1234567"\n')
    assert isinstance(outcomes[0].error, BodyTooLarge)
    assert (len(seen), exchange.calls) == (2, ["cancel"])


def test_what_is_no_text_or_no_problem_is_told_all_the_same() -> None:
    assert EventParser().feed(b'data: "\xff"\n\n') == ['"\\"\ufffd\\""'.encode()]
    assert LineParser().feed(b'{"error": "\xff"}\n') != []
    for body in (b'{"type": "\xff", "status": 500}', b'{"type": "a", "status": "x"}', b"[" * 5000):
        found = sink.problem_of(Outcome(status=500, content_type="application/problem+json", body=body))
        assert (found["type"], found["status"]) == ("about:blank", 500)
    half = b'{"type": "urn:headrace:handler-error", "status": 500, "detail": "a\\ud800b"}'
    found = sink.problem_of(Outcome(status=500, content_type="application/problem+json", body=half))
    assert (found["type"], found["detail"]) == ("urn:headrace:handler-error", "a\ufffdb")
    events = EventParser()
    events.feed(b"event: error\ndata: " + half + b"\n\n")
    assert events.problem == found


def test_a_forgotten_answer_is_told_to_nobody() -> None:
    client, request, _, outcomes, _ = sinks()
    client.forget()
    client.write(HEAD % b"text/plain" + b"x")
    client.end(request)
    client.fail(request, NoCapacity("none"))
    assert outcomes == []


# -- verdicts -------------------------------------------------------------------------------------

PROBLEM = {"type": "urn:headrace:handler-error", "status": 500, "detail": "it raised"}
CUT = {"type": "urn:headrace:instance-died", "status": 502, "detail": "died"}
LATE = {"type": "urn:headrace:deadline-exceeded", "status": 504, "detail": "late"}


def verdict(outcome: Outcome, *, idempotent: bool = True, **changes: Any) -> str:
    found = judge(job(**changes), outcome, idempotent=idempotent, receipt={})
    if isinstance(found, Release):
        return "lost" if found.lost else "again"
    return found.result.state


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(status=200, content_type="application/json", body=b"1"), "succeeded"),
        (Outcome(status=204), "succeeded"),
        (Outcome(status=404, content_type="text/html", body=b"<p>"), "failed"),
        (Outcome(status=504, content_type="application/json", body=msgspec.json.encode(LATE)), "timed_out"),
        (Outcome(status=200, items=3, problem=PROBLEM), "failed"),
        (Outcome(status=200, items=3, problem=LATE), "timed_out"),
        (Outcome(status=200, items=3, problem=CUT, cut=True), "again"),
        (Outcome(status=200, cut=True), "again"),
        (Outcome(status=200, items=3, problem=LATE, cut=True), "timed_out"),
        (Outcome(error=DeadlineExceeded("late")), "timed_out"),
        (Outcome(error=InstanceDied("died")), "failed"),
        (Outcome(error=InstanceKilled("kills")), "failed"),
        (Outcome(error=EndpointNotFound("gone")), "failed"),
        (Outcome(error=BodyTooLarge("big"), status=200), "failed"),
        (Outcome(error=QueueFull("full")), "lost"),
        (Outcome(error=NoCapacity("none")), "lost"),
        (Outcome(error=EndpointFailed("crash loop")), "lost"),
        (Outcome(error=CircuitOpen("open")), "lost"),
    ],
)  # fmt: skip
def test_what_an_attempts_end_means(outcome: Outcome, expected: str) -> None:
    assert verdict(outcome) == expected


def test_a_broken_stream_is_tried_again_within_bounds_only() -> None:
    outcome = Outcome(status=200, items=1, problem=CUT, cut=True)
    assert verdict(outcome, idempotent=False) == "failed"
    assert verdict(outcome, attempts=3) == "failed"
    assert verdict(outcome, attempts=5, lost=3) == "again"


def test_a_sync_call_keeps_the_answer_whatever_it_was() -> None:
    outcome = Outcome(status=404, content_type="text/html", body=b"<p>", headers=[("X-Mine", "a")])
    found = judge(job(api="sync"), outcome, idempotent=True, receipt={})
    assert isinstance(found, Ended)
    assert (found.result.state, found.body, found.content_type) == ("failed", b"<p>", "text/html")
    assert (found.result.receipt["status"], found.result.receipt["headers"]) == (404, [("X-Mine", "a")])
    for error, refused in (
        (QueueFull("full"), True),
        (CircuitOpen("open"), True),
        (InstanceDied("died"), False),
    ):
        found = judge(job(api="sync"), Outcome(error=error), idempotent=True, receipt={})
        assert isinstance(found, Ended)
        assert bool(found.result.receipt.get(REFUSED)) == refused
    assert verdict(Outcome(status=200, cut=True), api="sync") == "failed"
    assert verdict(Outcome(error=DeadlineExceeded("late")), api="sync") == "timed_out"


def test_the_receipt_counts_all_waiting_until_an_instance_has_the_job() -> None:
    outcome = Outcome(timings={"queue_ms": 2.0, "handler_ms": 5.0}, instance="i1", items=4, started_at=101.5)
    assert receipt_of(job(), outcome, now=103.0) == {
        "queued_ms": 1500.0,
        "total_ms": 3000.0,
        "handler_ms": 5.0,
        "instance": "i1",
        "items": 4,
    }


# -- attempts, windows, documents -----------------------------------------------------------------


def test_the_request_of_a_job() -> None:
    made = request_of(job(traceparent="00-1-2-01"), object())
    assert (made.id, made.head.http10, made.body) == ("j1", True, b"{}")
    assert b"Accept: text/event-stream" in made.head.forward
    assert made.head.traceparent == b"00-1-2-01"
    given = request_of(job(context={"forward": "Host: a\r\nX-A: \xe4\r\n"}), object())
    # The instance keeps its answer for whoever asks after a death of this gateway.
    assert given.head.forward == b"Host: a\r\nX-A: \xe4\r\nX-Headrace-Keep: 1\r\n"
    assert isinstance(given.head, Head)


def test_an_attempt_ends_with_the_job_or_after_its_own_time() -> None:
    assert timeout_of(job(), 100.0) == 10.0
    assert timeout_of(job(deadline_at=103.0), 100.0) == 3.0
    assert isinstance(deadline_passed(job(deadline_at=1.0)), RequestError)
    assert deadline_passed(job()) is None


def instance(concurrency: int, in_flight: int) -> SimpleNamespace:
    return SimpleNamespace(
        concurrency=concurrency,
        in_flight=in_flight,
        free=lambda now: in_flight < concurrency,
        contended_until=0.0,
        full_until=0.0,
    )


def endpoint(*slots: tuple[int, int], queue: int = 0, contended: float = 0.0, **route: Any) -> Any:
    group = [instance(*slot) for slot in slots]
    for each in group:
        each.contended_until = contended
    return SimpleNamespace(
        group=lambda version: group if version in (None, 1) else [],
        queue=[None] * queue,
        circuit=Circuit(),
        why_waiting=lambda version: "queued behind 7 others",
        route=SimpleNamespace(**({"state": "ready", "reason": ""} | route)),
        stored=3,
        held=0,
    )


def run(lane: Lane, **changes: Any) -> Run:
    return Run(Lease(job=job(**changes), fence=1, owner="o", until=0.0), lane)


def test_nothing_is_leased_without_instances_and_more_the_quicker_jobs_are() -> None:
    lane = Lane("default", "echo")
    assert lane.want(endpoint()) == 0
    assert lane.want(endpoint((4, 1), (2, 0))) == 5
    assert lane.want(endpoint((4, 4))) == 0
    lane.service_s = 10.0
    assert lane.want(endpoint((4, 4))) == 0
    lane.service_s = 0.1
    assert lane.want(endpoint((4, 4))) == 10
    lane.service_s = 1e-6
    assert lane.want(endpoint((4, 4))) == MAX_AHEAD
    lane.held.extend(run(lane) for _ in range(MAX_AHEAD))
    assert lane.want(endpoint((4, 0))) == 0
    lane.urgent = 1
    assert lane.want(endpoint((4, 4))) == 1


def test_sync_calls_that_take_every_slot_leave_a_turn_to_one_job() -> None:
    lane = Lane("default", "echo")
    assert lane.want(endpoint((4, 4), queue=9)) == 1
    lane.hold(run(lane))
    assert lane.want(endpoint((4, 4), queue=9)) == 0
    lane.sent.add(waiting := lane.held.pop())
    waiting.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
    assert lane.want(endpoint((4, 4), queue=9)) == 0
    waiting.call.phase = "sent"
    assert lane.want(endpoint((4, 4), queue=9)) == 1


def test_a_slot_that_another_gateway_fills_is_not_free() -> None:
    lane = Lane("default", "echo")
    busy = endpoint((4, 0), contended=time.monotonic() + 60)
    assert lane.want(busy) == 1, "one asks for its turn"
    lane.hold(run(lane))
    assert lane.want(busy) == 0
    lane.sent.add(waiting := lane.held.pop())
    waiting.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
    assert lane.want(busy) == 0
    waiting.call.phase = "sent"
    assert lane.want(endpoint((4, 1), contended=time.monotonic() + 60)) == 1
    assert lane.want(endpoint((4, 4), contended=time.monotonic() + 60)) == 0
    full = endpoint((4, 0))
    full.group(None)[0].full_until = math.inf
    assert lane.want(full) == 1
    assert lane.want(endpoint((4, 0), contended=time.monotonic() - 1)) == 4


def leases_of(lane: Lane, *priorities: str) -> list[Lease]:
    return [run(lane, priority=priority).lease for priority in priorities]


def test_high_jobs_in_the_store_are_wanted_until_a_lease_finds_no_more() -> None:
    lane = Lane("default", "echo")
    for _ in range(3):
        lane.heard("high")
    lane.ask()
    lane.heard("high")
    lane.took_over(2, leases_of(lane, "high", "high"))
    assert (lane.waiting, lane.urgent) == (2, 2)
    lane.ask()
    lane.heard("normal")
    lane.took_over(2, leases_of(lane, "high", "normal"))
    assert (lane.waiting, lane.urgent) == (1, 0)
    lane.ask()
    lane.heard("high")
    lane.took_over(3, leases_of(lane, "normal"))
    assert (lane.waiting, lane.urgent) == (1, 1), "heard while the lease was under way"
    lane.ask()
    lane.told(Waiting(project="default", endpoint="echo", queued=9, oldest_at=5.0, best=0, high=7))
    assert (lane.waiting, lane.urgent, lane.oldest_at) == (9, 7, 5.0)
    lane.told(None)
    assert (lane.waiting, lane.urgent, lane.oldest_at) == (0, 0, 0.0)


def test_high_jobs_come_past_held_ones_as_many_as_get_a_slot_soon() -> None:
    lane = Lane("default", "echo")
    lane.urgent = 9
    lane.hold(run(lane, priority="low"))
    assert lane.want(endpoint((2, 2))) == 2
    for waiting in (run(lane, priority="high"), run(lane, priority="high")):
        waiting.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
        lane.sent.add(waiting)
    assert lane.want(endpoint((2, 2))) == 0, "the others stay where every gateway sees them"
    lane.service_s = 0.1
    assert lane.want(endpoint((2, 2))) == 3
    lane.urgent = 0
    assert lane.want(endpoint((2, 2), queue=2)) == 0, "what is leased ahead waits here already"
    lane.urgent = 9
    lane.service_s = 10.0
    lane.sent.remove(waiting)
    # Those for a version that nobody runs do not keep others away, but are not taken without end.
    lane.sent.update(run(lane, priority="high", version=7) for _ in range(MAX_AHEAD))
    assert lane.want(endpoint((2, 2))) == 1
    lane.sent.add(run(lane, priority="high", version=7))
    assert lane.want(endpoint((2, 2))) == 0


def test_what_waits_for_long_goes_back_when_better_ones_are_in_the_store() -> None:
    lane = Lane("default", "echo")
    for priority in ("low", "normal", "high"):
        lane.hold(run(lane, priority=priority))
    queued = run(lane, priority="low")
    queued.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
    begun = run(lane, priority="low")
    begun.call = SimpleNamespace(  # type: ignore[assignment]
        phase="queued", attempts=[SimpleNamespace(sent_at=1.0, outcome="lost")]
    )
    lane.sent.update((queued, begun))
    now = time.monotonic()
    assert lane.stale(now, 0) == [], "it was leased ahead"
    later = now + OUTRANKED_S + 0.1
    assert [r.lease.job.priority for r in lane.stale(later, 0)] == ["low", "normal", "low"]
    assert lane.stale(later, 1) == [lane.held[1], queued]
    assert lane.stale(later, 2) == []
    assert lane.stale(later) == []


def test_a_held_job_goes_back_when_it_gets_no_slot() -> None:
    lane = Lane("default", "echo")
    for priority in ("normal", "high"):
        lane.hold(run(lane, priority=priority))
    now = time.monotonic()
    assert lane.stale(now) == []
    assert [r.lease.job.priority for r in lane.stale(now + GIVE_BACK_S + 1)] == ["normal"]


def test_sync_calls_that_wait_come_before_jobs_and_urgent_ones_wait_beside_them() -> None:
    lane = Lane("default", "echo")
    normal, high = run(lane), run(lane, priority="high")
    lane.hold(normal)
    assert lane.place(endpoint((1, 0))) is normal
    assert lane.place(endpoint((1, 1))) is None
    # One waits in the queue, where it has its share of the places, and no second one.
    assert lane.place(endpoint((1, 1), queue=1)) is normal
    other = run(lane)
    other.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
    lane.sent.add(other)
    assert lane.place(endpoint((1, 1), queue=1)) is None
    lane.hold(high)
    assert lane.place(endpoint((1, 1), queue=1)) is high


def test_a_lane_of_sync_calls_asks_for_no_instance_first() -> None:
    lane = Lane("default", "sync:echo")
    assert (lane.sync, lane.key) == (True, "default/echo")
    assert lane.want(endpoint()) > 0
    lane.hold(run(lane, api="sync"))
    assert lane.place(endpoint()) is not None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, "endpoint"),
        (endpoint(state="failed", reason="load failed"), "endpoint"),
        (endpoint(reason="no host has gpu H100"), "instance"),
        (endpoint((1, 1)), "slot"),
    ],
)
def test_a_waiting_job_says_for_what(state: Any, expected: str) -> None:
    found = waiting_of(job(state="queued"), state, now=110.0)
    assert found is not None
    assert (found["for"], found["seconds"]) == (expected, 10.0)
    assert found["reason"]
    assert waiting_of(job(), state) is None


def test_why_a_job_waits_is_the_present_reason_before_that_of_its_last_attempt() -> None:
    lost = job(state="queued", reason="Worker gw-1 is gone.", queued_at=107.0)
    found = waiting_of(lost, endpoint((1, 1)), now=110.0)
    assert found is not None
    assert found["reason"].startswith("its endpoint is busy (1 instances, 1 slots)"), found
    assert found["reason"].endswith("; before: Worker gw-1 is gone."), found
    assert found["seconds"] == 3.0
    waiting = run(Lane("default", "echo"))
    waiting.call = SimpleNamespace(phase="queued", attempts=())  # type: ignore[assignment]
    found = waiting_of(job(state="queued"), endpoint((1, 1)), waiting, now=110.0)
    assert found is not None
    assert found["reason"] == "queued behind 7 others"
    broken = endpoint((1, 1))
    broken.circuit.open, broken.circuit.until = True, time.monotonic() + 5
    found = waiting_of(job(state="queued"), broken, now=110.0)
    assert found is not None
    assert found["for"] == "circuit"
    assert 114 < found["until"] <= 115


def test_a_job_runs_only_when_an_instance_has_it() -> None:
    leased = job(state="running", started_at=None)
    assert seen(leased, None).state == "queued"
    sent = job(state="running", started_at=104.0)
    assert seen(sent, None) == sent
    here = run(Lane("default", "echo"), attempts=1)
    assert seen(msgspec.structs.replace(sent, attempts=1), here).state == "queued", "it was refused since"
    here.sent_at = 105.0
    found = seen(msgspec.structs.replace(leased, attempts=1), here)
    assert (found.state, found.started_at) == ("running", 105.0)
    # What is here of an earlier lease says nothing.
    assert seen(msgspec.structs.replace(leased, attempts=2), here).state == "queued"


def test_what_may_have_run_once_is_not_sent_again() -> None:
    lane = Lane("default", "once")
    for idempotent, sent, again in ((True, 1, True), (False, 0, True), (False, 1, False), (False, 2, True)):
        one = Run(Lease(job=job(sent=sent), fence=2, owner="o", until=0.0), lane, idempotent=idempotent)
        error = sent_before(one)
        assert (error is None) == again
        assert error is None or (error.status, "not sent again" in str(error)) == (502, True)


def test_what_no_instance_had_is_given_back_uncounted() -> None:
    for accepted in (True, False):
        outcome = Outcome(error=NoCapacity("none"), accepted=accepted)
        found = judge(job(), outcome, idempotent=True, receipt={})
        assert isinstance(found, Release)
        assert found.unsent != accepted


def test_the_document_shows_json_output_and_names_others() -> None:
    done = job(state="succeeded", endpoint="sync:echo", output=Payload(data=b"[1]", size=3))
    doc = msgspec.json.decode(msgspec.json.encode(document(done, output=b"[1]")))
    assert (doc["endpoint"], doc["output"], doc["output_size"]) == ("echo", [1], 3)
    image = job(state="succeeded", output=Payload(content_type="image/png", data=b"x", size=1))
    doc = document(image, output=b"x")
    assert (doc["output"], doc["output_type"]) == (None, "image/png")
