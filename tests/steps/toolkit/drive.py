"""Apply the step, then check it: `python drive.py WORKSPACE CACHE INPUTS-JSON`.

A process of its own, so that tests can kill it. Prints the check as JSON; a failure goes to
standard output as JSON too, with exit status 1.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from runbook.planning.context import console
from runbook.protocol import StepFailure
from runbook.steps.toolkit import Toolkit


def main(workspace: str, cache: str, inputs: str) -> int:
    step = Toolkit()
    values = Toolkit.Inputs.model_validate_json(inputs).model_dump()
    ctx = console("toolkit", Path(workspace), values, cache=Path(cache))
    try:
        step.apply(ctx)
    except StepFailure as failure:
        keys = ("code", "message", "cause", "remedy", "retryable")
        print(json.dumps({"failure": {key: getattr(failure, key) for key in keys}}))
        return 1
    check = step.check(ctx)
    if check.ok:
        Toolkit.Outputs.model_validate(check.outputs)
    print(json.dumps(asdict(check)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
