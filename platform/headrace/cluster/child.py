"""First code of every child of the supervisor: ties its life to its parent's, then becomes the program.

``python -m headrace.cluster.child PARENT_PID MODULE``. PR_SET_PDEATHSIG follows the thread that forked,
which is the supervisor's main thread; the check of the parent's pid closes the gap before the call.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, sig: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for ``sig`` when the parent ends; exit at once when it has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def main() -> None:
    """Run the module named in argv as ``__main__``."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(parent)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
