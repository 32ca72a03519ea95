"""The verbs. Each builds one document and renders it; what a verb needs is imported inside it."""

from __future__ import annotations

import functools
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

import runbook
from runbook import errors
from runbook.errors import RunbookError, error_dict

if TYPE_CHECKING:
    from runbook.document.errors import DocumentInvalid

EPILOG = "\b\nExit codes:\n" + "\n".join(
    f"  {code:>3}  {meaning}" for code, meaning in errors.EXIT_CODES.items()
)
DETACH_PATIENCE = 30.0


class Target:
    """The book and workspace that a verb works on, and how to say so in a command."""

    def __init__(
        self,
        book: str | None,
        workspace: Path | None,
        sets: Sequence[str] = (),
        validate_only: bool = False,
    ) -> None:
        from runbook.document.compile import compile_book
        from runbook.planning.context import default_cache
        from runbook.state.workspace import Workspace, default_workspace

        self.argument, self._folder, self._sets = book, workspace, sets
        cache = None if validate_only else default_cache() / "compiled"
        required = not validate_only
        try:
            self.book = compile_book(book, sets, cache, os.environ, require_inputs=required)
        except Exception as problem:
            from runbook.cli import remedies
            from runbook.document.errors import DocumentInvalid

            if isinstance(problem, DocumentInvalid):
                problem.remedy = remedies.text(str(problem.remedy), self.command)
            raise
        root = workspace.absolute() if workspace is not None else None
        self.workspace = Workspace(root or default_workspace(self.book["name"]))

    def command(self, verb: str, *arguments: str, positional: bool = True) -> str:
        """A command line for `next`, with the same book, workspace and inputs."""
        words = ["runbook", verb]
        if self.argument is not None:
            words += [self.argument] if positional else ["--book", self.argument]
        words += arguments
        if self._folder is not None:
            words += ["--workspace", str(self._folder)]
        if verb in ("run", "plan", "destroy"):
            for item in self._sets:
                words += ["--set", item]
        return shlex.join(words)

    def answer(
        self,
        kind: str,
        ok: bool,
        body: Mapping[str, Any],
        *,
        error: Mapping[str, Any] | None = None,
        next: Sequence[str],
    ) -> dict[str, Any]:
        """The answer of a verb, its remedies completed."""
        from runbook.cli import remedies
        from runbook.cli.envelope import document

        answer = document(kind, ok, body, error=error, next=next)
        completed: dict[str, Any] = remedies.complete(answer, self.command)
        return completed


def invoke(arguments: list[str]) -> int:
    """Run the program; returns its exit code. Nothing that fails shows a traceback."""
    try:
        code = cli.main(args=arguments, prog_name="runbook", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as problem:
        usage = (
            problem.ctx.get_usage() if isinstance(problem, click.UsageError) and problem.ctx else ""
        )
        code = _fail(
            arguments,
            RunbookError(
                problem.format_message(),
                code="usage",
                exit_code=errors.USAGE,
                cause=usage,
                remedy="see `runbook --help`",
            ),
        )
    except (KeyboardInterrupt, click.Abort):
        code = errors.SIGINT
    except BrokenPipeError:
        code = errors.DONE
    except RunbookError as problem:
        code = _fail(arguments, problem)
    except Exception as problem:
        code = _unexpected(arguments, problem)
    return code if isinstance(code, int) else errors.DONE


def _unexpected(arguments: list[str], problem: Exception) -> int:
    from runbook import disk
    from runbook.document.errors import DocumentInvalid
    from runbook.protocol import StepFailure

    if isinstance(problem, DocumentInvalid):
        return _invalid(arguments, problem)
    if isinstance(problem, OSError) and problem.errno in disk.MEANINGS:
        problem = disk.disk_failure(problem, "this machine")
    if isinstance(problem, StepFailure):
        return _fail(arguments, RunbookError(**problem.error_dict(), exit_code=problem.exit_code))
    from runbook import crash

    file = crash.write(problem, None)
    return _fail(
        arguments,
        RunbookError(
            f"internal error: {type(problem).__name__}: {problem}",
            code="internal",
            exit_code=errors.INTERNAL,
            cause="a defect of runbook; nothing that was done is lost",
            remedy=f"report it with {file}; `runbook run` continues",
            log=str(file),
        ),
    )


def _invalid(arguments: list[str], problem: DocumentInvalid) -> int:
    if "--json" in arguments:
        from runbook.cli.envelope import document

        body, error = {"errors": problem.errors}, problem.error_dict()
        _print_json(document(_verb(arguments), False, body, error=error))
    else:
        print(f"{problem}\n  remedy: {problem.remedy}", file=sys.stderr)
    return errors.USAGE


def _verb(arguments: list[str]) -> str:
    known = {*cli.commands, *_added()}
    return next((word for word in arguments if word in known), "runbook")


def _fail(arguments: list[str], problem: RunbookError) -> int:
    if "--json" in arguments:
        from runbook.cli.envelope import document

        answer = document(_verb(arguments), False, error=problem.error_dict(), next=problem.next)
        _print_json(answer)
    else:
        from runbook.cli.human import error_text

        print(error_text(problem.error_dict()), file=sys.stderr)
    return problem.exit_code


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _answer(
    answer: Mapping[str, Any], as_json: bool, human: Callable[[Mapping[str, Any]], str]
) -> None:
    if as_json:
        _print_json(answer)
        return
    text = human(answer)
    if text:
        print(text)
    if answer.get("error"):
        from runbook.cli.human import error_text

        print(error_text(answer["error"]), file=sys.stderr)


Verb: TypeAlias = Callable[..., Any]


def options(
    *, positional: bool = True, sets: bool = False, validate_only: bool = False
) -> Callable[[Verb], Verb]:
    """What all verbs that work on a book share; they are given it as `target`."""
    shared = [
        click.option("--json", "as_json", is_flag=True, help="One JSON document."),
        click.option(
            "--workspace",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the runbook's state and results.",
        ),
    ]
    if sets:
        shared.append(
            click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set an input.")
        )
    if positional:
        shared.append(click.argument("book", required=False))
    else:
        shared.append(click.option("--book", help="A path or a shipped name."))

    def decorate(function: Verb) -> Verb:
        @functools.wraps(function)
        def verb(
            book: str | None, workspace: Path | None, sets: tuple[str, ...] = (), **rest: Any
        ) -> Any:
            target = Target(book, workspace, sets, validate_only)
            try:
                return function(target=target, **rest)
            except RunbookError as problem:
                from runbook.cli import remedies

                if problem.code == "unknown_step" and not positional:
                    problem.remedy = f"{problem.remedy}; another runbook is named with `--book`"
                problem.remedy = remedies.text(str(problem.remedy), target.command)
                problem.next = tuple(remedies.line(one, target.command) for one in problem.next)
                raise

        return functools.reduce(lambda decorated, option: option(decorated), shared, verb)

    return decorate


class Verbs(click.Group):
    """The engine's verbs and those that steps add, which are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in (added := _added()):
            return found
        module, _, name = added[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


def _added() -> dict[str, str]:
    found: dict[str, str] = importlib.import_module("runbook.steps").VERBS
    return found


@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(runbook.__version__, prog_name="runbook")
def cli() -> None:
    """Set up and serve what a runbook describes, and never lose its place.

    BOOK is a path or a shipped name; default `runbook.yaml` here, else `deepseek-v4-flash`.
    """


@cli.command()
@options(sets=True, validate_only=True)
def validate(target: Target, as_json: bool) -> None:
    """Check the document only."""
    body = {"book": target.book["name"], "source": target.book["source"], "errors": []}
    answer = target.answer("validate", True, body, next=[target.command("plan")])
    _answer(answer, as_json, lambda a: f"{a['source']}: valid")


def selection_options(function: Verb) -> Verb:
    """Which steps; the verb is given them as the arguments of `planner.select`."""

    @click.option("--from", "start", metavar="STEP", help="Force STEP; later ones decide.")
    @click.option("--until", metavar="STEP", help="Stop after STEP.")
    @click.option("--only", multiple=True, metavar="STEP", help="Force STEP, run no other.")
    @click.option("--force", multiple=True, metavar="STEP", help="Run STEP though it holds.")
    @functools.wraps(function)
    def verb(
        start: str | None,
        until: str | None,
        only: tuple[str, ...],
        force: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        chosen = {"start": start, "until": until, "only": only, "force": force}
        return function(chosen=chosen, **rest)

    return verb


@cli.command()
@options(sets=True)
@selection_options
@click.option("--deep", is_flag=True, help="Ask each check for its thorough form.")
@click.option("--exit-code", "use_exit_code", is_flag=True, help="Exit 4 if anything would run.")
def plan(
    target: Target,
    as_json: bool,
    chosen: Mapping[str, Any],
    deep: bool,
    use_exit_code: bool,
) -> int:
    """Show what a run would do, why, and what it costs."""
    from runbook.cli import human
    from runbook.planning.plan import plan as make_plan
    from runbook.planning.planner import select

    selection = select(target.book["steps"], **chosen)
    body = make_plan(target.book, target.workspace, selection, deep)
    follow = [target.command("run")] if body["would_run"] else [target.command("status")]
    _answer(target.answer("plan", True, body, next=follow), as_json, human.plan)
    return errors.WORK_FOUND if use_exit_code and body["would_run"] else errors.DONE


@cli.command()
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@options(positional=False, sets=True)
@click.option("--deep", is_flag=True, help="The thorough form: every byte is read.")
def check(steps: tuple[str, ...], target: Target, as_json: bool, deep: bool) -> int:
    """Check whether steps hold (default: all), and change nothing; 3 if one does not."""
    from runbook.planning import check as checking

    body, mending = checking.check(target.book, target.workspace, steps, deep, quiet=as_json)
    unmet = [entry for entry in body["steps"] if entry["state"] in checking.BROKEN]
    follow = [target.command("run", *mending)]
    if not unmet:
        _answer(target.answer("check", True, body, next=[target.command("status")]), as_json, _said)
        return errors.DONE
    first = next((entry for entry in unmet if entry["state"] == "unmet"), unmet[0])
    reason = first["reasons"][0]
    error = RunbookError(
        f"{len(unmet)} of {len(body['steps'])} steps do not hold: "
        + ", ".join(entry["id"] for entry in unmet),
        code="unmet",
        exit_code=errors.PRECONDITION,
        cause=f"{first['id']}: {reason['message']}",
        remedy=reason["remedy"] or follow[0],
    )
    answer = target.answer("check", False, body, error=error.error_dict(), next=follow)
    _answer(answer, as_json, _said)
    return error.exit_code


def _said(answer: Mapping[str, Any]) -> str:
    """Nothing more: it was said line by line."""
    return ""


@cli.command()
@options(sets=True)
@selection_options
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Steps at once.")
@click.option("--approve", multiple=True, metavar="STEP", help="Approve what STEP asks.")
@click.option("--yes", is_flag=True, help="Approve everything.")
@click.option("--detach", is_flag=True, help="Return at once; the run goes on by itself.")
def run(
    target: Target,
    as_json: bool,
    chosen: Mapping[str, Any],
    jobs: int,
    approve: tuple[str, ...],
    yes: bool,
    detach: bool,
) -> int:
    """Make it so: run what is not done, skip what is."""
    from runbook.planning.planner import select

    selection = select(target.book["steps"], **chosen)
    if detach:
        return _detach(target, as_json)
    from runbook.cli.runner import execute
    from runbook.execution.holding import hold_for_run

    lock = hold_for_run(target.workspace)
    answer, code = execute(
        target.book,
        target.workspace,
        selection,
        lock,
        command=target.command,
        jobs=jobs,
        approved=approve,
        approve_all=yes,
        as_json=as_json,
    )
    follow = _after_run(target, code, answer, chosen)
    final = target.answer(
        "run", code == errors.DONE, answer["body"], error=answer["error"], next=follow
    )
    if as_json:
        _print_json(final)
    else:
        _print_outcome(final)
    return code


def _after_run(
    target: Target, code: int, answer: Mapping[str, Any], chosen: Mapping[str, Any]
) -> list[str]:
    """The commands to call next."""
    if code == errors.DONE:
        return [target.command("status")]
    if answer["lacking"]:
        again = target.command("run", *_selecting(chosen))
        return [target.command("run", "--until", answer["lacking"]), again]
    waiting = [e["id"] for e in answer["body"]["steps"] if e["state"] == "waiting"]
    if waiting:
        return [target.command("run", *(w for name in waiting for w in ("--approve", name)))]
    return _after_failures(target, answer["body"]["steps"])


def _after_failures(target: Target, steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The logs of what failed, and another run unless that would fail in the same way."""
    failed = [e for e in steps if e["state"] == "failed"]
    logs = [target.command("logs", e["id"], "--errors", positional=False) for e in failed]
    hopeless = failed and not any((e["error"] or {}).get("retryable") for e in failed)
    return logs if hopeless else [*logs, target.command("run")]


def _selecting(chosen: Mapping[str, Any]) -> list[str]:
    """The arguments that select the same steps again."""
    words = []
    for name in ("start", "until"):
        if chosen[name] is not None:
            words += ["--from" if name == "start" else "--until", chosen[name]]
    for name in ("only", "force"):
        words += [word for step in chosen[name] for word in (f"--{name}", step)]
    return words


def _print_outcome(final: Mapping[str, Any]) -> None:
    from runbook.cli import human

    if final.get("error"):
        print(human.error_text(final["error"]), file=sys.stderr)
        for command in final["next"]:
            print(f"  next:   {command}", file=sys.stderr)
    elif final["endpoint"]:
        print(f"endpoint {final['endpoint']}")


def _detach(target: Target, as_json: bool) -> int:
    """Start the same run in a session of its own and wait until it holds the lock."""
    import subprocess
    import tempfile

    from runbook.files import read_json

    target.workspace.create()
    arguments = [word for word in sys.argv[1:] if word != "--detach"]
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
        deadline = time.monotonic() + DETACH_PATIENCE
        while child.poll() is None and time.monotonic() < deadline:
            holder = read_json(target.workspace.lock_file)
            if isinstance(holder, dict) and holder.get("pid") == child.pid and holder["run"]:
                follow = [target.command("wait", "--timeout", "60"), target.command("status")]
                body = {"run": holder["run"], "detached": True}
                answer = target.answer("run", True, body, next=follow)
                _answer(answer, as_json, lambda a: f"run {a['run']}\nnext: {a['next'][0]}")
                return errors.DONE
            time.sleep(0.01)
        # It ended before there was anything to detach: hand on what it said.
        code = child.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    final = json.loads(lines[-1])
    if as_json:
        _print_json(final)
    elif final.get("error"):
        _print_outcome(final)
    else:
        print("nothing to do")
    return code


@cli.command()
@options()
def status(target: Target, as_json: bool) -> None:
    """Show where each step stands."""
    from runbook.cli import human
    from runbook.state.status import status as read_status

    body = read_status(target.book, target.workspace)
    answer = target.answer("status", True, body, next=_after_status(target, body))
    _answer(answer, as_json, human.status)


def _after_status(target: Target, body: Mapping[str, Any]) -> list[str]:
    state = body["run"]["state"] if body["run"] is not None else "none"
    if state in ("running", "orphaned"):
        return [target.command("wait", "--timeout", "60"), target.command("cancel")]
    asked = [e["id"] for e in body["steps"] if e["state"] == "waiting"]
    if asked:
        return [target.command("run", *(w for name in asked for w in ("--approve", name)))]
    if all(e["state"] in ("satisfied", "inactive") for e in body["steps"]):
        return [target.command("plan")]
    return _after_failures(target, body["steps"])


@cli.command()
@options()
@click.option("--timeout", type=click.FloatRange(0), default=None, help="Seconds, at most.")
@click.option("--since", type=int, default=None, metavar="SEQ", help="Give events after SEQ.")
def wait(target: Target, as_json: bool, timeout: float | None, since: int | None) -> int:
    """Wait for the run that is going on; its exit code, or 7 if it takes longer."""
    from runbook.cli import human
    from runbook.state import journal
    from runbook.state.status import going_on, latest_run
    from runbook.state.status import status as read_status

    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.02
    while going_on(target.workspace):
        if deadline is not None and time.monotonic() >= deadline:
            break
        rest = pause if deadline is None else min(pause, deadline - time.monotonic())
        time.sleep(max(0.0, rest))
        pause = min(0.25, pause * 1.5)
    body = read_status(target.book, target.workspace)
    latest = target.workspace.latest()
    found = list(journal.read(latest, since)) if latest is not None and since is not None else []
    body["events"] = found
    run = body["run"]
    error: dict[str, Any] | None = None
    if run is None:
        code = errors.DONE
    elif run["state"] in ("running", "orphaned"):
        code = errors.STILL_RUNNING
        seq = str(run["seq"])
        follow = [
            target.command("wait", "--timeout", "60", "--since", seq),
            target.command("cancel"),
        ]
        error = error_dict(
            "still_running",
            "still running",
            remedy="wait again",
            retryable=True,
        )
    elif run["state"] == "interrupted":
        code = errors.FAILED
        error = error_dict(
            "interrupted",
            "the run was interrupted before its end",
            cause="its supervisor died",
            remedy=target.command("run"),
            retryable=True,
        )
    else:
        code = run["exit_code"]
        record = latest_run(target.workspace)
        error = record.result if record is not None else None
    if code != errors.STILL_RUNNING:
        follow = _after_status(target, body)
    answer = target.answer("wait", code == errors.DONE, body, error=error, next=follow)
    lines = [human.event(item) for item in found]
    _answer(answer, as_json, lambda a: "\n".join([*lines, human.status(a)]))
    return code


@cli.command()
@click.argument("step")
@options(positional=False)
@click.option("--attempt", type=click.IntRange(1), help="Default: the last one.")
@click.option("--tail", type=click.IntRange(0), default=None, metavar="N", help="Last N lines.")
@click.option("--follow", is_flag=True, help="Go on until the attempt ends.")
@click.option("--errors", "only_errors", is_flag=True, help="What looks like the failure.")
def logs(
    step: str,
    target: Target,
    as_json: bool,
    attempt: int | None,
    tail: int | None,
    follow: bool,
    only_errors: bool,
) -> None:
    """Show the log of a step's attempt."""
    from runbook.cli import human
    from runbook.planning.planner import require_steps
    from runbook.state import logs as reading

    order = require_steps(target.book["steps"], step)
    found = reading.find(target.workspace, step, attempt)
    diagnosis = None
    if only_errors:
        uses = target.book["steps"][order.index(step)]["uses"]
        known = reading.diagnose(uses, found.path)
        lines = reading.errors(found.path, known)
        if known is not None:
            failure = known.failure(f"step {step}: a known failure", str(found.path))
            diagnosis = failure.error_dict()
    else:
        lines = reading.lines(found.path, tail)
    if follow and not as_json:
        for line in lines:
            print(line)
        reading.follow(found.path, target.workspace)
        return
    body = {
        "step": step,
        "run": found.run,
        "attempt": found.attempt,
        "path": str(found.path),
        "lines": lines,
        "diagnosis": diagnosis,
    }
    answer = target.answer("logs", True, body, next=[target.command("status")])
    _answer(answer, as_json, human.logs)


@cli.command()
@options()
@click.option("--since", type=int, default=0, metavar="SEQ", help="Events after SEQ.")
@click.option(
    "--follow", is_flag=True, help="Go on until the run ends; a line each, with --json too."
)
def events(target: Target, as_json: bool, since: int, follow: bool) -> None:
    """Show the events of the latest run."""
    from runbook.cli import human
    from runbook.state import journal
    from runbook.state.status import latest_run, run_data, run_state

    latest = target.workspace.latest()
    if follow:
        while True:
            going_on = target.workspace.locked()
            latest = target.workspace.latest()
            for item in journal.read(latest, since) if latest is not None else ():
                since = item["seq"]
                _print_json(item) if as_json else print(human.event(item), flush=True)
            if not going_on:
                return
            time.sleep(0.2)
    found = list(journal.read(latest, since)) if latest is not None else []
    record = latest_run(target.workspace)
    body = {
        "run": run_data(record, run_state(target.workspace, record)),
        "events": found,
        "seq": found[-1]["seq"] if found else since,
    }
    answer = target.answer("events", True, body, next=[target.command("status")])
    _answer(answer, as_json, lambda a: "\n".join(human.event(item) for item in a["events"]))


@cli.command()
@options()
def cancel(target: Target, as_json: bool) -> None:
    """End the run that is going on, and everything it started."""
    from runbook.execution.cancel import cancel as end

    body = end(target.workspace)
    answer = target.answer("cancel", True, body, next=[target.command("run")])
    _answer(
        answer,
        as_json,
        lambda a: f"cancelled run {a['run']}" if a["cancelled"] else "no run is going on",
    )


@cli.command()
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@options(positional=False, sets=True)
@click.option("--yes", is_flag=True, help="Do it; without this, only the plan is shown.")
def destroy(steps: tuple[str, ...], target: Target, as_json: bool, yes: bool) -> int:
    """Undo steps, last first. Shows its plan; `--yes` carries it out."""
    from runbook.cli import human
    from runbook.execution import holding, undo

    entries = undo.plan(target.book, target.workspace, steps)
    error: dict[str, Any] | None = None
    follow = [target.command("status")]
    code = errors.DONE
    if entries and not yes:
        code = errors.APPROVAL
        follow = [target.command("destroy", *steps, "--yes", positional=False)]
        error = error_dict(
            "approval",
            f"would undo {', '.join(e['id'] for e in entries if e['decision'] == 'undo')}",
            remedy=follow[0],
        )
    elif entries:
        lock = holding.hold(target.workspace)
        entries, code, error = undo.execute(target.book, target.workspace, entries, lock)
    body = {
        "book": target.book["name"],
        "workspace": str(target.workspace.root),
        "steps": entries,
    }
    answer = target.answer("destroy", code == errors.DONE, body, error=error, next=follow)
    _answer(answer, as_json, human.undone)
    return code


@cli.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def list_books(as_json: bool) -> None:
    """List the shipped books."""
    from runbook.cli import human
    from runbook.cli.envelope import document
    from runbook.document.compile import BOOKS, compile_book
    from runbook.planning.context import default_cache

    books: list[dict[str, Any]] = []
    for path in sorted(BOOKS.glob("*.yaml")):
        cache = default_cache() / "compiled"
        book = compile_book(path.stem, (), cache, os.environ, require_inputs=False)
        books.append(
            {
                "name": book["name"],
                "description": book["description"],
                "steps": [step["id"] for step in book["steps"]],
            }
        )
    answer = document("list", True, {"books": books}, next=["runbook plan " + books[0]["name"]])
    _answer(
        answer,
        as_json,
        lambda a: human.table([(b["name"], "", b["description"]) for b in a["books"]]),
    )


@cli.command()
@click.argument("kind", default="runbook")
@click.option("--json", "as_json", is_flag=True, help="Accepted for uniformity.")
def schema(kind: str, as_json: bool) -> None:
    """Print the JSON schema of the document, or of a verb's answer."""
    from importlib.resources import files

    folder = files("runbook") / "schemas"
    known = sorted(item.name.removesuffix(".schema.json") for item in folder.iterdir())
    if kind not in known:
        raise RunbookError(
            f"there is no schema `{kind}`",
            code="unknown_schema",
            exit_code=errors.USAGE,
            remedy="the schemas are: " + ", ".join(known),
        )
    print((folder / f"{kind}.schema.json").read_text(), end="")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    print(found(cli, {}, "runbook", "_RUNBOOK_COMPLETE").source())
