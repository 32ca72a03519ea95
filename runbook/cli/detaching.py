"""`runbook run --detach`: the same run in a session of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from runbook import errors
from runbook.cli.target import Target
from runbook.files import read_json
from runbook.remedy import Remedy

PATIENCE = 30.0


def detach(target: Target) -> int:
    """Start it and wait until it holds the lock; the exit code."""
    target.workspace.create()
    arguments = ["--detached" if word == "--detach" else word for word in sys.argv[1:]]
    if "--json" not in arguments:
        arguments.append("--json")
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "runbook", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while child.poll() is None and time.monotonic() < deadline:
            holder = read_json(target.workspace.lock_file)
            if isinstance(holder, dict) and holder.get("pid") == child.pid and holder["run"]:
                follow = [Remedy("wait", ("--timeout", "60")), Remedy("status")]
                body = {"run": holder["run"], "detached": True}
                answer = target.answer(True, body, next=follow)
                target.say(answer, lambda a: f"run {a['run']}\nnext: {a['next'][0]}")
                return errors.DONE
            time.sleep(0.01)
        # It ended before there was anything to detach: hand on what it said.
        code = child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    final = json.loads(lines[-1])
    target.say(final, lambda a: "nothing to do" if a["ok"] else "")
    return code
