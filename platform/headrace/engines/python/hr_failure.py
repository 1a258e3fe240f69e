"""The answer to a handler that raised."""

from __future__ import annotations

import re
import sys
from typing import Tuple

import hr_loader
import hr_secrets
from hr_problem import Problem

endpoint = "NAME"
"""Whose instance this is, since its assignment: for hints."""
_NOT_HEADER = re.compile(r"[^\x21-\x7e]+")


def handler_failed(error: BaseException) -> Tuple[Problem, bytes]:
    """The answer to a handler that raised, and its header; the traceback goes to the endpoint's log only."""
    name = type(error).__name__
    print(hr_loader.user_traceback(error), file=sys.stderr, end="", flush=True)
    text = hr_secrets.masked(str(error))[:4000]
    problem = Problem("handler-error", f"{name}: {text}" if text else name, exception=name)
    problem.hint = f"`headrace logs {endpoint}` shows the traceback."
    header = _NOT_HEADER.sub("?", name)[:200]
    return problem, b"X-Headrace-Exception: %b\r\n" % header.encode()
