"""Runs inside the namespace of `user_manager.sh`: the life of a server under systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from runbook.process import session_members
from runbook.steps.common.service import Service
from runbook.steps.serve import Serve
from runbook.steps.serve.supervisor import unit_path
from tests.steps.serve.conftest import READY, Bench


def properties(unit):
    shown = subprocess.run(
        ["systemctl", "--user", "show", unit], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.partition("=")[::2] for line in shown.splitlines())


def codes(check):
    return [reason.code for reason in check.reasons]


def main():
    bench, step = Bench(Path(sys.argv[1])), Serve()
    folder = bench.workspace / "serve"
    ctx = bench.context(supervisor="auto")
    unit = unit_path(folder)

    step.apply(ctx)
    check = step.check(ctx)
    assert check.ok, check
    assert check.outputs["supervisor"] == "systemd-user"
    assert check.outputs["unit"] == unit.name
    first = Service.load(folder).process
    assert properties(unit.name)["MainPID"] == str(first.pid)
    assert properties(unit.name)["UnitFileState"] == "enabled"
    assert os.getsid(first.pid) == first.pid

    # A crash: systemd starts it again; it counts as ready once it has answered.
    first.signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while True:
        service = Service.load(folder)
        if service is not None and service.process != first and service.alive():
            break
        assert time.monotonic() < deadline, "systemd does not start it again"
        time.sleep(0.1)
    assert codes(step.check(ctx)) == ["server_starting"], step.check(ctx)
    assert f"process {first.pid} died at" in step.check(ctx).reasons[0].message
    step.apply(ctx)
    assert step.check(ctx).ok
    assert codes(step.check(ctx)) == ["server_died_before"]
    second = Service.load(folder).process
    assert second != first

    # Another command line: the unit is restarted with it.
    changed = bench.context(supervisor="auto", max_num_seqs=3)
    assert codes(step.check(changed)) == ["server_changed"]
    step.apply(changed)
    assert step.check(changed).ok
    third = Service.load(folder).process
    assert not second.alive()
    assert third.pid == int(properties(unit.name)["MainPID"])

    step.undo(changed)
    assert not unit.exists()
    assert session_members(third.pid) == []
    assert not folder.exists()
    assert properties(unit.name)["LoadState"] == "not-found"

    # A server that ends at once, and again: the failure is that of its log.
    bench.behave(log=(READY + "\nvllm: error: unrecognized arguments: --x"), exits=2)
    try:
        step.apply(ctx)
    except Exception as failure:
        assert getattr(failure, "cause", "").endswith("unrecognized arguments: --x"), failure
    else:
        raise AssertionError("it cannot have started")
    assert not unit.exists()
    assert Service.load(folder) is None


main()
