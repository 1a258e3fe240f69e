"""How far a deployment is: what ``GET /deployments/{id}`` answers, and how to wait for its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

PartState = Literal["unchanged", "starting", "ready", "failed"]


@dataclass
class Part:
    """One endpoint of a deployment."""

    endpoint: str
    version: int = 0
    state: PartState = "starting"
    detail: str = ""
    traceback: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Deployment:
    """One deployment; it ends when none of its parts starts any more."""

    id: str
    project: str
    parts: list[Part] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    """Somebody has thought better of it: what has not become current will not."""

    @property
    def state(self) -> Literal["running", "succeeded", "failed"]:
        """Of all parts together."""
        if any(part.state == "starting" for part in self.parts):
            return "running"
        return "failed" if any(part.state == "failed" for part in self.parts) else "succeeded"

    def update(self) -> None:
        """A part changed: wake whoever waits for the end."""
        if self.state != "running":
            self.ended.set()

    def to_json(self) -> dict[str, Any]:
        """As the management API shows it (the encoder takes parts as they are)."""
        return {"id": self.id, "state": self.state, "endpoints": self.parts}
