"""``ray start`` for a node on this machine whose head listens on loopback only.

``python -m headrace.cluster.ray_join start --address=127.0.0.1:6399 ...`` takes the arguments of
``ray``; but for loopback staying loopback it is the same command.
"""

from __future__ import annotations

import sys

from ray.scripts.scripts import main as ray_main

from headrace.cluster import ray_private


def main() -> None:
    """Run the command line of Ray."""
    ray_private.keep_loopback()
    sys.exit(ray_main())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
