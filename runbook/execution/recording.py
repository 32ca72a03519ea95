"""What a run leaves behind: its folder, its journal, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runbook
from runbook.errors import DONE
from runbook.execution.outcome import Outcome
from runbook.planning.look import Look, digest
from runbook.planning.planner import Selection
from runbook.redact import Redactor
from runbook.state import journal
from runbook.state.history import LastRun, RunRecord
from runbook.state.journal import Journal, now
from runbook.state.workspace import Workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book


class Recorder:
    """Keeps events until there is first something to record; then `run` is the run's folder."""

    def __init__(
        self,
        book: Book,
        workspace: Workspace,
        lock: int,
        listener: Callable[[dict[str, Any]], None],
    ) -> None:
        self.book = book
        self.workspace = workspace
        given = [book["inputs"], *(step["with"] for step in book["steps"])]
        self.redactor = Redactor(book["secrets"], given)
        # What is compared later is recorded without a look for passwords outside of URLs.
        self._lasting = Redactor(book["secrets"])
        self.run: Path | None = None
        self._journal = Journal(self.redactor, listener)
        self.event = self._journal.append
        self._lock = lock
        self.before = LastRun(workspace)
        self._rendered: dict[str, Any] = {}
        self._carried: dict[str, Any] = {}
        workspace.read_index(len(book["steps"]))

    def begin(self, runnable: list[str], selection: Selection) -> None:
        self.event(
            "run.started",
            book=self.book["name"],
            source=self.book["source"],
            inputs=self.book["inputs"],
            workspace=str(self.workspace.root),
            package=runbook.__version__,
            runnable=runnable,
            forced=sorted(selection.forced),
        )

    def open(self) -> Path:
        """The folder of this run, made when this is first called."""
        if self.run is None:
            # Carried on, so that only the latest journal need ever be read.
            previous = self.workspace.latest()
            if previous is not None:
                self._carried = RunRecord(previous).unfinished()
            self.run = self.workspace.new_run()
            self._journal.open(self.run)
            self._write_rendered()
            self.workspace.point_latest(self.run)
            self.workspace.claim(self._lock, self.run.name)
            if self._carried:
                self.event("run.carried", steps=self._carried)
        return self.run

    def rendered(self, name: str, raw: Any) -> None:
        """Note the inputs of a step with their templates rendered."""
        self._rendered[name] = raw

    def begun(self, look: Look, attempt: int) -> None:
        """Record what an attempt is asked, before it begins."""
        made = self.made_by(look, attempt)
        origin = {**_kind(look), "inputs": self._lasting.data(look.inputs)}
        self.workspace.begun.write(look.step["id"], made, digest(look.fingerprint), origin)

    def made_by(self, look: Look, attempt: int) -> str:
        """What an attempt of this run makes is known by; "" for steps that only look."""
        return f"{self.open().name}/{look.step['id']}.{attempt}" if look.lasting else ""

    def checkpoint(
        self,
        look: Look,
        outputs: Mapping[str, Any],
        known: str,
        made: str,
        attempt: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Record that a step was verified. `known` is the digest of its outputs, `made` the
        attempt that made it."""
        self.workspace.write_checkpoint(
            look.step["id"],
            {
                "time": now(),
                "run": self.run.name if self.run is not None else "",
                "attempt": attempt,
                "seconds": seconds,
                "package": runbook.__version__,
                "fingerprint": look.fingerprint,
                **_kind(look),
                "inputs": look.inputs,
                "outputs": dict(outputs),
                "outputs_digest": known,
                "made": made,
            },
            self._lasting,
        )

    def supersede(self) -> None:
        """A run that found nothing to do is to be seen where the one before it tells of a failure
        or of no end: who asks then is not told of that for ever."""
        latest = self.workspace.latest()
        end = journal.end(latest) if latest is not None else None
        if end is None or end["exit_code"] != DONE or end.get("unsettled"):
            self.open()

    def finish(self, exit_code: int, outcome: Outcome) -> None:
        if self.run is not None:
            self._write_rendered()
            settled = {name for name, s in outcome.steps.items() if s["state"] == "satisfied"}
            self.event(
                "run.finished",
                exit_code=exit_code,
                ok=exit_code == DONE,
                error=outcome.error(),
                errors=outcome.errors(),
                unsettled=[name for name in self._carried if name not in settled],
            )
        self._journal.close()
        self.workspace.write_index([step["id"] for step in self.book["steps"]])

    def _write_rendered(self) -> None:
        """The document of this run with its inputs resolved, for people to read."""
        import yaml  # only where there is something to record

        from runbook.files import write_atomic

        assert self.run is not None
        document = {
            "runbook": 1,
            "name": self.book["name"],
            "inputs": self.book["inputs"],
            "secrets": list(self.book["secrets"]),
            "steps": [
                {"id": step["id"], "uses": step["uses"], "needs": step["needs"]}
                | ({"with": rendered} if (rendered := self._rendered.get(step["id"])) else {})
                for step in self.book["steps"]
            ],
        }
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        write_atomic(self.run / "runbook.yaml", self.redactor.text(text).encode())


def _kind(look: Look) -> dict[str, str]:
    """What undoes a step."""
    return {"uses": look.step["uses"], "folder": look.step["folder"]}
