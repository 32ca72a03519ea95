"""A start of vLLM, whichever step started it: `startup` with phases, and with an eye on hangs."""

from __future__ import annotations

from runbook.protocol import Context, StepFailure
from runbook.steps.common import jit, startup
from runbook.steps.common.service import Service
from runbook.steps.common.starting.hang import Watchdog
from runbook.steps.common.starting.log import Progress, Reader
from runbook.steps.common.starting.phases import Phases


class Startup(startup.Startup):
    """Follows one start of `vllm serve`. Close it in the end."""

    def __init__(self, ctx: Context, running: Service, seconds: float) -> None:
        super().__init__(ctx, running, seconds, "serve")
        self.reader = Reader()
        self.clock = Phases()
        self.watchdog = Watchdog(running, jit.folders(running.spec))
        self.enter("processes")

    def close(self) -> None:
        self.watchdog.close()

    def look(self) -> None:
        super().look()
        if not self.watchdog.due():
            return
        compiles = self.watchdog.look(self.reader, self.steps())
        if compiles is not None:
            at = self.reader.at
            words = f"{at.words}: compiling ({compiles.evidence})"
            self.ctx.progress(at.done, at.total, at.unit, words)

    def take(self, line: str) -> None:
        if (at := self.reader.feed(line)) is not None:
            self.clock.enter(at.phase)
            self.ctx.progress(at.done, at.total, at.unit, at.words)

    def doing(self) -> str:
        return self.reader.at.words

    def overdue(self) -> StepFailure:
        failure = super().overdue()
        failure.cause += f"\n{self.watchdog.evidence()}"
        return failure

    def enter(self, phase: str) -> None:
        """A phase that begins with what this process does, not with a line of the log."""
        self.reader.at = Progress(phase)
        self.clock.enter(phase)
        self.ctx.progress(0, message=self.reader.at.words)

    def steps(self) -> int:
        """The steps that the engine has made, where that is known: while it answers, the log says
        nothing of them."""
        return 0
