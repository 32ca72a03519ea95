"""Remedies rendered: complete commands for the book, workspace and inputs at hand."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from runbook.cli.verbs import verbs
from runbook.errors import Failure
from runbook.remedy import COMMAND, STEP, Remedies, Remedy, load

_NESTED = (dict, list)
_BETWEEN = re.compile(r"([;,]\s+(?:then:?\s+|or\s+|and\s+)?|:\s+(?={command}))")
"""What parts the clauses of a sentence."""
_CLAUSE = re.compile(r"; (?=(?:[^`]*`[^`]*`)*[^`]*$)")
"""What parts the clauses of a remedy, but for one in a command."""
_COMMAND = re.compile(r"`(runbook [^`]+)`")


class Renderer:
    """Renders remedies for one book. `line` makes a command line of a verb and its arguments;
    `steps` are the compiled ones, `declared` the names of the document's inputs."""

    def __init__(
        self,
        line: Callable[..., str],
        steps: Sequence[Mapping[str, Any]] = (),
        declared: Collection[str] = (),
    ) -> None:
        self._line = line
        self._steps = steps
        self._declared = declared

    def complete(self, value: Any, step: str = "") -> Any:
        """The same plain data with every `remedy` in it rendered. `step` is the one that it tells
        of, unless it names another."""
        if isinstance(value, list):
            return [self.complete(v, step) if isinstance(v, _NESTED) else v for v in value]
        completed = dict(value)
        if "step" in value or "id" in value:
            step = str(value.get("step") or value.get("id") or step)
        for key, item in value.items():
            if key == "outputs":
                continue  # data of the steps' own, and much of it
            if key == "remedy":
                completed[key] = self.text(load(item), step) if item else ""
            elif isinstance(item, _NESTED):
                completed[key] = self.complete(item, step)
        return completed

    def failure(self, problem: Failure) -> None:
        """Render what a failure proposes, in place."""
        problem.remedy = self.text(problem.remedy)
        following = getattr(problem, "next", ())
        if following:
            lines = (self.command(one) if isinstance(one, Remedy) else one for one in following)
            problem.next = tuple(line for line in lines if line)  # type: ignore[attr-defined]

    def text(self, remedy: Remedies, step: str = "") -> str:
        """What the reader should do, in words."""
        if isinstance(remedy, str):
            return _COMMAND.sub(lambda found: f"`{self._given(found[1])}`", remedy)
        if isinstance(remedy, tuple):
            parts = [said for part in remedy if (said := self.text(part, step))]
            bare = (f"`{said}`" if said.startswith("runbook ") else said for said in parts)
            return _once(bare) if len(parts) > 1 else "".join(parts)
        command = self.command(remedy, step)
        if command is None:
            return remedy.otherwise or _without(remedy)
        quoted = command if remedy.text == COMMAND else f"`{command}`"
        return remedy.text.replace(COMMAND, quoted)

    def commands(self, remedy: Remedies, step: str = "") -> list[str]:
        """The complete commands that a remedy names."""
        said = self.text(remedy, step)
        return [said] if said.startswith("runbook ") else _COMMAND.findall(said)

    def command(self, remedy: Remedy, step: str = "") -> str | None:
        """The complete command; None where the book has no such step or no such input."""
        arguments = remedy.arguments
        if any(STEP in word for word in arguments):
            meant = self.step_of(remedy.kind, step) if remedy.kind else step
            if not meant:
                return None
            arguments = tuple(word.replace(STEP, meant) for word in arguments)
        for option, value in itertools.pairwise(arguments):
            if option == "--set" and value.partition("=")[0] not in self._declared:
                return None
        return self._line(remedy.verb, *arguments)

    def step_of(self, kind: str, step: str) -> str:
        """The id of the step of a kind, or of a role, that matters to `step`: itself, else the
        nearest before it, else the last; "" if there is none."""
        order = [entry["id"] for entry in self._steps]
        kinds = importlib.import_module("runbook.steps").ROLES.get(kind, (kind,))
        found = [entry["id"] for entry in self._steps if entry["uses"] in kinds]
        if step in found:
            return step
        if step in order:
            before = [name for name in found if order.index(name) < order.index(step)]
            found = before[-1:] or found
        return str(found[-1]) if found else ""

    def _given(self, line: str) -> str:
        """A command that stands in a sentence, completed. One that names its book, or needs none,
        stays as it is."""
        _, name, *arguments = shlex.split(line)
        verb = verbs().get(name)
        if verb is None or not verb.book:
            return line
        if verb.steps == "none" and arguments and not arguments[0].startswith("-"):
            return line
        return self._line(name, *arguments)


def _once(parts: Iterable[str]) -> str:
    """Several remedies in a sentence, each clause of them once: what ends more than one stands
    after the last of these."""
    clauses = [clause for part in parts for clause in _CLAUSE.split(part)]
    return "; ".join(reversed(dict.fromkeys(reversed(clauses))))


def _without(remedy: Remedy) -> str:
    """What of a sentence does not need its command."""
    clauses = ["", *_BETWEEN.split(remedy.text)]  # each after what parts it from the one before
    pairs = zip(clauses[::2], clauses[1::2], strict=True)
    kept = [pair for pair in pairs if COMMAND not in pair[1]]
    if kept:
        return kept[0][1] + "".join(between + clause for between, clause in kept[1:])
    lacks = f"step of the kind `{remedy.kind}`" if remedy.kind else "part"
    return f"the document has no {lacks} that would mend it"
