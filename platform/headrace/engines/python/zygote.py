"""Start of the engine: ``python <engine-dir>/zygote.py <fd>``, a SOCK_SEQPACKET socket to the runtime."""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
# Python puts the script's directory first; the engine goes last, so that it never hides a user's module.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE] + [_HERE]

if __name__ == "__main__":
    import hr_zygote

    sys.exit(hr_zygote.main(int(sys.argv[1])))
