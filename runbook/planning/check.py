"""Whether steps hold: asks their checks, one after the other, and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runbook.planning.context import Progress
from runbook.planning.evaluate import Evaluator
from runbook.planning.look import Look
from runbook.planning.planner import INACTIVE, Selection, considered, decide, require_steps
from runbook.protocol import Reason
from runbook.redact import Redactor
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book

BROKEN = ("unmet", "unknown")


class Watcher(Protocol):
    """Is told what is being checked, and what was found."""

    def begin(self, step: str) -> None: ...

    def progress(self, step: str, message: Mapping[str, Any]) -> None: ...

    def checked(self, entry: Mapping[str, Any], deep: bool) -> None: ...


def check(
    book: Book,
    workspace: Workspace,
    names: Sequence[str],
    deep: bool,
    watcher: Watcher | None,
) -> tuple[dict[str, Any], list[str]]:
    """The state of the named steps (none: of all), and the arguments of the run that makes them
    hold. What they need is looked at as well, quickly, for its outputs."""
    order = require_steps(book["steps"], *names)
    wanted = frozenset(names or order)
    workspace.read_index(len(order))
    entries, held_up = _check(book, workspace, wanted, deep, watcher)
    body = {
        "book": book["name"],
        "workspace": str(workspace.root),
        "deep": deep,
        "steps": entries,
    }
    return body, _mending(entries, bool(names), deep, held_up)


def _check(
    book: Book,
    workspace: Workspace,
    wanted: frozenset[str],
    deep: bool,
    watcher: Watcher | None,
) -> tuple[list[dict[str, Any]], bool]:
    """What is found, and whether a step that does not hold depends on another that does not."""
    evaluator = Evaluator(book, workspace)
    redactor = Redactor(book["secrets"])
    # Of each step, those at or before it that are seen not to hold, and why.
    lacking: dict[str, dict[str, str]] = {}
    entries = []
    held_up = False
    for step in considered(book["steps"], Selection(wanted, frozenset())):
        name = step["id"]
        thorough = deep and name in wanted
        begun = time.monotonic()
        if watcher is not None and name in wanted:
            watcher.begin(name)
        look = evaluator.look(step, thorough, _progress(watcher, name) if thorough else None)
        without = {k: why for need in step["needs"] for k, why in lacking[need].items()}
        state, reasons = _judge(look, without)
        if state in ("satisfied", "inactive"):
            evaluator.record_outputs(name, look.check.outputs)
        lacking[name] = {name: reasons[0].message} if state == "unmet" else without
        if name not in wanted:
            continue
        held_up = held_up or bool(without and state in BROKEN)
        entry = {
            "id": name,
            "uses": step["uses"],
            "state": state,
            "reasons": [reason.dump() for reason in reasons],
            "work": look.check.work.dump(),
            "seconds": round(time.monotonic() - begun, 3),
        }
        entry = redactor.data(entry)
        entries.append(entry)
        if watcher is not None:
            watcher.checked(entry, deep)
    return entries, held_up


def _mending(
    entries: Sequence[Mapping[str, Any]], chosen: bool, deep: bool, held_up: bool
) -> list[str]:
    """The named steps alone where that is enough. What only a thorough check sees, a run does not:
    it must be told to run the step."""
    broken = [entry["id"] for entry in entries if entry["state"] in BROKEN]
    if chosen and not held_up:
        return [word for name in broken for word in ("--only", name)]
    unmet = [entry["id"] for entry in entries if entry["state"] == "unmet"]
    force = [word for name in unmet for word in ("--force", name)] if deep else []
    return [*force, "--until", broken[-1]] if chosen and broken else force


def _judge(look: Look, without: Mapping[str, str]) -> tuple[str, tuple[Reason, ...]]:
    """The state of a step and why. `without` are steps that it depends on and that do not hold."""
    if not look.active:
        return "inactive", INACTIVE.reasons
    found = look.check
    if without and look.inputs is None and found.reasons[0].code == "template_undefined":
        why = "; ".join(f"{name} does not hold ({reason})" for name, reason in without.items())
        return "unknown", (Reason("upstream", f"depends on an earlier step: {why}"),)
    view = look.view(forced=False, runnable=False, last_attempt="")
    if without:
        view = view._replace(changed=())  # their outputs are a part of what is compared
    decision = decide(view)
    remarks = (reason for reason in found.reasons if reason.severity != "error")
    return "satisfied" if found.ok else "unmet", (*decision.reasons, *remarks)


def _progress(watcher: Watcher | None, step: str) -> Progress:
    def tell(message: Mapping[str, Any]) -> None:
        if watcher is not None:
            watcher.progress(step, message)

    return tell
