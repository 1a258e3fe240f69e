"""How an instance is and what it uses, for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from headrace.cli.output import size

USE = ("CPU", "MEMORY", "IO", "GPU")


def state_of(instance: Mapping[str, Any]) -> Any:
    """Its state, with whether it takes requests."""
    return "not ready" if instance.get("unready") else instance.get("state")


def use_of(instance: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Cells for `USE`; "-" for what nobody knows."""
    use: Mapping[str, Any] = instance.get("use") or {}
    cpu, gpu = use.get("cpu"), use.get("gpu")
    return (
        "-" if cpu is None else f"{cpu:.2f}",
        size(use.get("memory")),
        size(use.get("io_bytes")),
        "-" if gpu is None else f"{gpu:.0%}, {size(use.get('gpu_memory'))}",
    )


def last_death(found: Mapping[str, Any]) -> str:
    """How the last instance ended, with its last lines; empty when none did."""
    death: Mapping[str, Any] | None = found.get("last_death")
    if not death:
        return ""
    at = datetime.fromtimestamp(float(death.get("at") or 0), UTC).astimezone().strftime("%H:%M:%S")
    why = ": ".join(str(death[part]) for part in ("reason", "detail") if death.get(part))
    lines = [f"last death: {at} {death.get('instance', '')} ({death.get('runtime', '')}) {why}"]
    return "\n".join([*lines, *(f"  {line}" for line in death.get("log") or ())])
