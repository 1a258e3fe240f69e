"""Settings that only hosts use, checked before anything starts: by what uses them."""

from __future__ import annotations

from headrace_runtimes.errors import RuntimeFailure
from headrace_runtimes.images.reference import parse
from headrace_runtimes.oci.binary import find
from headrace_runtimes.oci.criu import wrong_program

from headrace.config import Settings
from headrace.host.runtimes import AUTO, maker, named


def wrong_here(settings: Settings) -> tuple[str, str] | None:
    """The first setting that no host of this machine could use, and why; None: all can be. Blocks.

    With ``runtimes`` named, as long as those take to look at the machine: a second or so.
    """
    for name, check in _CHECKS.items():
        try:
            why = check(settings)
        except RuntimeFailure as error:
            why = str(error)
        if why:
            return name, why.rstrip(".")
    return None


def _python_image(settings: Settings) -> str:
    if settings.python_image:
        parse(settings.python_image.replace("{version}", "3"))
    return ""


def _oci_binary(settings: Settings) -> str:
    return find(settings.oci_binary)[1] if settings.oci_binary else ""


def _criu(settings: Settings) -> str:
    return wrong_program(settings.criu) if settings.criu else ""


def _runtimes(settings: Settings) -> str:
    if settings.runtimes != AUTO:
        named(settings.runtimes, maker(settings.oci_binary, settings.criu))
    return ""


_CHECKS = {
    "python_image": _python_image,
    "oci_binary": _oci_binary,
    "criu": _criu,
    "runtimes": _runtimes,
}
"""Setting -> what is wrong with it; raises `RuntimeFailure`, too. The quick ones first."""
