"""Extra Ray nodes on this machine: own raylet, labels and declared resources, one keeper process each.

For tests of what happens between nodes, and to see how a node comes and goes without renting one.
"""

from headrace_providers.local.provider import LocalProvider

__all__ = ["LocalProvider"]
