"""Start of the engine in a container: its first process, which reaps orphans, and the one that waits."""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
# Python puts the script's directory first; the engine goes last, so that it never hides a user's module.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE] + [_HERE]

if __name__ == "__main__":
    import hr_init

    sys.exit(hr_init.main(sys.argv[1]))
