"""Decides a step when what it needs has ended, and records the decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from runbook.errors import FAILED, PRECONDITION, error_dict
from runbook.execution.outcome import Outcome
from runbook.execution.recording import Recorder
from runbook.planning.asking import BROKEN
from runbook.planning.evaluate import Evaluator
from runbook.planning.look import Look
from runbook.planning.planner import Decision, decide
from runbook.protocol import Check, Reason, StepFailure, Work
from runbook.remedy import joined
from runbook.state import recorded

if TYPE_CHECKING:
    from runbook.document.compiled import Step


class Decider:
    def __init__(
        self,
        evaluator: Evaluator,
        record: Recorder,
        outcome: Outcome,
        approved: Mapping[str, str],
        approve_all: bool,
    ) -> None:
        self.evaluator = evaluator
        self.record = record
        self.outcome = outcome
        self.approved = dict(approved)
        self.asking: dict[str, str] = {}
        """The digests of the questions that wait for an approval, by step."""
        self.approve_all = approve_all
        self.ahead: Collection[Step] = ()
        """The steps of this run: before one runs, those that come later are asked whether they
        refuse, as far as their inputs are known then."""
        self._refused: list[str] = []

    def decide(self, step: Step, *, again: bool) -> Look | None:
        """The look at a step that is to run now; None if its part in this run has ended with the
        decision. `again`: it was decided before, and failed since."""
        name = step["id"]
        event, end = self.record.event, self.outcome.end
        look = self.evaluator.look(step)
        self.record.rendered(name, look.raw)
        if again and look.inputs is not None and not look.broken:
            return look
        if not look.active:
            event("step.decided", step=name, decision="inactive", reasons=[])
            end(name, "inactive", "inactive", ())
            self.evaluator.record_outputs(name, {})
            return None
        decision = self._decision(look)
        if decision.verb == "skip":
            self._skip(look, decision)
            return None
        self.record.open()
        reasons = [r.dump() for r in decision.reasons]
        if decision.verb == "adopt":
            event("step.satisfied", step=name, decision="adopt", reasons=reasons)
            known = self.evaluator.record_outputs(name, look.check.outputs)
            self.record.checkpoint(look, look.check.outputs, known, look.made)
            end(name, "satisfied", "adopt", (*decision.reasons, *look.check.reasons))
            return None
        if self._refused or (decision.verb == "run" and self._foresee(name)):
            self.block(step, self._refused)
            return None
        work = look.check.work.dump()
        event("step.decided", step=name, work=work, decision=decision.verb, reasons=reasons)
        if decision.verb == "unmet":
            end(name, "unmet", "unmet", decision.reasons)
            return None
        if look.inputs is None or look.broken:
            self._refuse(look)
            return None
        if step["approve"] is not None and not self.approve_all:
            try:
                question = self._question(step, look.check.work)
                refusal = self._not_approved(step, question, look.check.work)
            except StepFailure as failure:
                reason = Reason(failure.code, f"{failure.message}: {failure.cause}", failure.remedy)
                look.check = Check.unsatisfied(reason)
                self._refuse(look)
                return None
            if refusal:
                recorded.ask(self.evaluator.workspace.state, name, question, look.check.work)
                self.asking[name] = recorded.question_digest(question)
                event("step.waiting", step=name, state="waiting", question=question)
                more = {"cause": refusal} if name in self.approved else {}
                end(name, "waiting", "run", decision.reasons, question=question, **more)
                return None
        end(name, "running", "run", decision.reasons)
        return look

    def approve(self) -> bool:
        """Take approvals that came since the steps asked; whether there is any. Those steps, and
        what was blocked, are to be decided anew."""
        if not self.asking or self.record.run is None:
            return False
        state, run = self.evaluator.workspace.state, self.record.run.name
        given = recorded.approved_of(state, run)
        new = [name for name, digest in self.asking.items() if given.get(name) == digest]
        for name in new:
            self.approved[name] = self.asking.pop(name)
            del self.outcome.steps[name]
            self.record.event("step.approved", step=name)
        for entry in self.outcome.of_state("blocked") if new else ():
            del self.outcome.steps[entry["id"]]
        return bool(new)

    def _question(self, step: Step, work: Work) -> str:
        return self.record.redactor.text(self.evaluator.approval(step, work))

    def _not_approved(self, step: Step, question: str, work: Work) -> str:
        """Why a question is not approved; "" if it is. Who names no digest approves what was asked
        last, or whatever is asked first. What was approved holds for less of the same work: a
        download that goes on is not asked for again."""
        name = step["id"]
        if name not in self.approved:
            return "nobody approved it"
        asked = recorded.asked(self.evaluator.workspace.state).get(name)
        given, now = self.approved[name], recorded.question_digest(question)
        if (given or (asked.digest if asked else now)) == now:
            return ""
        if asked is None or given not in ("", asked.digest):
            return f"{given} is not the digest of the question, which is {now}"
        if asked.work.covers(work):
            before = self._question(step, asked.work)
            if recorded.question_digest(before) == asked.digest:
                return ""
        return "the step asks something else now than what was approved"

    def _foresee(self, first: str) -> bool:
        """Whether a step after the one that is to run refuses its inputs already: then nothing
        runs any more, as all that would be for nothing."""
        self.ahead = [step for step in self.ahead if self.evaluator.foresees(step)]
        for step in self.ahead:
            name = step["id"]
            if name == first or name in self.outcome.steps:
                continue
            reasons = self.evaluator.foresee(step)
            refusals = [reason for reason in reasons if reason.severity == "error"]
            if refusals:
                self._refused.append(name)
                code = FAILED if refusals[0].code in BROKEN else PRECONDITION
                self._fail(step, reasons, code)
        return bool(self._refused)

    def block(self, step: Step, blockers: list[str]) -> None:
        """A step that needs others which did not come to their end cannot run."""
        name = step["id"]
        self.record.open()
        waits = all(self.outcome.steps[need]["state"] == "waiting" for need in blockers)
        self.record.event("step.blocked", step=name, needs=blockers)
        message = f"needs {', '.join(blockers)}"
        reason = Reason("needs", message, "", "warning" if waits else "error")
        self.outcome.end(name, "blocked", "later", (reason,))

    def _decision(self, look: Look) -> Decision:
        name = look.step["id"]
        selection = self.outcome.selection
        before = "" if look.check.ok else self.record.before.attempt(name)
        forced, runnable = name in selection.forced, name in selection.runnable
        return decide(look.view(forced=forced, runnable=runnable, last_attempt=before))

    def _skip(self, look: Look, decision: Decision) -> None:
        name, more = look.step["id"], look.check.reasons
        self.evaluator.record_outputs(name, look.check.outputs, look.recorded_digest())
        self.outcome.end(name, "satisfied", "skip", (*decision.reasons, *more))
        reasons = self.outcome.steps[name]["reasons"]
        self.record.event("step.satisfied", not more, step=name, decision="skip", reasons=reasons)

    def _refuse(self, look: Look) -> None:
        """A step whose inputs cannot be rendered or validated, or whose check is broken, fails
        without an attempt."""
        self._fail(look.step, look.check.reasons, FAILED)

    def _fail(self, step: Step, reasons: Sequence[Reason], code: int) -> None:
        name = step["id"]
        errors = [reason for reason in reasons if reason.severity == "error"] or reasons
        error = error_dict(
            errors[0].code,
            errors[0].message,
            cause="\n".join(reason.message for reason in errors[1:]),
            remedy=joined(reason.remedy for reason in errors),
            where=f"{self.record.book['source']}:{step['line']}",
        )
        self.record.event("attempt.failed", step=name, attempt=0, seconds=0.0, error=error)
        self.outcome.end(name, "failed", "run", reasons, error=error, exit_code=code)
