"""Steps and attempts without processes: what the engine makes of them, in milliseconds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from runbook.errors import error_dict
from runbook.execution.executor import Executor
from runbook.planning.planner import select
from runbook.protocol import Check, Reason
from runbook.state import journal
from runbook.state.workspace import Workspace


class FakeStep:
    """Holds what `world` says of the step's id: its outputs, or a reason why there are none."""

    version = "1"

    class Inputs(BaseModel):
        word: Any = ""

    class Outputs(BaseModel):
        word: Any = ""

    def __init__(self, world: World) -> None:
        self.world = world

    def check(self, ctx: Any) -> Check:
        found = self.world.there.get(ctx.step)
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, Check):
            return found
        if found is None:
            return Check.unsatisfied(Reason("missing", f"{ctx.step} is missing", "make it"))
        return Check.satisfied({"word": found})


class FakeAttempt:
    """Ends at once, as the world says: with a failure, or by making its step so."""

    def __init__(self, world: World, look: Any, number: int, run: Any, forced: bool) -> None:
        self.look, self.number, self.step = look, number, look.step["id"]
        self.log = run / f"{self.step}.{number}.log"
        self.identity = None
        self.result: dict[str, Any] | None = None
        self.unheard: list[Any] = []
        self.seconds = 1.0
        self.silent = 0.0
        self.stopped = False
        self.events, self._tell = os.pipe()
        scripts = world.scripts.get(self.step, [])
        self.script = scripts.pop(0) if scripts else {}
        world.attempts.append((self.step, number, forced))
        self.world = world
        if "hangs" in self.script:
            self.seconds = self.script.get("seconds", 1.0)
            self.silent = self.script.get("silent", 0.0)
            os.write(self._tell, b"x" * len(self.script.get("says", ())))
        else:
            os.close(self._tell)

    def messages(self) -> tuple[list[Any], bool]:
        says = list(self.script.get("says", ()))
        if "hangs" in self.script:
            os.read(self.events, 65536)
            return says, False
        if "error" in self.script:
            self.result = {"type": "failure", **self.script["error"]}
        elif "dies" not in self.script:
            word = self.look.inputs["word"]
            if self.script.get("makes", True):
                self.world.there[self.step] = word
            self.result = {"type": "result", "outputs": {"word": word}, "reasons": []}
        return says, True

    def silent_for(self) -> float:
        return self.silent

    def processes(self) -> list[int]:
        return []

    def stop(self, grace: float = 0.0, hurry: Any = None) -> list[int]:
        self.stopped = True
        return list(self.script.get("left", ()))

    def finish(self) -> list[int]:
        os.close(self.events)
        return []

    def failure(self) -> dict[str, Any]:
        given = self.result or {"code": "worker_died", "message": "died", "retryable": True}
        fields = ("code", "message", "cause", "remedy", "retryable")
        return error_dict(**{key: given[key] for key in fields if key in given})


@dataclass
class World:
    """A workspace, what is there, and how attempts go: of each step a script an attempt."""

    workspace: Workspace
    there: dict[str, Any] = field(default_factory=dict)
    scripts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    attempts: list[tuple[str, int, bool]] = field(default_factory=list)

    def book(self, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
        full, before = [], []
        for step in steps:
            full.append(step_of(**{"needs": before, **step}))
            before = [step["id"]]
        return {
            "name": "test", "source": "/book.yaml", "inputs": {}, "secrets": [], "facts": [],
            "description": "", "digest": "", "version": "", "steps": full, **more,
        }  # fmt: skip

    def run(self, book: dict[str, Any], lock: int = -1, **more: Any) -> Any:
        """The executor after its run; `code` is the exit code."""
        self.workspace.create()
        chosen = {key: more.pop(key) for key in ("start", "until", "only", "force") if key in more}
        executor = Executor(
            book,
            self.workspace,
            select(book["steps"], **chosen),
            lock,
            attempt=lambda look, number, run, workspace, lock, forced: FakeAttempt(
                self, look, number, run, forced
            ),
            **more,
        )
        self.attempts.clear()
        code = executor.execute()
        entries = executor.outcome.steps
        return SimpleNamespace(
            code=code,
            executor=executor,
            run=executor.record.run,
            steps=entries,
            states={name: entry["state"] for name, entry in entries.items()},
            decisions={name: entry["decision"] for name, entry in entries.items()},
            events=list(journal.read(executor.record.run)) if executor.record.run else [],
            error=executor.outcome.error(),
            errors=executor.outcome.errors(),
            attempts=list(self.attempts),
        )


def step_of(id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id, "uses": "fake", "folder": "/", "line": 1, "with": {}, "static": True,
        "when": None, "approve": None, "always": False, "timeout": None, "stall": None,
        "retry": {"attempts": 1, "backoff": 0.0}, **more,
    }  # fmt: skip
