"""The verbs that look at what is to be done, and do it: validate, plan, check, run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from runbook import errors
from runbook.cli import served, terminal
from runbook.cli.completing import steps as complete_steps
from runbook.cli.following import after_run, approving, continuing
from runbook.cli.options import selecting, selection, verb
from runbook.cli.target import Target
from runbook.remedy import Remedies, Remedy, joined

JOBS = 2


@click.command()
@verb("validate")
def validate(target: Target) -> None:
    """Check the document only."""
    body = {"book": target.book["name"], "source": target.book["source"], "errors": []}
    answer = target.answer(True, body, next=[Remedy("plan")])
    target.say(answer, lambda a: f"{a['source']}: valid")


@click.command()
@verb("plan")
@selection
@click.option("--deep", is_flag=True, help="Ask each check for its thorough form.")
@click.option("--exit-code", "use_exit_code", is_flag=True, help="Exit 4 if anything would run.")
def plan(target: Target, chosen: Mapping[str, Any], deep: bool, use_exit_code: bool) -> int:
    """Show what a run would do, why, and what it costs."""
    from runbook.cli import human
    from runbook.planning.plan import plan as make_plan
    from runbook.planning.planner import select

    chosen_steps = select(target.book["steps"], **chosen)
    body = make_plan(target.book, target.workspace, chosen_steps, deep)
    body["unset_secrets"] = target.unset_secrets()
    mending = _mending(target, body)
    first = [command for told in mending.values() for command in told[1]]
    if (refusal := _refusal(target, body)) is not None:
        target.say(target.answer(False, body, error=refusal, next=first), human.plan)
        return errors.PRECONDITION
    follow = Remedy("run", tuple(selecting(chosen))) if body["would_run"] else Remedy("status")
    answer = target.answer(True, body, next=[*first, follow])
    said = {step: told[0] for step, told in mending.items()}
    target.say(answer, lambda a: human.plan(a, said))
    return errors.WORK_FOUND if use_exit_code and body["would_run"] else errors.DONE


def _mending(target: Target, body: Mapping[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Of each step that is to run although its check proposes what mends it first: the remedy in
    words, and the commands that it names."""
    found = {}
    for step in body["steps"]:
        if step["decision"] in ("run", "unmet") and (remedy := _remedies(step)):
            name = step["id"]
            told = target.renderer
            found[name] = told.text(remedy, name), told.commands(remedy, name)
    return found


def _remedies(step: Mapping[str, Any]) -> Remedies:
    """All that mends a step, by the reasons that are errors."""
    return joined(r["remedy"] for r in step["reasons"] if r["severity"] == "error")


def _refusal(target: Target, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Why nothing would run: a secret is missing, or a step refuses what it is to do before those
    that it needs have run. As an error."""
    if (missing := target.missing_secrets()) is not None:
        return missing.error_dict()
    for step in body["steps"]:
        codes = [reason["code"] for reason in step["reasons"]]
        if step["decision"] == "unmet" and "upstream" in codes:
            reason = next(r for r in step["reasons"] if r["severity"] == "error")
            message = f"step {step['id']} refuses: {reason['message']}"
            told = target.renderer.text(_remedies(step), step["id"])
            return errors.error_dict(reason["code"], message, remedy=told)
    return None


@click.command()
@verb("check")
@click.option("--deep", is_flag=True, help="The thorough form: every byte is read.")
def check(target: Target, steps: tuple[str, ...], deep: bool) -> int:
    """Check whether steps hold (default: all), and change nothing; 3 if one does not."""
    from runbook.planning import check as checking

    shown = None
    if not target.as_json:
        from runbook.cli.progress import Lines
        from runbook.cli.showing import reporter

        width = max(len(step["id"]) for step in target.book["steps"])
        shown = reporter(width) if deep else Lines(width)
    try:
        body, mending = checking.check(target.book, target.workspace, steps, deep, shown)
    finally:
        if shown is not None:
            shown.close()
    unmet = [entry for entry in body["steps"] if entry["state"] in checking.BROKEN]
    if not unmet:
        target.say(target.answer(True, body, next=[Remedy("status")]), _said)
        return errors.DONE
    first = next((entry for entry in unmet if entry["state"] == "unmet"), unmet[0])
    reason = first["reasons"][0]
    mend = Remedy("run", tuple(mending))
    remedy = _remedies(first) or mend
    error = errors.error_dict(
        "unmet",
        f"{len(unmet)} of {len(body['steps'])} steps do not hold: "
        + ", ".join(entry["id"] for entry in unmet),
        cause=f"{first['id']}: {reason['message']}",
        remedy=target.renderer.text(remedy, first["id"]),
    )
    target.say(target.answer(False, body, error=error, next=[mend]), _said)
    return errors.PRECONDITION


def _said(answer: Mapping[str, Any]) -> str:
    """Nothing more: it was said line by line."""
    return ""


@click.command()
@verb("run")
@selection
@click.option(
    "--adopt-workspace", "adopt", is_flag=True, help="Take over another document's workspace."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=JOBS, show_default=True, help="Steps at once."
)
@click.option(
    "--approve",
    multiple=True,
    metavar="STEP[=DIGEST]",
    help="Approve what STEP asked last, or the question with that digest.",
    shell_complete=complete_steps,
)
@click.option("--yes", is_flag=True, help="Approve everything.")
@click.option("--detach", is_flag=True, help="Return at once; the run goes on by itself.")
@click.option("--detached", is_flag=True, hidden=True, help="This is the run that goes on.")
def run(
    target: Target,
    chosen: Mapping[str, Any],
    jobs: int,
    approve: tuple[str, ...],
    yes: bool,
    detach: bool,
    detached: bool,
) -> int:
    """Make it so: run what is not done, skip what is."""
    from runbook.planning.planner import select

    chosen_steps = select(target.book["steps"], **chosen)
    approved = dict(_approval(target, given) for given in approve)
    if (refused := target.missing_secrets()) is not None:
        raise refused
    if approved or detach:
        from runbook.cli import detaching

        if approved and detaching.hand_over(target, approved):
            return errors.DONE
        if detach:
            return detaching.detach(target)
    from runbook.cli import human
    from runbook.cli.runner import execute
    from runbook.execution.holding import hold_for_run

    lock = hold_for_run(target.workspace)
    if not target.as_json and (unset := target.unset_secrets()):
        terminal.say(human.unset(unset), sys.stderr)
    target.record(chosen, approve)
    target.selection = selecting(chosen)
    answer, code = execute(
        target.book,
        target.workspace,
        chosen_steps,
        lock,
        renderer=target.renderer,
        jobs=jobs,
        approved=approved,
        approve_all=yes,
        form=target.form,
        at_once=detached,
    )
    follow = after_run(code, answer, chosen)
    target.selection = [
        *continuing(chosen, answer["body"]["steps"]),
        *_again(answer, [*approve, *_handed(target, answer)], jobs),
    ]
    ok = code == errors.DONE
    body = {**answer["body"], "served": served.served(target, answer["body"]["outputs"])}
    body["unset_secrets"] = target.unset_secrets()
    final = target.answer(ok, body, error=answer["error"], next=follow)
    target.say(final, outcome)
    return code


def _approval(target: Target, given: str) -> tuple[str, str]:
    """The step and the digest of an argument of `--approve`; refuses a step that is not there."""
    from runbook.planning.planner import require_steps

    step, _, digest = given.partition("=")
    require_steps(target.book["steps"], step)
    return step, digest


def _handed(target: Target, answer: Mapping[str, Any]) -> list[str]:
    """The approvals that came while it went on."""
    from runbook.state.recorded import handed

    run = answer["body"]["run"]
    return handed(target.workspace.state, run) if run is not None else []


def _again(answer: Mapping[str, Any], approve: Sequence[str], jobs: int) -> list[str]:
    """What else the run that continues needs: the approvals of what has not ended well."""
    words = approving(approve, answer["body"]["steps"])
    return words if jobs == JOBS else [*words, "--jobs", str(jobs)]


def outcome(final: Mapping[str, Any]) -> str:
    """What a run ended in; step by step it was told before."""
    from runbook.cli import human

    return human.served(final["served"]) if final["ok"] and final["served"] else ""
