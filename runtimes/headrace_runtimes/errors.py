"""What a runtime can fail with.

RuntimeFailure
├── PrepareFailed      the environment (image, zygote) cannot be made
├── AssignFailed       the sandbox could not become an instance; ``death`` says why
├── SandboxGone        the sandbox ended already
└── NotSupported       this runtime has no such capability
"""

from __future__ import annotations

from headrace_runtimes.spec import Exit


class RuntimeFailure(Exception):
    """Root: ``str(e)`` is one line that says what to do next."""


class PrepareFailed(RuntimeFailure):
    """The environment cannot be made on this host."""


class AssignFailed(RuntimeFailure):
    """The sandbox could not become an instance."""

    def __init__(self, message: str, exit: Exit) -> None:
        super().__init__(message)
        self.exit = exit


class SandboxGone(RuntimeFailure):
    """The sandbox ended already."""


class NotSupported(RuntimeFailure):
    """The runtime lacks the capability."""
