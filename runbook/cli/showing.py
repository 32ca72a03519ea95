"""How a run is shown while it goes on: in lines; on a terminal also what is being done."""

from __future__ import annotations

import sys

from runbook.cli import terminal
from runbook.cli.progress import Lines


def reporter(width: int) -> Lines:
    if not terminal.is_terminal(sys.stdout):
        return Lines(width)
    from runbook.cli.live import Live

    return Live(width)
