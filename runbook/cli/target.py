"""What a verb works on: the book, the workspace and the inputs, and how to say so in a command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbook.cli import envelope
from runbook.cli.remedies import Renderer
from runbook.cli.verbs import VERBS
from runbook.document.compile import compile_book
from runbook.errors import Failure
from runbook.planning.context import default_cache
from runbook.remedy import Remedy
from runbook.state.workspace import Workspace, default_workspace


class Target:
    """The book and workspace of one call of `verb`."""

    def __init__(
        self,
        verb: str,
        book: str | None,
        workspace: Path | None,
        sets: Sequence[str] = (),
        as_json: bool = False,
    ) -> None:
        self.verb, self.as_json = verb, as_json
        self.argument, self._folder, self._sets = book, workspace, sets
        cache = default_cache() / "compiled" if verb != "validate" else None
        self.renderer = Renderer(self.command)
        try:
            required = VERBS[verb].inputs
            self.book = compile_book(book, sets, cache, os.environ, require_inputs=required)
        except Failure as problem:
            self.renderer.failure(problem)
            raise
        self.renderer = Renderer(self.command, self.book["steps"], self.book["declared"])
        root = workspace.absolute() if workspace is not None else None
        self.workspace = Workspace(root or default_workspace(self.book["name"]))

    def command(self, verb: str, *arguments: str) -> str:
        """A complete command line. A verb that works on no book, or on another one that the
        arguments name, is given nothing of this one."""
        spec = VERBS.get(verb)
        if spec is None or not spec.book:
            return shlex.join(["runbook", verb, *arguments])
        if spec.steps == "none" and arguments and not arguments[0].startswith("-"):
            return shlex.join(["runbook", verb, *arguments])
        words = ["runbook", verb]
        if self.argument is not None:
            words.append(self.argument)
        words += arguments
        if self._folder is not None:
            words += ["--workspace", str(self._folder)]
        if spec.sets:
            words += [word for item in self._sets for word in ("--set", item)]
        return shlex.join(words)

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
        answer = envelope.document(self.verb, ok, body, error=error, next=following)
        completed: dict[str, Any] = self.renderer.complete(answer)
        return completed

    def say(self, answer: Mapping[str, Any], human: Callable[[Mapping[str, Any]], str]) -> None:
        """Print an answer: the document with --json, else what people read."""
        if self.as_json:
            envelope.print_json(answer)
        else:
            envelope.print_human(answer, human)
