"""How an instance is and what it uses, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from headrace.cli.output import moment, size, table

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


def versions_of(found: Sequence[Mapping[str, Any]]) -> str:
    """The versions with what each runs in: image, network, weights and probes where they are not usual."""
    rows = [
        (
            v.get("version"),
            moment(v.get("created_at")),
            str(v.get("bundle", ""))[:12],
            v.get("runtime"),
            _short((v.get("image") or {}).get("digest")),
        )
        for v in found
    ]
    lines = [table(("VERSION", "CREATED", "BUNDLE", "RUNTIME", "IMAGE"), rows, "no versions")]
    told = ""
    for v in found:
        words = "\n".join(f"  {line}" for line in _environment(v))
        # Most versions run in what the one before them did.
        if words and words != told:
            lines.append(f"version {v.get('version')}:\n{words}")
        told = words
    return "\n".join(lines)


def _environment(version: Mapping[str, Any]) -> list[str]:
    image: Mapping[str, Any] = version.get("image") or {}
    network: Mapping[str, Any] = version.get("network") or {}
    probes: Mapping[str, Mapping[str, Any]] = version.get("probes") or {}
    lines = [f"image: {step}" for step in image.get("steps") or ()]
    if network:
        allowed = ", ".join(network.get("allow") or ())
        lines.append(f"network: {network.get('mode')}" + (f" to {allowed}" if allowed else ""))
    lines += [f"weights: {w.get('source')} at {w.get('path')}" for w in version.get("weights") or ()]
    for name, probe in probes.items():
        kinds = ((probe.get("http") or "", "http"), (" ".join(probe.get("exec") or ()), "exec"))
        usual = "tcp" if probe.get("tcp") else "health()"
        what = next((f"{kind} {words}" for words, kind in kinds if words), usual)
        every = f"every {probe.get('period'):g} s, fails after {probe.get('failure_threshold')}"
        lines.append(f"probe {name}: {what}, {every}")
    return lines


def _short(digest: Any) -> str | None:
    return str(digest)[:12] if digest else None
