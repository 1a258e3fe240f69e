"""Runs sandboxes as OCI containers by a low-level runtime (runc or its kin), without any daemon."""

from headrace_runtimes.oci.runtime import OciRuntime

__all__ = ["OciRuntime"]
