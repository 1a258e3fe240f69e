"""Decides how many instances each endpoint has and where: pure functions, no clock, no effects."""

from headrace_autoscaler.policy import decide

__all__ = ["decide"]
