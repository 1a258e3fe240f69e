"""Runs sandboxes as processes forked from preloaded zygotes: one trust domain, started in milliseconds."""

from headrace_runtimes.process.runtime import ProcessRuntime

__all__ = ["ProcessRuntime"]
