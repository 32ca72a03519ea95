"""What a verb works on: the book, the workspace and the inputs, and how to say so in a command."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runbook.cli import envelope, shell, terminal
from runbook.cli.form import WAIT_SECONDS, Form, by_agent
from runbook.cli.remedies import Renderer
from runbook.cli.verbs import verbs
from runbook.document.compile import BOOKS, compile_book, name_of
from runbook.errors import PRECONDITION, USAGE, Failure, RunbookError
from runbook.planning.context import default_cache, lock_places
from runbook.planning.lockfile import Lockfile
from runbook.redact import Redactor, without_password
from runbook.remedy import Remedy
from runbook.state import recorded
from runbook.state.owner import Owner
from runbook.state.workspace import Workspace, default_workspace

if TYPE_CHECKING:
    from runbook.document.compiled import Book

NARROWING = ("--from", "--until", "--only")


class Given(NamedTuple):
    """What the command line says of a target."""

    book: str | None = None
    workspace: Path | None = None
    sets: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


class Target:
    """The book and workspace of one call of `verb`. Inputs are what the command gives, else what
    an earlier run recorded in the workspace."""

    def __init__(self, verb: str, given: Given, form: Form = "human") -> None:
        self.verb, self.given, self.form = verb, given, form
        self.as_json = form != "human"
        self.unrecorded = bool(given.sets or given.unset)
        self.selection: Sequence[str] = ()
        """The arguments of the run at hand that one which continues it needs again."""
        self.renderer = Renderer(self.command)
        try:
            self.workspace, self.recorded, self.book = self._open()
        except Failure as problem:
            self.renderer.failure(problem)
            raise
        self.renderer = Renderer(self.command, self.book["steps"], self.book["declared"])

    def _open(self) -> tuple[Workspace, recorded.Recorded, Book]:
        """The workspace, what is recorded there, and the book compiled with that."""
        given = self.given
        if given.workspace is not None:
            root = given.workspace.absolute()
        else:
            name = name_of(given.book) or self._compile({}, False)["name"]
            root = default_workspace(name)
        workspace = Workspace(root)
        found = recorded.read(workspace.state)
        held = {k: v for k, v in found.inputs.items() if k not in given.unset}
        required = verbs()[self.verb].inputs
        try:
            book = self._compile(held, required)
        except Failure:
            if required or not held or self.verb == "validate":
                raise
            book = self._compile({}, False)  # who only watches needs no inputs
        if verbs()[self.verb].sets:
            Lockfile(*lock_places(book["source"], workspace.root)).verify()
        for name in given.unset:
            if name not in book["declared"] and name not in found.inputs:
                raise _unknown_input(name, list(book["declared"]))
        return workspace, found, book

    def _compile(self, held: Mapping[str, str], required: bool) -> Book:
        cache = default_cache() / "compiled" if self.verb != "validate" else None
        return compile_book(
            self.given.book,
            self.given.sets,
            cache,
            os.environ,
            recorded=held,
            require_inputs=required,
        )

    def record(self, chosen: Mapping[str, Any], approved: Sequence[str]) -> None:
        """Record the inputs that the command gives, which then hold, and what it selects and
        approves. A value that holds a secret is not recorded."""
        redactor = Redactor(self.book["secrets"])
        declared = self.book["declared"]
        inputs = {k: v for k, v in self.recorded.inputs.items() if k in declared}
        for name in self.given.unset:
            inputs.pop(name, None)
        for item in self.given.sets:
            name, _, text = item.partition("=")
            name = name.strip()
            if declared[name]["type"] == "path":
                text = str(self._value(name))  # it counted from the folder of this command
            inputs[name] = text
        inputs = {k: v for k, v in inputs.items() if redactor.text(v) == v}
        selected = {k: v for k, v in _plain(chosen).items() if v}
        new = recorded.Recorded(inputs, selected, tuple(approved))
        if new != self.recorded:
            recorded.write(self.workspace.state, new)
        given = {item.partition("=")[0].strip() for item in self.given.sets}
        self.unrecorded = not given <= inputs.keys()

    def _value(self, name: str) -> Any:
        value: Any = self.book["inputs"]
        for part in name.split("."):
            value = value[part]
        return value

    def own(self, adopt: bool) -> None:
        """Refuse the workspace of another document, unless it is to be adopted; a run makes it the
        workspace of this one."""
        if self.verb == "validate":
            return
        source = self.book["source"]
        shipped = Path(source).parent == BOOKS
        owner = Owner(self.workspace.state, self.book["name"], source, shipped)
        if not adopt and (told := owner.verify()):
            terminal.say(f"note: {told}", sys.stderr)
        if self.verb == "run":
            self.workspace.create()
            owner.record()

    def unset_secrets(self) -> list[str]:
        """The secrets that the document declares and the environment lacks."""
        return [name for name in self.book["secrets"] if not os.environ.get(name)]

    def missing_secrets(self) -> RunbookError | None:
        """The refusal of a run, if secrets that it needs are unset."""
        missing = [name for name in self.unset_secrets() if name in self.book["required"]]
        if not missing:
            return None
        names = ", ".join(missing)
        return RunbookError(
            f"{names} must be set in the environment",
            code="secret_unset",
            exit_code=PRECONDITION,
            cause=f"the document requires {'it' if len(missing) == 1 else 'them'}",
            remedy=Remedy("run", text=f"set {names} in the environment, then {{command}}"),
            where=self.book["source"],
        )

    def command(self, verb: str, *arguments: str) -> str:
        """A complete command line. A verb that works on no book, or on another one that the
        arguments name, is given nothing of this one."""
        spec = verbs().get(verb)
        if spec is None or not spec.book:
            return shell.join(["runbook", verb, *arguments])
        if spec.steps == "none" and arguments and not arguments[0].startswith("-"):
            return shell.join(["runbook", verb, *arguments])
        words = ["runbook", verb]
        if self.given.book is not None:
            words.append(self.given.book)
        words += arguments
        if verb == "wait" and self.as_json:
            words += self._waiting(arguments)
        if verb == "run":
            words += self._continuing(arguments)
            # Shells of agents are cut off after minutes.
            words += ["--detach"] if self.form == "brief" else []
        if self.given.workspace is not None:
            words += ["--workspace", str(self.given.workspace)]
        if self.form == "brief" and not by_agent():  # who asked for it, does not get it unasked
            words.append("--brief")
        if spec.sets and self.unrecorded:
            sets = [without_password(item, "***@") for item in self.given.sets]
            words += [word for item in sets for word in ("--set", item)]
            words += [word for item in self.given.unset for word in ("--unset", item)]
        return shell.join(words)

    def _waiting(self, arguments: Sequence[str]) -> list[str]:
        """What a program needs to wait on: for no longer than its shell lives, and for what it was
        not told yet."""
        from runbook.state.status import latest_run

        run = latest_run(self.workspace) if hasattr(self, "workspace") else None
        given = {"--timeout": WAIT_SECONDS, "--since": str(run.last_seq) if run is not None else ""}
        return [w for k, v in given.items() if v and k not in arguments for w in (k, v)]

    def _continuing(self, arguments: Sequence[str]) -> list[str]:
        """The selection of the run at hand, as far as a command does not choose for itself."""
        pairs = list(zip(self.selection[::2], self.selection[1::2], strict=True))
        there = set(itertools.pairwise(arguments))
        if "--only" in arguments or "--until" in arguments:
            pairs = [pair for pair in pairs if pair[0] not in (*NARROWING, "--force")]
        elif "--from" in arguments:
            pairs = [pair for pair in pairs if pair[0] not in ("--from", "--only", "--force")]
        return [word for pair in pairs if pair not in there for word in pair]

    def answer(
        self,
        ok: bool,
        body: Mapping[str, Any],
        *,
        error: Mapping[str, Any] | None = None,
        next: Sequence[str | Remedy],
    ) -> dict[str, Any]:
        """The answer of the verb, its remedies rendered."""
        lines = [self.renderer.command(n) if isinstance(n, Remedy) else n for n in next]
        following = [line for line in lines if line]
        inputs = Redactor(self.book["secrets"]).data(self.book["given"])
        body = {**body, "inputs": inputs}
        answer = envelope.document(self.verb, ok, body, error=error, next=following)
        if self.verb in ("run", "plan") and not self.as_json:
            # People are told few remedies of single steps here, of which there may be thousands.
            shown = {"error": self.renderer.complete(error)} if error is not None else {}
            if found := answer.get("errors"):
                few = found[: envelope.MOST_OTHERS + 1]
                shown["errors"] = [*map(self.renderer.complete, few), *found[len(few) :]]
            return {**answer, **shown}
        completed: dict[str, Any] = self.renderer.complete(answer)
        return completed

    def say(self, answer: Mapping[str, Any], human: Callable[[Mapping[str, Any]], str]) -> None:
        """Print an answer in the form that was asked for."""
        envelope.print_answer(answer, self.form, human)


def _plain(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A selection as JSON has it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}


def _unknown_input(name: str, known: Sequence[str]) -> RunbookError:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return RunbookError(
        f"there is no input `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""),
        code="unknown_input",
        exit_code=USAGE,
        cause="the inputs are: " + ", ".join(known) if known else "the document has no inputs",
        remedy="name one of them",
    )
