"""With what images are built on this machine: its proxies, authorities and package indexes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.step import TOOLS

AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
"""Where systems keep the certificates that they trust."""
TRUST = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
"""Variables by which tools find them."""
INDEXES = (
    "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_TRUSTED_HOST", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL",
    "UV_INDEX", "UV_INDEX_STRATEGY", "UV_INDEX_URL", "UV_INSECURE_HOST", "UV_OFFLINE",
)  # fmt: skip
"""Where packages come from; for ``pip`` steps only, as some hold a password."""
LINKS = ("UV_FIND_LINKS", "PIP_FIND_LINKS")


def machine_settings(
    environ: Mapping[str, str], *, host_python: str, runc: str, seccomp: Mapping[str, Any] | None
) -> BuildSettings:
    """The settings of builds that nobody has configured: steps see the network as the host does. Blocks."""
    env = {k: v for k, v in environ.items() if k.lower() in ("http_proxy", "https_proxy", "no_proxy")}
    pip = {k: environ[k] for k in INDEXES if environ.get(k)}
    binds: list[tuple[Path, str]] = []
    trusted = (environ.get("SSL_CERT_FILE", ""), *AUTHORITIES)
    found = next((path for path in trusted if path and Path(path).is_file()), None)
    if found is not None:
        inside = f"/{TOOLS}/authorities.crt"
        binds.append((Path(found).resolve(), inside))
        env |= dict.fromkeys(TRUST, inside)
    for number, name in enumerate(LINKS):
        wheels = environ.get(name, "")
        if wheels.startswith("/") and Path(wheels).is_dir():
            binds.append((Path(wheels), f"/{TOOLS}/links{number}"))
            pip[name] = f"/{TOOLS}/links{number}"
    return BuildSettings(
        host_python=host_python, runc=runc, seccomp=seccomp, step_env=env, pip_env=pip, binds=tuple(binds)
    )
