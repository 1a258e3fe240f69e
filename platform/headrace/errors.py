"""The error tree: what can go wrong, as one type each, and what to do next.

    HeadraceError
    ├── UsageError              the caller wrote something that cannot work      exit code 2
    │   ├── SpecError           an option of @endpoint or of a request is wrong
    │   ├── UnsupportedOption   the option is known but not built yet
    │   └── BundleError         the code cannot be bundled
    ├── SetupError              this machine or its settings stand in the way     exit code 1
    │   ├── SettingsError       a setting has a wrong value
    │   ├── DataDirError        the data directory is held, unwritable or too new
    │   ├── PortInUse           somebody listens there already
    │   └── NotRunning          no platform answers at the address
    ├── LinkError               a connection between two parts of the platform
    │   ├── LinkClosed          it ended; the peer may come back
    │   └── LinkRefused         the other side said no (token, protocol, epoch)
    └── RequestError            a request that cannot be answered; has an HTTP status
        ├── BadRequest 400      ├── Unauthorized 401     ├── Forbidden 403
        ├── NotFound 404 (EndpointNotFound, VersionNotFound)
        ├── MethodNotAllowed 405
        ├── Conflict 409        ├── BodyTooLarge 413     ├── ValidationFailed 422
        ├── QueueFull, RateLimited 429
        ├── HandlerFailed 500    ├── InstanceDied 502 (InstanceKilled)
        ├── IdempotencyConflict 422                      ├── NotRunnable 422
        ├── StoreUnavailable 503 ├── BlobsUnavailable 503
        ├── EndpointFailed 503  ├── NoCapacity 503       ├── ControlAway 503
        ├── CircuitOpen 503      ├── GatewayStopping 503  ├── GatewayAway 503
        └── DeadlineExceeded 504

A ``RequestError`` travels as an RFC 9457 problem document (`to_problem`); the client turns a
problem document back into the same type (`from_problem`).
"""

from __future__ import annotations

from typing import Any, ClassVar

PROBLEM_CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:headrace:"


class HeadraceError(Exception):
    """Root of the tree. ``str(e)`` is one line; ``hint`` says what to do next."""

    hint: str

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """The message without the hint."""
        return str(self.args[0])

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        end = "" if self.message.endswith((".", "?", "!", ":", ";")) else "."
        return f"{self.message}{end} {self.hint}"


class UsageError(HeadraceError):
    """The caller wrote something that cannot work; the command line exits with 2."""


class SpecError(UsageError):
    """An option of ``@endpoint`` is wrong."""


class UnsupportedOption(UsageError):
    """The option is part of the public face but not built yet: refused, never ignored."""


class BundleError(UsageError):
    """The code cannot be bundled (too large, unreadable, a file outside its root)."""


class SetupError(HeadraceError):
    """This machine or its settings stand in the way; the command line exits with 1."""


class SettingsError(SetupError):
    """A setting has a wrong value."""


class DataDirError(SetupError):
    """The data directory is held by another platform, unwritable, or written by a newer version."""


class PortInUse(SetupError):
    """Somebody listens on the port already."""


class NotRunning(SetupError):
    """No platform answers at the address."""


class LinkError(HeadraceError):
    """A connection between two parts of the platform."""


class LinkClosed(LinkError):
    """The connection ended; the peer may come back."""


class LinkRefused(LinkError):
    """The other side said no: wrong token, other protocol version, old epoch."""


class RequestError(HeadraceError):
    """A request that cannot be answered. ``extra`` holds further members of the problem document."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    default_retry_after: ClassVar[int | None] = None
    """Seconds after which to try again, of one that passes by itself; ``retry_after=`` says otherwise."""

    def __init__(self, message: str, *, hint: str = "", **extra: Any) -> None:
        super().__init__(message, hint=hint)
        self.extra: dict[str, Any] = extra
        if self.default_retry_after is not None:
            extra.setdefault("retry_after", self.default_retry_after)

    def to_problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The RFC 9457 problem document of this error."""
        doc: dict[str, Any] = {
            "type": TYPE_PREFIX + self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.message,
        }
        if self.hint:
            doc["hint"] = self.hint
        if request_id:
            doc["request_id"] = request_id
        doc.update(self.extra)
        return doc


class BadRequest(RequestError):
    """The request is not well-formed HTTP for this route."""

    status, type, title = 400, "bad-request", "Bad request"


class Unauthorized(RequestError):
    """No key, or one that is not known."""

    status, type, title = 401, "unauthorized", "A valid API key is needed"


class Forbidden(RequestError):
    """The key is known but may not do this."""

    status, type, title = 403, "forbidden", "Not allowed"


class NotFound(RequestError):
    """There is nothing at this address."""

    status, type, title = 404, "not-found", "Not found"


class EndpointNotFound(NotFound):
    """No endpoint of that name in the key's project."""

    type, title = "endpoint-not-found", "No such endpoint"


class VersionNotFound(NotFound):
    """The endpoint exists, that version does not (any more)."""

    type, title = "version-not-found", "No such version"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method; ``allow`` lists those that it has."""

    status, type, title = 405, "method-not-allowed", "Method not allowed"


class Conflict(RequestError):
    """The state of the thing does not allow this now."""

    status, type, title = 409, "conflict", "Conflict"


class BodyTooLarge(RequestError):
    """The body is above the endpoint's ``max_body``."""

    status, type, title = 413, "body-too-large", "Body too large"


class ValidationFailed(RequestError):
    """The input does not match the handler (``errors`` lists field paths), or a route of the platform."""

    status, type, title = 422, "validation-failed", "The input is not valid"


class NotRunnable(RequestError):
    """None of the hosts that are there could ever run it; the detail says what they lack."""

    status, type, title = 422, "not-runnable", "No host can run it"


class IdempotencyConflict(RequestError):
    """The same ``Idempotency-Key`` came with another request."""

    status, type, title = 422, "idempotency-conflict", "Idempotency key was used for another request"


class StoreUnavailable(RequestError):
    """The job store does not answer. Whether it stored the request may be unknown: the same
    ``Idempotency-Key`` finds it, then."""

    status, type, title = 503, "store-unavailable", "The job store does not answer"
    default_retry_after = 1


class BlobsUnavailable(RequestError):
    """The blob store does not answer or cannot write; nothing was stored."""

    status, type, title = 503, "blobs-unavailable", "The blob store does not answer"
    default_retry_after = 1


class QueueFull(RequestError):
    """The endpoint's queue is at its bound."""

    status, type, title = 429, "queue-full", "Queue is full"


class RateLimited(RequestError):
    """The key sends more requests than its rate limit allows; ``retry_after`` says when to come again."""

    status, type, title = 429, "rate-limited", "The key's rate limit is reached"


class HandlerFailed(RequestError):
    """The handler raised; ``exception`` is its type."""

    status, type, title = 500, "handler-error", "The handler raised"


class OutputInvalid(RequestError):
    """The handler returned something that is not JSON (or not its declared type)."""

    status, type, title = 500, "output-invalid", "The handler's output is not JSON"


class InstanceDied(RequestError):
    """The instance died while it worked on the request, and it may not be sent again."""

    status, type, title = 502, "instance-died", "The instance died"


class InstanceKilled(InstanceDied):
    """The request killed every instance that worked on it, the last one while it ran there alone."""

    type, title = "instance-killed", "The request kills its instance"


class CircuitOpen(RequestError):
    """The endpoint's instances die or refuse one after another: nothing is sent there for a while."""

    status, type, title = 503, "circuit-open", "The endpoint's instances keep failing"


class EndpointFailed(RequestError):
    """The endpoint cannot start (import or ``load`` fails, crash loop)."""

    status, type, title = 503, "endpoint-failed", "The endpoint cannot start"


class NoCapacity(RequestError):
    """No host can take an instance now."""

    status, type, title = 503, "no-capacity", "No capacity"


class StorageFull(RequestError):
    """The disk of the data directory is full: nothing was changed."""

    status, type, title = 507, "storage-full", "No space left"


class ControlAway(RequestError):
    """The gateway has no connection to control, and this request needs it."""

    status, type, title = 503, "control-away", "Control is restarting"
    default_retry_after = 1


class GatewayStopping(RequestError):
    """The gateway ends before the request is answered; what an instance was at work on may have run."""

    status, type, title = 503, "gateway-stopping", "The gateway stops"
    default_retry_after = 1


class GatewayAway(RequestError):
    """Another gateway has what is asked for, and does not answer."""

    status, type, title = 503, "gateway-away", "Another gateway does not answer"


class DeadlineExceeded(RequestError):
    """The request's deadline passed; the detail says where it was then."""

    status, type, title = 504, "deadline-exceeded", "Deadline exceeded"


def _all_request_errors() -> dict[str, type[RequestError]]:
    found: dict[str, type[RequestError]] = {}
    stack: list[type[RequestError]] = [RequestError]
    while stack:
        cls = stack.pop()
        found[cls.type] = cls
        stack.extend(cls.__subclasses__())
    return found


def from_problem(status: int, doc: dict[str, Any]) -> RequestError:
    """Turn a problem document back into its type; an unknown one becomes ``RequestError``."""
    slug = str(doc.get("type", "")).removeprefix(TYPE_PREFIX)
    cls = _all_request_errors().get(slug, RequestError)
    known = {"type", "title", "status", "detail", "hint"}
    extra = {k: v for k, v in doc.items() if k not in known}
    error = cls(str(doc.get("detail") or doc.get("title") or f"HTTP {status}"), hint=str(doc.get("hint", "")))
    error.extra = extra | {"http_status": status}
    return error
