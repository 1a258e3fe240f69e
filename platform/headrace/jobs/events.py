"""Webhook events: which ones a job wants, and what a store keeps of the job until one is delivered.

A store queues an event in the transaction of the move that causes it. It doesn't know what a receiver
expects (that depends on the API which took the job), so it keeps an `Event`, and the sender
renders that one. ``Delivery.body`` is `encode_event`'s: JSON, whose numbers have no bounds, since clients and
user code choose them. An event never fails the move that causes it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.jobs.model import Job, Payload, Value, Webhook
from headrace.jobs.text import clean, encode_json

EventName = Literal["start", "output", "logs", "completed"]


class Event(Value, frozen=True, kw_only=True):
    """What happened to a job. ``job`` is as it was then, without its input's data."""

    event: EventName
    at: float
    job: Job
    chunks: tuple[bytes, ...] = ()
    """The new items of the stream, of an ``output`` event."""


_DECODER = msgspec.json.Decoder(Event)
_OLD_DECODER = msgspec.msgpack.Decoder(Event)
"""Of events that an early build queued, which kept them as msgpack, and that were not delivered since."""
_ENCODER = msgspec.json.Encoder()
_FREE = ("context", "error", "receipt", "progress")
"""Members of a job that hold any JSON."""


def wants(webhook: Webhook | None, event: EventName) -> bool:
    """Whether the receiver is to be told."""
    return webhook is not None and event in (webhook.events or ("completed",))


def event_id(job: Job, event: EventName, first_seq: int = 0) -> str:
    """The stable id of an event: one ``start`` and one ``completed`` per generation (submission or retry)."""
    if event == "output":
        return f"{job.id}.{job.retried}.{job.attempts}.output.{first_seq}"
    return f"{job.id}.{job.retried}.{event}"


def encode_event(job: Job, event: EventName, at: float, chunks: tuple[bytes, ...] = ()) -> bytes:
    """The stored form of an event. What of the job has no JSON is changed: see `encode_json`."""
    told = Event(event=event, at=at, job=without_input(job), chunks=chunks)
    try:
        return _ENCODER.encode(told)
    except Exception:
        return _ENCODER.encode(msgspec.structs.replace(told, job=_kept(told.job)))


def decode_event(body: bytes) -> Event:
    """The event of a `Delivery.body`. Raises ``msgspec.DecodeError`` for what is none."""
    return (_DECODER if body[:1] == b"{" else _OLD_DECODER).decode(body)


def _kept(job: Job) -> Job:
    """The job with values that can be encoded."""
    plain = {name: msgspec.Raw(encode_json(getattr(job, name))) for name in _FREE}
    return msgspec.structs.replace(job, **plain, reason=clean(job.reason))


def without_input(job: Job) -> Job:
    """The job with only size, type and name of its input."""
    return msgspec.structs.replace(job, input=without_data(job.input))


def without_data(payload: Payload) -> Payload:
    """Size, type and name of a body."""
    return msgspec.structs.replace(payload, data=b"") if payload.data else payload
