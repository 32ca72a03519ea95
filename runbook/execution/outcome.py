"""How each step of a run ended, and what that makes of the run: exit code, errors."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from typing import Any

from runbook.errors import APPROVAL, CANCELLED, DONE, FAILED, PRECONDITION, error_dict
from runbook.planning.planner import Selection
from runbook.protocol import Reason
from runbook.remedy import Remedy, joined
from runbook.state.recorded import approvals

# The signal that `runbook cancel` sends, to be told apart from SIGTERM by init or a shell.
CANCEL_SIGNAL = signal.SIGUSR1
STOP_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, CANCEL_SIGNAL: CANCELLED}
SETTLED = frozenset({"satisfied", "inactive"})
ENDED = frozenset({"failed", "blocked", "waiting", "unmet", "cancelled"})


def stopped(by: int) -> str:
    """What stopped a run, in words; "" if no signal did."""
    if by == CANCEL_SIGNAL:
        return "cancelled by the verb `cancel`"
    return f"stopped by the signal {signal.Signals(by).name}" if by else ""


class Outcome:
    """`steps` has an entry for each step that was decided: `id`, `state`, `decision`, `reasons`,
    and `seconds`, `error`, `exit_code`, `question` where there is one. `order` are the ids of all
    steps."""

    def __init__(self, order: Sequence[str], selection: Selection) -> None:
        self.order = order
        self.selection = selection
        self.stopped_by = 0
        self.steps: dict[str, dict[str, Any]] = {}

    def end(
        self, name: str, state: str, decision: str, reasons: Collection[Reason], **more: Any
    ) -> None:
        self.steps[name] = {
            "id": name,
            "state": state,
            "decision": decision,
            "reasons": [r.dump() for r in reasons],
            **more,
        }

    def exit_code(self) -> int:
        if self.stopped_by:
            return STOP_CODES[signal.Signals(self.stopped_by)]
        if failed := self.of_state("failed"):
            only_preconditions = all(e["exit_code"] == PRECONDITION for e in failed)
            return PRECONDITION if only_preconditions else FAILED
        states = {entry["state"] for entry in self.steps.values()}
        if "unmet" in states:
            return PRECONDITION
        return APPROVAL if "waiting" in states else DONE

    def error(self) -> dict[str, Any] | None:
        """The first thing that kept the run from its end, as an `error` object."""
        if all(entry["state"] in SETTLED for entry in self.steps.values()) and not self.stopped_by:
            return None
        if failed := self.of_state("failed"):
            return {**failed[0]["error"], "step": failed[0]["id"]}
        if self.stopped_by:
            return error_dict(
                "cancelled",
                "the run was stopped before its end",
                cause=stopped(self.stopped_by),
                remedy=Remedy("run", text="{command} continues"),
                retryable=True,
            )
        if unmet := self.of_state("unmet"):
            reasons = unmet[0]["reasons"]
            return error_dict(
                "needs_unmet",
                f"step {unmet[0]['id']} is not done: {reasons[0]['message']}",
                cause="it is outside the selected steps, which need it",
                remedy=joined(reason["remedy"] for reason in reasons)
                or Remedy("run", ("--until", self.lacking())),
                step=unmet[0]["id"],
            )
        if waiting := self.of_state("waiting"):
            first = waiting[0]
            return error_dict(
                "approval",
                f"step {first['id']} waits for approval: {first['question']}",
                cause=first.get("cause", ""),
                remedy=Remedy("run", approvals(waiting)),
                retryable=True,
                step=first["id"],
            )
        return None

    def errors(self) -> list[dict[str, Any]]:
        """Of each step that failed, its error; else what `error` gives."""
        error = self.error()
        if error is None:
            return []
        failed = self.of_state("failed")
        return [{**entry["error"], "step": entry["id"]} for entry in failed] or [error]

    def lacking(self) -> str:
        """The last step that the selected ones need, that is not one of them, and that is not
        done; "" if there is none."""
        short = {e["id"] for state in ("unmet", "blocked") for e in self.of_state(state)}
        outside = short - self.selection.runnable
        return next((name for name in reversed(self.order) if name in outside), "")

    def of_state(self, state: str) -> list[dict[str, Any]]:
        """How the steps that ended in a state did, in the order of the document."""
        found = {name: entry for name, entry in self.steps.items() if entry["state"] == state}
        return [found[name] for name in self.order if name in found] if found else []
