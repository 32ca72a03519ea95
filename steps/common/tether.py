"""Run a Python module that dies with its parent: `python -m runbook.steps.common.tether PID
MODULE ARGUMENT...`.

An installer that outlives a killed attempt would write into folders which the next attempt
already works on. The kernel ends it instead (PR_SET_PDEATHSIG, see prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str | os.PathLike[str]) -> list[str]:
    """The argument list of a tethered `python -m module arguments...` of this process."""
    return [
        sys.executable,
        "-m",
        __name__,
        str(os.getpid()),
        module,
        *(os.fspath(argument) for argument in arguments),
    ]


def main(argv: Sequence[str]) -> None:
    parent, module, *arguments = argv
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the tether was tied
        os._exit(1)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
