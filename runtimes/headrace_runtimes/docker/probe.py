"""Whether there is a daemon that will do, before anything is opened: for ``headrace doctor`` and hosts."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from headrace_runtimes.docker import sweeper
from headrace_runtimes.docker.api import version_of
from headrace_runtimes.docker.daemon import daemon_of, refuse_runtime
from headrace_runtimes.errors import PrepareFailed

WITHIN_S = 2.0


def why_none(path: str, kernel: str, within_s: float = WITHIN_S) -> str:
    """Why the daemon at this socket is of no use, and what to do, in one line; empty when it is. Blocks."""
    why = ""
    try:
        version, info = (_ask(path, what, within_s) for what in ("/version", "/info"))
        version_of(version)
        daemon_of(info, kernel)
        refuse_runtime(info, version)
    except FileNotFoundError:
        why = f"there is no Docker daemon at {path}: apt-get install docker.io, or start it"
    except PermissionError:
        why = f"there is no permission to use {path}: run the host as root"
    except TimeoutError:
        why = f"Docker does not answer at {path} within {within_s:.0f} s: look into its log, or restart it"
    except OSError as error:
        why = f"Docker does not answer at {path} ({error.strerror or error}): start it"
    except (ValueError, http.client.HTTPException):
        why = f"what listens at {path} is not Docker: name Docker's socket in DOCKER_HOST"
    except PrepareFailed as failed:
        why = str(failed).rstrip(".")
    return why


def _ask(path: str, what: str, within_s: float) -> Mapping[str, Any]:
    told = json.loads(sweeper.ask(path, "GET", what, within_s))
    if not isinstance(told, dict):
        raise ValueError(what)  # noqa: TRY004 - it is what the other side says
    return told
