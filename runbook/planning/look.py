"""What is known of one step when it is looked at."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from runbook import logins
from runbook.planning.context import StepContext
from runbook.planning.planner import View
from runbook.protocol import Check, Json

if TYPE_CHECKING:
    from runbook.document.compiled import Step as CompiledStep


def digest(value: Json) -> str:
    """SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


NOT_ASKED = Check(False)


class Look:
    """One look at a step. `inputs` is None when they could not be rendered. `begun` is what the
    attempt was asked that began since the step was verified, if there is one; `lasting` is whether
    it makes anything, `broken` whether its check could not be asked to its end."""

    __slots__ = (
        "active",
        "begun",
        "broken",
        "check",
        "checkpoint",
        "context",
        "fingerprint",
        "inputs",
        "lasting",
        "raw",
        "step",
    )

    def __init__(self, step: CompiledStep) -> None:
        self.step = step
        self.active = True
        self.raw: Json = None
        self.inputs: dict[str, Json] | None = None
        self.lasting = True
        self.broken = False
        self.fingerprint: dict[str, Json] = {}
        self.checkpoint: dict[str, Any] | None = None
        self.begun: dict[str, str] | None = None
        self.check = NOT_ASKED
        self.context: StepContext | None = None

    def changed(self) -> tuple[str, ...]:
        """The parts of the fingerprint that differ from the checkpoint's."""
        if self.checkpoint is None:
            return ()
        old = self.checkpoint.get("fingerprint")
        if old == self.fingerprint:
            return ()
        if not isinstance(old, dict):
            return ("with",)
        now = logins.hidden(self.fingerprint)  # as it was recorded
        parts = [p for p, new in now.items() if p != "made" and old.get(p) != new]
        remade = [] if "needs" in parts else self.remade()
        return (*parts, *(f"{need} (made anew)" for need in remade))

    def remade(self) -> list[str]:
        """The needs that were made anew since the checkpoint. One of which it is not known when
        it was made, because it was found done, was not."""
        old = self.checkpoint.get("fingerprint") if self.checkpoint is not None else None
        made = self.fingerprint.get("made")
        if not isinstance(old, dict) or not isinstance(made, dict):
            return []
        before = old.get("made")
        before = before if isinstance(before, dict) else {}
        return [need for need, when in made.items() if when and before.get(need) != when]

    @property
    def made(self) -> str:
        """Which attempt made what is there, as far as it is known."""
        if self.begun is not None:
            return self.begun["attempt"]
        return str(self.checkpoint.get("made", "")) if self.checkpoint is not None else ""

    def _begun(self) -> Literal["", "same", "other"]:
        if self.begun is None:
            return ""
        return "same" if self.begun["fingerprint"] == digest(self.fingerprint) else "other"

    def recorded_digest(self) -> str:
        """The digest of the outputs that the check found, if it is recorded; else ""."""
        record = self.checkpoint
        if record is None or record["outputs"] != self.check.outputs:
            return ""
        return str(record["outputs_digest"])

    def view(self, *, forced: bool, runnable: bool, last_attempt: Any) -> View:
        record = self.checkpoint
        return View(
            check=self.check,
            has_checkpoint=record is not None,
            changed=self.changed(),
            outputs_differ=record is not None
            and self.check.ok
            and record["outputs"] != self.check.outputs
            and record["outputs"] != logins.hidden(self.check.outputs),
            last_attempt=last_attempt,
            begun=self._begun(),
            forced=forced,
            runnable=runnable,
        )
