"""The `runbook` program: from arguments to exit code, whatever goes wrong on the way."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    gc.disable()  # until attempts run: answers are made before there is garbage to collect
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (`runbook logs | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str]) -> int:
    from runbook.cli.main import invoke

    return invoke(arguments)


if __name__ == "__main__":
    main()
