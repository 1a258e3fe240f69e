"""Rows of the SQLite job store to values and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.jobs.events import without_data
from headrace.jobs.model import PRIORITY_RANK, Api, Job, NewJob, Payload, Priority, Value, Webhook
from headrace.jobs.text import UNREADABLE, decode_json, encode_json

log = logging.getLogger("headrace.jobs")

ROW_BYTES = 2048
"""Bodies up to this lie in the job's row, larger ones beside it."""
START, OUTPUT, COMPLETED = 1, 2, 4
_BITS = {"start": START, "output": OUTPUT, "completed": COMPLETED}


class Spec(Value, frozen=True, kw_only=True):
    """What of a job never changes and no statement asks for; the column ``spec``."""

    api: Api
    priority: Priority
    version: int | None
    method: str
    path: str
    key_id: str
    input: Payload
    webhook: Webhook | None
    execution_timeout_s: float
    max_attempts: int
    retention_s: float
    traceparent: str
    context: str | dict[str, Any]
    """JSON in JSON: whatever is in it, the rest can be read."""


_SPEC = msgspec.json.Decoder(Spec)
_PAYLOAD = msgspec.json.Decoder(Payload)
_SPEC_FIELDS = tuple(f.name for f in msgspec.structs.fields(Spec))


def to_json(value: Any) -> str:
    """JSON text of a value, whatever is in it."""
    return encode_json(value).decode()


def insert_row(new: NewJob, now: float) -> dict[str, Any]:
    """Parameters of ``job_insert``."""
    fields = {name: getattr(new, name) for name in _SPEC_FIELDS}
    context = to_json(new.context) if new.context else {}
    spec = Spec(**fields | {"input": without_data(new.input), "context": context})
    data = new.input.data
    return {
        "id": new.id,
        "project": new.project,
        "endpoint": new.endpoint,
        "rank": PRIORITY_RANK[new.priority],
        "key_id": new.key_id,
        "idempotency_key": new.idempotency_key,
        "fingerprint": new.fingerprint,
        "spec": to_json(spec),
        "notify": notify_bits(new.webhook),
        "max_attempts": new.max_attempts,
        "retention_s": new.retention_s,
        "input_data": data if len(data) <= ROW_BYTES else None,
        "input_blob": new.input.blob or None,
        "now": now,
        "ttl_s": new.ttl_s,
        "waits_at": new.waiter[0] if new.waiter is not None else None,
        "waiter": new.waiter[1] if new.waiter is not None else None,
    }


def notify_bits(webhook: Webhook | None) -> int:
    """Which events the receiver wants, as bits; ``logs`` come with a worker, not with a move."""
    if webhook is None:
        return 0
    return sum(_BITS.get(event, 0) for event in set(webhook.events or ("completed",)))


def new_job(new: NewJob, now: float) -> Job:
    """The job that a submit has just stored."""
    return Job(
        **{name: getattr(new, name) for name in _SPEC_FIELDS},
        id=new.id,
        project=new.project,
        endpoint=new.endpoint,
        state="queued",
        fingerprint=new.fingerprint,
        created_at=now,
        deadline_at=None if new.ttl_s is None else now + new.ttl_s,
    )


def readable(row: Sequence[Any]) -> Job | None:
    """The job of a row; None, and a word in the log, when it is damaged: it must not stop the others."""
    try:
        return job_of(row)
    except (ValueError, TypeError, RecursionError):
        log.exception("job %s cannot be read", row[1])
        return None


def job_of(row: Sequence[Any]) -> Job:
    """The job of a row (columns as in ``queries.sql``)."""
    (
        _seq, id_, project, endpoint, state, _rank, fingerprint, spec_json, created_at, deadline_at,
        started_at, finished_at, attempts, lost, retried, sent, unsent, queued_at, output_json, error,
        receipt, progress, reason, input_data, output_data,
    ) = row  # fmt: skip
    spec = _SPEC.decode(spec_json)
    output = _PAYLOAD.decode(output_json) if output_json is not None else None
    if output is not None and output_data is not None:
        output = msgspec.structs.replace(output, data=output_data)
    return Job(
        id=id_,
        project=project,
        endpoint=endpoint,
        api=spec.api,
        state=state,
        priority=spec.priority,
        version=spec.version,
        method=spec.method,
        path=spec.path,
        key_id=spec.key_id,
        input=msgspec.structs.replace(spec.input, data=input_data) if input_data else spec.input,
        fingerprint=fingerprint,
        webhook=spec.webhook,
        execution_timeout_s=spec.execution_timeout_s,
        max_attempts=spec.max_attempts,
        retention_s=spec.retention_s,
        traceparent=spec.traceparent,
        context=decode_json(spec.context, {}) if isinstance(spec.context, str) else spec.context,
        created_at=created_at,
        deadline_at=deadline_at,
        started_at=started_at,
        finished_at=finished_at,
        queued_at=queued_at,
        unsent=unsent,
        sent=sent,
        attempts=attempts,
        lost=lost,
        retried=retried,
        output=output,
        error=decode_json(error, UNREADABLE) if error is not None else None,
        receipt=decode_json(receipt, {}) if receipt is not None else {},
        progress=decode_json(progress, None) if progress is not None else None,
        reason=reason,
    )
