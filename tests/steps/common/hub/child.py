"""The step as a process of its own, to be killed: python child.py WORKSPACE URL."""

from __future__ import annotations

import sys
from pathlib import Path

from runbook.steps.common.hub import acquire
from runbook.steps.weights import Weights
from tests.steps.common.hub.hub import TUNING, context


def main() -> None:
    workspace, url = sys.argv[1:]
    acquire.DEFAULT_TUNING = TUNING
    Weights().apply(context(Path(workspace), url, link="none"))


if __name__ == "__main__":
    main()
