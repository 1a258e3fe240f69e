"""RFC 9457 problem documents that an instance answers with; same slugs and members as the platform's."""

from __future__ import annotations

import json
from typing import Any, Dict, Tuple

CONTENT_TYPE = b"application/problem+json"

_KINDS: Dict[str, Tuple[int, str]] = {
    "bad-request": (400, "Bad request"),
    "forbidden": (403, "Not allowed"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "body-too-large": (413, "Body too large"),
    "unsupported-media-type": (415, "Unsupported content type"),
    "validation-failed": (422, "The input is not valid"),
    "header-too-large": (431, "Request header too large"),
    "handler-error": (500, "The handler raised"),
    "output-invalid": (500, "The handler's output is not JSON"),
    "not-implemented": (501, "Not implemented"),
    "no-capacity": (503, "No capacity"),
    "deadline-exceeded": (504, "Deadline exceeded"),
}


class Problem(Exception):
    """A request that cannot be answered otherwise. ``slug`` is one of the known kinds."""

    def __init__(self, slug: str, detail: str, hint: str = "", **extra: Any) -> None:
        super().__init__(detail)
        self.slug = slug
        self.status, self.title = _KINDS[slug]
        self.detail = detail
        self.hint = hint
        self.extra = extra

    def document(self, request_id: str = "") -> Dict[str, Any]:
        """The members of the problem document."""
        doc: Dict[str, Any] = {
            "type": "urn:headrace:" + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.hint:
            doc["hint"] = self.hint
        if request_id:
            doc["request_id"] = request_id
        doc.update(self.extra)
        return doc

    def encode(self, request_id: str = "") -> bytes:
        """The problem document as JSON."""
        return json.dumps(self.document(request_id), default=str).encode()
