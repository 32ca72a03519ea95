"""The verbs that watch a run and change nothing: status, logs, events."""

from __future__ import annotations

import time
from typing import Any

import click

from runbook import errors
from runbook.cli import envelope, served, terminal
from runbook.cli.following import SETTLED, after_status, approving, continuing
from runbook.cli.options import verb
from runbook.cli.target import Target
from runbook.remedy import Remedy
from runbook.state.recorded import handed

POLL_SECONDS = 0.2
BRIEF_TAIL = 20
"""Lines of a log that a brief answer has, if it is not said how many."""


@click.command()
@verb("status")
def status(target: Target) -> None:
    """Show where each step stands."""
    from runbook.cli import human

    body = read(target)
    working = body["run"] is not None and body["run"]["state"] == "running"
    told = working or all(entry["state"] in SETTLED for entry in body["steps"])
    answer = target.answer(True, body, next=after_status(body))
    target.say(
        answer, lambda a: "\n".join([human.status(a), *([] if told else human.following(a))])
    )


def read(target: Target) -> dict[str, Any]:
    """What `status` says; a command that continues the latest run selects what that did."""
    from runbook.state.status import status as read_status

    body = read_status(target.book, target.workspace)
    body["served"] = served.of_workspace(target) if body["endpoint"] else None
    run, chosen = body["run"], target.recorded.chosen
    if run is not None and run["exit_code"] != errors.DONE:
        known = {entry["id"] for entry in body["steps"]}
        named = {chosen.get("start"), chosen.get("until"), *chosen.get("only", ())} - {None}
        if named <= known:
            target.selection = [
                *continuing(chosen, body["steps"]),
                *approving(
                    [*target.recorded.approved, *handed(target.workspace.state, run["id"])],
                    body["steps"],
                ),
            ]
    return body


@click.command()
@verb("logs")
@click.option("--attempt", type=click.IntRange(1), help="Default: the last one.")
@click.option(
    "--tail",
    type=click.IntRange(0),
    default=None,
    metavar="N",
    help=f"Last N lines; default: all, in brief answers {BRIEF_TAIL}.",
)
@click.option("--follow", is_flag=True, help="Go on until the attempt ends.")
@click.option("--errors", "only_errors", is_flag=True, help="What looks like the failure.")
def logs(
    target: Target,
    steps: tuple[str, ...],
    attempt: int | None,
    tail: int | None,
    follow: bool,
    only_errors: bool,
) -> None:
    """Show the log of a step's attempt."""
    from runbook.cli import human
    from runbook.planning.facts import Facts
    from runbook.planning.planner import require_steps
    from runbook.state import logs as reading

    (step,) = steps
    shown = BRIEF_TAIL if tail is None and target.form == "brief" else tail
    order = require_steps(target.book["steps"], step)
    found = reading.find(target.workspace, step, attempt)
    diagnosis = None
    if only_errors:
        uses = target.book["steps"][order.index(step)]["uses"]
        known = reading.diagnose(uses, found.path, Facts())
        lines = reading.errors(found.path, known)
        if known is not None:
            failure = known.failure(f"step {step}: a known failure", str(found.path))
            diagnosis = target.renderer.complete(failure.error_dict(), step)
    else:
        lines = reading.lines(found.path, shown)
    if follow and not target.as_json:
        for line in lines:
            terminal.say(line)
        for line in reading.follow(found.path, target.workspace):
            terminal.say(line, flush=True)
        return
    body = {
        "step": step,
        "run": found.run,
        "attempt": found.attempt,
        "path": str(found.path),
        "lines": lines,
        "diagnosis": diagnosis,
    }
    target.say(target.answer(True, body, next=[Remedy("status")]), human.logs)


@click.command()
@verb("events")
@click.option("--since", type=click.IntRange(0), default=0, metavar="SEQ", help="Events after SEQ.")
@click.option(
    "--follow", is_flag=True, help="Go on until the run ends; a line each, with --json too."
)
def events(target: Target, since: int, follow: bool) -> None:
    """Show the events of the latest run."""
    from runbook.cli import human
    from runbook.state import journal
    from runbook.state.status import latest_run, run_data, run_state

    if follow:
        _follow(target, since)
        return
    latest = target.workspace.latest()
    found = list(journal.read(latest, since)) if latest is not None else []
    record = latest_run(target.workspace)
    body = {
        "run": run_data(record, run_state(target.workspace, record)),
        "events": found,
        "seq": found[-1]["seq"] if found else since,
    }
    answer = target.answer(True, body, next=[Remedy("status")])
    target.say(answer, lambda a: "\n".join(human.event(item) for item in a["events"]))


def _follow(target: Target, since: int) -> None:
    """Print the events of the latest run as they come, until nobody holds the lock."""
    from runbook.cli import human
    from runbook.state import journal
    from runbook.state.status import going_on

    latest = target.workspace.latest()
    while True:
        working = going_on(target.workspace)
        before, latest = latest, target.workspace.latest()
        since = since if latest == before else 0  # another run has begun
        for item in journal.read(latest, since) if latest is not None else ():
            since = item["seq"]
            item = target.renderer.complete(item)
            if target.as_json:
                envelope.print_json(item)
            else:
                terminal.say(human.event(item), flush=True)
        if not working:
            return
        time.sleep(POLL_SECONDS)
