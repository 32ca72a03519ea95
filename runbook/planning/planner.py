"""Decides what a run does with each step. Pure: no clock, no files, no processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from runbook.errors import USAGE, RunbookError
from runbook.protocol import Check, Reason

if TYPE_CHECKING:
    from runbook.document.compiled import Step

Verb: TypeAlias = Literal["run", "adopt", "skip", "later", "inactive", "unmet"]
"""run: apply it · adopt: record what is there · skip: nothing to do · later: decided after an
upstream step ran · inactive: its `when` is false · unmet: outside the selection, and not there"""


@dataclass(frozen=True, slots=True)
class Decision:
    verb: Verb
    reasons: tuple[Reason, ...] = ()

    @property
    def code(self) -> str:
        return self.reasons[0].code if self.reasons else ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which steps a run may apply, and which of them it must."""

    runnable: frozenset[str]
    forced: frozenset[str]


class View(NamedTuple):
    """What is known of one step when it is decided.

    `changed` names the parts of the fingerprint that differ from the checkpoint's;
    `last_attempt` is the state of the last attempt when it did not succeed. `begun`: an attempt
    began since the step was last verified, and was asked the `same` as now, or something `other`.
    """

    check: Check
    has_checkpoint: bool = False
    changed: tuple[str, ...] = ()
    outputs_differ: bool = False
    last_attempt: Literal["", "interrupted", "failed"] = ""
    begun: Literal["", "same", "other"] = ""
    forced: bool = False
    runnable: bool = True


def select(
    steps: Sequence[Step],
    *,
    start: str | None = None,
    until: str | None = None,
    only: Collection[str] = (),
    force: Collection[str] = (),
) -> Selection:
    """Apply `--from`, `--until`, `--only` and `--force`. Order is that of the document."""
    order = require_steps(
        steps, *([start] if start else []), *([until] if until else []), *only, *force
    )
    if only and (start or until):
        raise RunbookError(
            "--only cannot be combined with --from or --until",
            code="usage",
            exit_code=USAGE,
            remedy="use --from and --until for a range, --only for single steps",
        )
    first = order.index(start) if start else 0
    last = order.index(until) if until else len(order) - 1
    if last < first:
        raise RunbookError(
            f"--until {until} comes before --from {start}",
            code="usage",
            exit_code=USAGE,
            remedy="give the two in the order of the document: " + ", ".join(order),
        )
    chosen = set(only) if only else set(order[first : last + 1])
    always = {step["id"] for step in steps if step["always"]}
    forced = set(force) | set(only) | ({start} if start else set())
    return Selection(frozenset(chosen | always | set(force)), frozenset(forced))


def require_steps(steps: Sequence[Step], *names: str) -> list[str]:
    """The ids of all steps in the order of the document; refuses names that are not among them."""
    order = [step["id"] for step in steps]
    unknown = next((name for name in names if name not in order), None)
    if unknown is None:
        return order
    import difflib

    near = difflib.get_close_matches(unknown, order, 1)
    raise RunbookError(
        f"there is no step `{unknown}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        code="unknown_step",
        exit_code=USAGE,
        remedy="the steps are: " + ", ".join(order),
    )


def considered(steps: Sequence[Step], selection: Selection) -> list[Step]:
    """The steps that may run, and those that they need, in the order of the document."""
    wanted = set(selection.runnable)
    for step in reversed(steps):
        if step["id"] in wanted:
            wanted.update(step["needs"])
    return [step for step in steps if step["id"] in wanted]


EARLIER = "earlier steps have run"
LATER = f"until {EARLIER}"
"""How long the cost of a step cannot be told whose inputs are not known."""
UPSTREAM = Decision("later", (Reason("upstream", "decided after an earlier step ran", "", "info"),))
UP_TO_DATE = Decision("skip", (Reason("up_to_date", "up to date", "", "info"),))
OTHERWISE = "an attempt with other inputs began since it was last verified"
INACTIVE = Decision("inactive", (Reason("when", "its `when` is false", "", "info"),))


def foreseen(reasons: Collection[Reason]) -> Decision:
    """Of a step that waits for earlier ones, given what it says beforehand."""
    refused = any(reason.severity == "error" for reason in reasons)
    return Decision("unmet" if refused else "later", (*reasons, *UPSTREAM.reasons))


def decide(view: View) -> Decision:
    """The decision table of the design, one row an `if`, the first that fits."""
    check = view.check
    # Mostly there are none; a generator would take longer than the rest of this.
    errors = tuple([r for r in check.reasons if r.severity == "error"]) if check.reasons else ()
    if not view.runnable:
        if view.begun == "other":
            return Decision("unmet", errors or (Reason("interrupted", OTHERWISE),))
        if check.ok and not view.changed:
            return UP_TO_DATE
        if check.ok:
            return Decision("skip", (_info("stale", "holds, but its definition has changed"),))
        return Decision("unmet", errors or (Reason("not_done", "not done yet"),))
    if view.forced:
        return Decision("run", (_info("forced", "asked for"),))
    if view.begun == "other" and check.ok:
        return Decision("run", (_info("interrupted", OTHERWISE),))
    if view.begun or not view.has_checkpoint:
        if check.ok:
            return Decision("adopt", (_info("adopted", "found done"),))
        if view.last_attempt == "failed":
            return Decision("run", (_info("failed_before", "failed before"), *errors))
        if view.begun or view.last_attempt == "interrupted":
            return Decision("run", (_info("interrupted", "continues where it stopped"), *errors))
        return Decision("run", (_info("never_ran", "never ran"), *errors))
    if view.changed:
        parts = ", ".join(view.changed)
        return Decision("run", (_info("changed", f"changed: {parts}"), *errors))
    if check.ok:
        if view.outputs_differ:
            return Decision("adopt", (_info("adopted", "found done, with other outputs"),))
        return UP_TO_DATE
    if view.last_attempt == "interrupted":
        return Decision("run", (_info("interrupted", "continues where it stopped"), *errors))
    if view.last_attempt == "failed":
        return Decision("run", (_info("failed_before", "failed before"), *errors))
    return Decision("run", (_info("drifted", "no longer as it was made"), *errors))


def _info(code: str, message: str) -> Reason:
    return Reason(code, message, "", "info")
