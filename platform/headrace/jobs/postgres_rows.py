"""Jobs to rows of PostgreSQL and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from headrace.jobs.events import EventName, encode_event
from headrace.jobs.model import (
    PRIORITY_RANK,
    Api,
    Delivery,
    Job,
    Lease,
    NewJob,
    Payload,
    Priority,
    Result,
    Webhook,
)
from headrace.jobs.state import JobState
from headrace.jobs.text import UNREADABLE, decode_json, encode_json

Row = Mapping[str, Any]
PRIORITIES: dict[int, Priority] = {rank: name for name, rank in PRIORITY_RANK.items()}
_EMPTY = b"{}"


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows to one array per column, as ``unnest`` takes them."""
    return [list(column) for column in zip(*rows, strict=True)]


def submit_row(new: NewJob, now: float, nth: int = 1) -> tuple[Any, ...]:
    """The arguments of the query ``submit`` for one job, the ``nth`` of its key in the statement."""
    payload, hook = new.input, new.webhook
    return (
        new.id,
        new.project,
        new.endpoint,
        new.api,
        PRIORITY_RANK[new.priority],
        new.version,
        new.method,
        new.path,
        new.key_id,
        payload.content_type,
        payload.data,
        payload.blob,
        payload.size,
        new.idempotency_key,
        new.fingerprint,
        None if hook is None else hook.url,
        "" if hook is None else ",".join(hook.events),
        new.execution_timeout_s,
        new.max_attempts,
        new.retention_s,
        new.traceparent,
        encode_json(new.context) if new.context else _EMPTY,
        now,
        None if new.ttl_s is None else now + new.ttl_s,
        nth,
        *(new.waiter or (None, None)),
    )


def result_row(result: Result) -> tuple[Any, ...]:
    """State, output (type, data, blob, size), error, receipt and reason as columns."""
    output = result.output
    body = (
        (None, None, None, None)
        if output is None
        else (output.content_type, output.data, output.blob, output.size)
    )
    error = None if result.error is None else encode_json(result.error)
    receipt = encode_json(result.receipt) if result.receipt else None
    return (result.state, *body, error, receipt, result.reason, result.started_at, result.instance)


def job_of_new(new: NewJob, now: float) -> Job:
    """The job as it is right after its submission."""
    return Job(
        id=new.id,
        project=new.project,
        endpoint=new.endpoint,
        api=new.api,
        state="queued",
        priority=new.priority,
        version=new.version,
        method=new.method,
        path=new.path,
        key_id=new.key_id,
        input=new.input,
        fingerprint=new.fingerprint,
        webhook=new.webhook,
        execution_timeout_s=new.execution_timeout_s,
        max_attempts=new.max_attempts,
        retention_s=new.retention_s,
        traceparent=new.traceparent,
        context=new.context,
        created_at=now,
        deadline_at=None if new.ttl_s is None else now + new.ttl_s,
    )


def job_of_row(row: Row) -> Job:
    """A stored job."""
    events = row["webhook_events"]
    hook = row["webhook_url"]
    context, error, receipt, progress = row["context"], row["error"], row["receipt"], row["progress"]
    return Job(
        id=row["id"],
        project=row["project"],
        endpoint=row["endpoint"],
        api=cast(Api, row["api"]),
        state=cast(JobState, row["state"]),
        priority=PRIORITIES[row["rank"]],
        version=row["version"],
        method=row["method"],
        path=row["path"],
        key_id=row["key_id"],
        input=Payload(
            content_type=row["input_type"],
            data=row["input_data"],
            blob=row["input_blob"],
            size=row["input_size"],
        ),
        fingerprint=row["fingerprint"],
        webhook=None
        if hook is None
        else Webhook(url=hook, events=tuple(events.split(",")) if events else ()),
        execution_timeout_s=row["execution_timeout_s"],
        max_attempts=row["max_attempts"],
        retention_s=row["retention_s"],
        traceparent=row["traceparent"],
        context={} if context == _EMPTY else decode_json(context, {}),
        created_at=row["created_at"],
        deadline_at=row["deadline_at"],
        started_at=row["sent_at"],
        finished_at=row["finished_at"],
        queued_at=row["queued_at"],
        unsent=row["unsent"] or 0,
        sent=row["sent"] or 0,
        attempts=row["attempts"],
        lost=row["lost"],
        retried=row["retried"],
        output=_output(row),
        error=None if error is None else decode_json(error, UNREADABLE),
        receipt={} if receipt is None else decode_json(receipt, {}),
        progress=None if progress is None else decode_json(progress, None),
        reason=row["reason"],
    )


def lease_of_row(row: Row) -> Lease:
    """A lease that was just taken."""
    return Lease(job=job_of_row(row), fence=row["attempts"], owner=row["owner"], until=row["lease_until"])


def delivery_of_row(row: Row) -> Delivery:
    """A webhook event, encoded from the snapshot that was taken when it happened."""
    job = job_of_row(row["snapshot"])
    event, at = cast(EventName, row["event"]), row["created_at"]
    return Delivery(
        id=row["id"],
        job=row["job"],
        project=job.project,
        event=event,
        url=row["url"],
        body=encode_event(job, event, at, tuple(row["chunks"])),
        tries=row["tries"],
        created_at=at,
    )


def _output(row: Row) -> Payload | None:
    if row["output_type"] is None:
        return None
    return Payload(
        content_type=row["output_type"],
        data=row["output_data"],
        blob=row["output_blob"],
        size=row["output_size"],
    )
