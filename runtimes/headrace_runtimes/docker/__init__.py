"""Runs sandboxes as containers of a Docker engine, for machines where that is what there is."""

from headrace_runtimes.docker.runtime import DockerRuntime

__all__ = ["DockerRuntime"]
