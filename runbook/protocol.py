"""The contract between the engine and a step.

A step makes one part of the world so, and can tell whether it already is. This module needs only
the standard library: a run in which all steps are satisfied must not pay for more.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from runbook.errors import FAILED, PRECONDITION, Failure
from runbook.remedy import dump

if TYPE_CHECKING:
    from pydantic import BaseModel

    from runbook.remedy import Remedies

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a check holds or does not, as data.

    `code` is a stable snake_case name; `remedy` is what the reader should do, a command where
    one exists. Only reasons of severity `error` make a check fail.
    """

    code: str
    message: str
    remedy: Remedies = ""
    severity: Severity = "error"

    def dump(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "remedy": dump(self.remedy),
            "severity": self.severity,
        }


@dataclass(frozen=True, slots=True)
class Work:
    """What `apply` would still cost: bytes to transfer, seconds, bytes of disk it would take."""

    bytes: int = 0
    seconds: float = 0.0
    disk: int = 0

    def dump(self) -> dict[str, float]:
        return {"bytes": self.bytes, "seconds": self.seconds, "disk": self.disk}

    def covers(self, less: Work) -> bool:
        """Whether the other is no more than this in any way."""
        mine = (self.bytes, self.seconds, self.disk)
        return all(a >= b for a, b in zip(mine, less.dump().values(), strict=True))


NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a step works on at this moment, a file for example, in the unit of the
    progress that it belongs to."""

    name: str
    done: float
    total: float

    def dump(self) -> dict[str, str | float]:
        return {"name": self.name, "done": self.done, "total": self.total}


@dataclass(frozen=True, slots=True)
class Check:
    """The answer of `check`. `outputs` is given exactly when `ok`."""

    ok: bool
    reasons: tuple[Reason, ...] = ()
    work: Work = NO_WORK
    outputs: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def satisfied(cls, outputs: Mapping[str, Json] | None = None, *reasons: Reason) -> Check:
        return cls(True, reasons, NO_WORK, dict(outputs or {}))

    @classmethod
    def unsatisfied(cls, *reasons: Reason, work: Work | None = None) -> Check:
        return cls(False, reasons, work or NO_WORK)


class StepFailure(Failure):
    """A failure of a step that its user can read."""

    default_exit_code = FAILED

    def __init__(
        self,
        message: str,
        *,
        code: str = "step_failed",
        reasons: Sequence[Reason] = (),
        **fields: Any,
    ) -> None:
        fields.setdefault("exit_code", self.default_exit_code)
        super().__init__(message, code=code, **fields)
        self.reasons = tuple(reasons)


class PreconditionNotMet(StepFailure):
    """The world outside the workspace must change first; `run` ends with exit code 3."""

    default_exit_code = PRECONDITION


class Cancelled(BaseException):
    """Raised in the main thread of an attempt on SIGTERM. Clean up in `finally`, do not catch."""


class Lock(Protocol):
    """The book's lock: what names that move, as a branch does, were when they were resolved."""

    def get(self, name: str) -> str | None:
        """What a name was; None if the lock does not have it."""
        ...

    def where(self, name: str) -> Path:
        """The file that has it, or would."""
        ...

    def keep(self, name: str, value: str) -> None:
        """Add what a name is, a commit or a digest, if the lock does not have it yet."""
        ...


class Context(Protocol):
    """What a step is given. `check` may use everything but `run` to change the world."""

    @property
    def step(self) -> str:
        """The id of the step in its document."""
        ...

    @property
    def inputs(self) -> SimpleNamespace:
        """The rendered and validated `with:`, defaults filled in: top-level keys are attributes,
        everything below is plain JSON data (dict, list, str, int, float, bool, None)."""
        ...

    @property
    def workspace(self) -> Path:
        """The absolute path of the workspace; what a step makes lives in here."""
        ...

    @property
    def cache(self) -> Path:
        """A folder shared by all workspaces of this user, for content-addressed files only."""
        ...

    @property
    def deep(self) -> bool:
        """Whether the thorough form of `check` is asked for."""
        ...

    @property
    def forced(self) -> bool:
        """In `apply`: what an earlier `apply` has proven or started is to be proven or started
        again, not taken for done."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts of this machine, gathered when first read (`gpus`, `cpu`, ...)."""
        ...

    @property
    def lock(self) -> Lock:
        """What a name that moves was: where it has one, `check` and `apply` want that."""
        ...

    def secret(self, name: str) -> str | None:
        """The value of a secret that the document declares, from the environment."""
        ...

    def log(self, message: str) -> None:
        """Write one line to the attempt's log."""
        ...

    def notice(self, message: str) -> None:
        """Log a line that is an event too: something went wrong and was dealt with (a retry)."""
        ...

    def progress(
        self,
        done: float,
        total: float | None = None,
        unit: str = "",
        message: str = "",
        items: Sequence[Item] = (),
    ) -> None:
        """Report real quantities (unit `bytes`, `objects`, ...), and if you like which items are
        being worked on. Call it as often as you like: the engine thins it out. A call counts as
        a sign of life for `stall`."""
        ...

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Any = None,
        failure: StepFailure | None = None,
    ) -> None:
        """Run a program, its output into the attempt's log; raise `StepFailure` (or `failure`)
        with the last lines as cause if it does not exit 0. `env` is added to the environment.
        `on_line`, a callable, is given each line of output as text."""
        ...


class Step(Protocol):
    """One kind of step. An instance holds no state: everything comes with the context."""

    version: str
    """Part of the fingerprint: change it when what `apply` makes changes."""
    Inputs: type[BaseModel]
    Outputs: type[BaseModel]

    def check(self, ctx: Context) -> Check:
        """Is the world as the inputs want it? Read-only and quick (milliseconds); thorough when
        `ctx.deep`. Its outputs are what later steps see, so they need no memory of `apply`."""
        ...

    def apply(self, ctx: Context) -> None:
        """Make it so. Must be resumable: it may be killed at any instruction and called again.
        Afterwards `check` must hold, else the step failed."""
        ...


class Hooks(Step, Protocol):
    """All that a step may have besides; the engine looks whether it is there."""

    facts: Sequence[str]
    """Names of facts whose values are part of the fingerprint."""

    makes_nothing: bool
    """True for a step that only looks, or whose outputs tell all of what it made: its dependants
    are not done again because it was."""

    def check_limit(self, inputs: SimpleNamespace) -> float | None:
        """Seconds after which its quick check hangs; None or no such hook: a minute."""
        ...

    def undo(self, ctx: Context) -> None:
        """Remove what `apply` made, for `runbook destroy`. Must be resumable, and a no-op when
        nothing is there."""
        ...

    def creates(self, inputs: SimpleNamespace) -> Iterable[str]:
        """Paths, relative to the workspace, that it makes besides those that its outputs name:
        `destroy` tells of them and of their sizes."""
        ...

    def files(self, inputs: SimpleNamespace) -> Iterable[Path]:
        """Files that belong to the definition (patch series, locks): their content is part of the
        fingerprint."""
        ...

    def resolve(self, ctx: Context, anew: bool) -> Mapping[str, str]:
        """What the names that move in its inputs are, for `runbook lock`: of a name that the lock
        has not, and `anew` of each, by asking who knows."""
        ...

    def output_names(self, given: Mapping[str, Any]) -> frozenset[str] | None:
        """The outputs that a step whose `with:` is this has, templates not rendered, where that
        depends on it; None if it cannot be told. Without this hook `Outputs` names them."""
        ...

    def foresee(
        self, given: Mapping[str, Json], unknown: Collection[str], facts: Mapping[str, Any]
    ) -> Iterable[Reason]:
        """What speaks against the inputs before the steps that it needs have run. `given` is the
        rendered `with:`, not validated, without what needs outputs that are not there yet: the
        dotted paths of that are in `unknown`. Errors refuse the plan, and the run before anything
        runs."""
        ...


class Model:
    """A pydantic model named by `module:Class` and imported when first read.

    `Inputs = Model("runbook.steps.smoke.models:Inputs")` keeps pydantic out of a no-op run.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, instance: object, owner: type | None = None) -> type[BaseModel]:
        module, _, name = self.path.partition(":")
        model: type[BaseModel] = getattr(importlib.import_module(module), name)
        return model
