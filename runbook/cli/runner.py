"""Puts an executor and a reporter together for `runbook run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runbook.cli.envelope import print_json
from runbook.cli.form import Form
from runbook.cli.remedies import Renderer
from runbook.execution.executor import Executor
from runbook.planning.planner import Selection
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book


def deaf(function: Callable[..., None]) -> Callable[..., None]:
    """The reader of our output may leave (`runbook run | head`): the work goes on."""

    def call(*arguments: Any) -> None:
        try:
            function(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)

    return call


def execute(
    book: Book,
    workspace: Workspace,
    selection: Selection,
    lock: int,
    *,
    renderer: Renderer,
    jobs: int,
    approved: Mapping[str, str],
    approve_all: bool,
    form: Form,
    at_once: bool = False,
) -> tuple[dict[str, Any], int]:
    """Run; returns the `body` and `error` of the final document, the last step that is `lacking`
    outside the selection, and the exit code."""
    reporter: Any = None
    if form != "human":

        def listener(event: Mapping[str, Any]) -> None:
            if form == "json":
                print_json(renderer.complete(event))

        def on_progress(step: str, message: Mapping[str, Any]) -> None:
            pass
    else:
        from runbook.cli.showing import reporter as make

        reporter = make(max(len(step["id"]) for step in book["steps"]))
        listener, on_progress = reporter.event, reporter.progress
    executor = Executor(
        book,
        workspace,
        selection,
        lock,
        jobs=jobs,
        approved=approved,
        approve_all=approve_all,
        at_once=at_once,
        listener=deaf(listener),
        on_progress=deaf(on_progress),
    )
    error: dict[str, Any] | None
    try:
        code = executor.execute()
        error = executor.outcome.error()
    except Exception as problem:
        from runbook.cli.defects import as_failure

        failure = as_failure(problem, workspace.root, workspace.state)
        code, error = failure.exit_code, failure.error_dict()
    finally:
        if reporter is not None:
            reporter.close()
        os.close(lock)
    outputs, steps = executor.evaluator.outputs, executor.outcome.steps
    endpoints = [o["endpoint"] for o in outputs.values() if o.get("endpoint")]
    body = {
        "book": book["name"],
        "workspace": str(workspace.root),
        "run": executor.record.run.name if executor.record.run is not None else None,
        "steps": [steps[s["id"]] for s in book["steps"] if s["id"] in steps],
        "outputs": outputs,
        "endpoint": endpoints[-1] if endpoints else None,
        "errors": executor.outcome.errors(),
    }
    answer = {"body": body, "error": error, "lacking": executor.outcome.lacking()}
    return executor.record.redactor.data(answer), code
