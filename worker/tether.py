"""Ties a process to the one that has started it: the kernel ends it when that one ends, however it does.

`python -m worker.tether PROGRAM …` becomes that program, tied.
"""

from __future__ import annotations

import os
import signal
import sys


def tie(number: signal.Signals) -> None:
    """The signal comes when the thread ends that has started this process; on Linux alone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG of <linux/prctl.h>


def _become(command: list[str]) -> None:
    """Never returns."""
    tie(signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)  # as a shell says it


if __name__ == "__main__":
    _become(sys.argv[1:])
