"""What a step is given: the engine's implementation of `runbook.protocol.Context`."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, TextIO

from runbook.document.compile import BOOKS
from runbook.files import home
from runbook.planning.lockfile import IN_WORKSPACE, Lockfile, places
from runbook.protocol import Item, StepFailure
from runbook.remedy import Remedy

Progress = Callable[[Mapping[str, Any]], None]
"""Takes `done`, `total`, `unit`, `message` and `items`, as plain data."""
TAIL_LINES = 15
KEPT_LINES = 2000
"""Of a program's output, in which its first error is looked for should it fail."""
LONGEST_LINE = 65536
LONGEST_CAUSE = 2000
"""Characters of a line that are shown as the cause of a failure."""


def default_cache() -> Path:
    """`RUNBOOK_CACHE`, else `$XDG_CACHE_HOME/runbook`, else `~/.cache/runbook`."""
    if own := os.environ.get("RUNBOOK_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(home() / ".cache")
    return Path(base).absolute() / "runbook"


def lock_places(source: str, workspace: Path) -> tuple[Path, ...]:
    """Where the lock of the book that was compiled from `source` lies."""
    return places(source, Path(source).parent == BOOKS, workspace)


def any_text(descriptor: int) -> TextIO:
    """A stream that takes what the locale has no bytes for, and names of files that are no text."""
    return open(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


@dataclass
class StepContext:
    """Serves `check` inside the CLI (`out` is None: nothing is printed) and attempts alike."""

    step: str
    inputs: SimpleNamespace
    workspace: Path
    cache: Path = field(default_factory=default_cache)
    deep: bool = False
    forced: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    locks: tuple[Path, ...] = ()
    """Where the book's lock lies; by default in the workspace."""
    out: TextIO | None = None
    on_progress: Progress | None = None
    on_notice: Callable[[str], None] | None = None
    uses: str = ""
    """The kind of step, whose known failures are looked for in what a failed program printed."""

    @property
    def lock(self) -> Lockfile:
        return Lockfile(*(self.locks or (self.workspace / IN_WORKSPACE,)))

    def secret(self, name: str) -> str | None:
        if name not in self.secrets:
            raise StepFailure(
                f"the step reads the secret {name}, which the document does not declare",
                code="undeclared_secret",
                remedy=f"add {name} to `secrets:` in the document",
            )
        return os.environ.get(name) or None

    def log(self, message: str) -> None:
        if self.out is not None:
            print(message, file=self.out, flush=True)

    def notice(self, message: str) -> None:
        self.log(message)
        if self.on_notice is not None:
            self.on_notice(message)

    def progress(
        self,
        done: float,
        total: float | None = None,
        unit: str = "",
        message: str = "",
        items: Sequence[Item] = (),
    ) -> None:
        if self.on_progress is not None:
            self.on_progress(
                {
                    "done": done,
                    "total": total,
                    "unit": unit,
                    "message": message,
                    "items": [item.dump() for item in items],
                }
            )

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        failure: StepFailure | None = None,
    ) -> None:
        import subprocess  # only attempts come here, and checks must be quick

        command = [str(a) for a in argv]
        self.log("$ " + " ".join(command))
        kept: deque[str] = deque(maxlen=KEPT_LINES)
        try:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise StepFailure(
                f"cannot start {command[0]}",
                code="command_not_started",
                cause=str(error),
                remedy=f"install {command[0]} or correct its path",
            ) from error
        assert process.stdout is not None
        try:
            for line in self._lines(process.stdout):
                kept.append(line[:LONGEST_CAUSE])
                if on_line is not None:
                    on_line(line)
            status = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        finally:
            process.stdout.close()
        if status == 0:
            return
        ended = f"exit status {status}" if status >= 0 else f"signal {-status}"
        raise self._failed(f"{Path(command[0]).name} failed with {ended}", kept, failure)

    def _failed(
        self, message: str, printed: Sequence[str], failure: StepFailure | None
    ) -> StepFailure:
        """The failure of a program, by its first error instead of its last words: a known one if
        it is that, else `failure`, if there is one, with the error as its cause."""
        from runbook.state import logs

        known, cause = logs.told(self.uses, "\n".join(printed), self.facts)
        if known is not None:
            return known.failure(failure.message if failure is not None else message)
        if failure is None:
            failure = StepFailure(
                message, code="command_failed", remedy=Remedy("logs", ("{step}", "--errors"))
            )
        failure.cause = failure.cause or cause or "\n".join([*printed][-TAIL_LINES:])
        return failure

    def _lines(self, output: IO[str]) -> Iterator[str]:
        """Log what a program prints; give its lines, of a longer one its first `LONGEST_LINE`
        characters, so that output without any end of line needs no more memory than other."""
        going_on = False
        while piece := output.readline(LONGEST_LINE):
            if self.out is not None:
                print(piece, end="", file=self.out, flush=True)
            if not going_on:
                yield piece.removesuffix("\n")
            going_on = not piece.endswith("\n")
        if going_on:
            self.log("")


def namespace(values: Mapping[str, Any]) -> SimpleNamespace:
    """Inputs as a step sees them: attributes on top, plain data below."""
    return SimpleNamespace(**values)


def console(step: str, workspace: Path, values: Mapping[str, Any], **more: Any) -> StepContext:
    """A context for use by hand and in tests: logs to this process's standard error."""
    more.setdefault("out", sys.stderr)
    return StepContext(step, namespace(values), workspace, **more)
