"""The policies that others use, by their public descriptions and real defaults, to compare with."""

from headrace_autoscaler.baselines.registry import UnknownPolicy, names, policy_of

__all__ = ["UnknownPolicy", "names", "policy_of"]
