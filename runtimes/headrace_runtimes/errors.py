"""What a runtime can fail with.

RuntimeFailure
├── PrepareFailed      the environment (image, zygote, container) cannot be made
│   ├── ImageFailed    the image cannot be built: the step and its last words
│   └── RegistryFailed the registry refuses, cuts off, or sends something else than it said
├── AssignFailed       the sandbox could not become an instance; ``exit`` says why
├── WrongState         the sandbox is not in a state for that
├── SandboxGone        the sandbox ended already
└── NotSupported       this runtime has no such capability
"""

from __future__ import annotations

from headrace_runtimes.spec import Exit


class RuntimeFailure(Exception):
    """Root: ``str(e)`` is one line that says what to do next."""


class PrepareFailed(RuntimeFailure):
    """The environment cannot be made on this host."""


class ImageFailed(PrepareFailed):
    """A step of the image failed."""


class RegistryFailed(PrepareFailed):
    """The registry, or what it sent. ``status``: the HTTP status, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class WrongState(RuntimeFailure):
    """The sandbox is not in a state for that; the message names both."""


class AssignFailed(RuntimeFailure):
    """The sandbox could not become an instance."""

    def __init__(self, message: str, exit: Exit) -> None:
        super().__init__(message)
        self.exit = exit


class SandboxGone(RuntimeFailure):
    """The sandbox ended already."""


class NotSupported(RuntimeFailure):
    """The runtime lacks the capability."""
