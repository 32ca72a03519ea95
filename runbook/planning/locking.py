"""What a book's lock has, and what it is to have: asks the steps what the names that move are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from runbook.document import template
from runbook.planning import apart, asking
from runbook.planning.evaluate import Evaluator
from runbook.planning.lockfile import require_values
from runbook.planning.planner import require_steps
from runbook.protocol import Hooks, StepFailure
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book, Step
    from runbook.planning.shapes import Locked

LATER = "it depends on what earlier steps make"


def resolve(
    book: Book, workspace: Workspace, names: Sequence[str], anew: bool
) -> tuple[list[Locked], dict[str, str], StepFailure | None]:
    """What the named steps (none: all) have in the lock: the names, which of them are new or
    different, and the first failure."""
    wanted = frozenset(names or require_steps(book["steps"]))
    require_steps(book["steps"], *names)
    evaluator = Evaluator(book, workspace)
    entries: list[Locked] = []
    found: dict[str, str] = {}
    first: StepFailure | None = None
    for step in book["steps"]:
        if step["id"] not in wanted:
            continue
        try:
            resolved = _ask(evaluator, workspace, step, anew)
        except StepFailure as failure:
            failure.message = f"step {step['id']}: {failure.message}"
            first = first or failure
            entries.append(_entry(step, "", error=failure.message))
            continue
        if resolved is None:
            entries.append(_entry(step, "", error=LATER))
            continue
        for name, value in resolved.items():
            before = evaluator.lock.get(name)
            entries.append(_entry(step, name, value, before))
            if value != before:
                found[name] = value
    return entries, found, first


def _entry(
    step: Step, name: str, value: str | None = None, before: str | None = None, error: str = ""
) -> Locked:
    return {
        "step": step["id"],
        "name": name,
        "value": value,
        "before": before,
        "unresolved": error or None,
    }


def _ask(
    evaluator: Evaluator, workspace: Workspace, step: Step, anew: bool
) -> Mapping[str, str] | None:
    """What a step says that its names are; None if its inputs are not known yet."""
    kind = cast(Hooks, evaluator.kind(step)[0])
    if not hasattr(kind, "resolve"):
        return {}
    try:
        if not template.evaluate(step["when"], evaluator.scope):
            return {}
        given, unknown = template.known(step["with"], evaluator.scope)
    except StepFailure:
        return None
    if unknown:
        return None
    from pydantic import ValidationError

    try:
        inputs = kind.Inputs.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        raise StepFailure(
            "its inputs are not valid", code="invalid_inputs", cause=str(error)
        ) from error
    context = evaluator.context(step, SimpleNamespace(**inputs))
    limit = min(asking.SECONDS, step["timeout"] or math.inf)
    resolved = apart.resolve(kind, context, anew, limit, workspace.state)
    require_values(resolved)
    return resolved
