"""`runbook run --detach`: the same run in a session of its own; and approvals for one that goes
on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from runbook import errors
from runbook.cli.following import WAIT
from runbook.cli.target import Target
from runbook.files import read_json
from runbook.remedy import Remedy

PATIENCE = 30.0


def detach(target: Target) -> int:
    """Start it and wait until it holds the lock; the exit code."""
    target.workspace.create()
    arguments = ["--detached" if word == "--detach" else word for word in sys.argv[1:]]
    arguments = [word for word in arguments if word not in ("--brief", "--human", "--json")]
    arguments.append("--brief" if target.form == "brief" else "--json")
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
                # After `run.started`: nothing else of it was told yet.
                _tell(target, holder["run"], 1)
                return errors.DONE
            time.sleep(0.01)
        # It ended before there was anything to detach: hand on what it said.
        code = child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    if target.form == "brief":
        print(lines[-1], flush=True)
    else:
        target.say(json.loads(lines[-1]), lambda a: "nothing to do" if a["ok"] else "")
    return code


def _tell(target: Target, run: str, seq: int) -> None:
    """Say that a run goes on, of which events up to `seq` were told."""
    follow = [Remedy("wait", (*WAIT, "--since", str(seq)))]
    answer = target.answer(True, {"run": run, "detached": True}, next=follow)
    target.say(answer, lambda a: f"run {a['run']}\nnext: {a['next'][0]}")


def hand_over(target: Target, approved: Mapping[str, str]) -> bool:
    """Give approvals to the run that goes on, if it waits for one of them, and say so; whether it
    took them. Inputs are for the next run only."""
    from runbook.state import recorded
    from runbook.state.status import latest_run, run_state

    workspace = target.workspace
    run = latest_run(workspace)
    if run is None or target.unrecorded or run_state(workspace, run) != "running":
        return False
    asking = {
        name: recorded.question_digest(step.question)
        for name, step in run.steps.items()
        if name in approved and step.state == "waiting"
    }
    given = {name: now for name, now in asking.items() if approved[name] in ("", now)}
    if not given:
        return False
    recorded.approve(workspace.state, run.id, given)
    deadline = time.monotonic() + PATIENCE
    while workspace.locked() and time.monotonic() < deadline:
        if (now := latest_run(workspace)) is not None and now.id == run.id:
            told = [now.steps[name].state for name in given]
            if "waiting" not in told:
                _tell(target, run.id, run.last_seq)
                return True
        time.sleep(0.05)
    return False
