"""The templates of a step: compiled, their names checked, and evaluated where they can be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateSyntaxError

from runbook.document import jinja, template
from runbook.document.errors import nearest
from runbook.document.nodes import Node, Path, Place
from runbook.document.references import Names, chains
from runbook.document.source import Source
from runbook.protocol import Json, StepFailure

_SIGNS = {"'end of print statement'": "`}}`", "'end of statement block'": "`%}`"}


@dataclass
class Part:
    """A part of a document: compiled, as data to validate, and where templates are undecided."""

    value: Json
    data: Json
    undecided: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class TemplateChecker:
    """Compiles the templates of one step.

    `inputs` are the values of inputs, nested as templates see them; `unset` names those that have
    none. `facts` collects the names of facts that are read.
    """

    source: Source
    names: Names
    inputs: Mapping[str, Any]
    unset: frozenset[str]
    facts: set[str]

    def compile(self, node: Node, path: Path) -> Part:
        """Compile the value of a node, and all that is in it."""
        if isinstance(node.children, dict):
            parts = {k: self.compile(c, (*path, k)) for k, c in node.children.items()}
            return Part(
                {template.quote_key(k): p.value for k, p in parts.items()},
                {k: p.data for k, p in parts.items()},
                set().union(*(p.undecided for p in parts.values())),
            )
        if isinstance(node.children, list):
            items = [self.compile(c, (*path, i)) for i, c in enumerate(node.children)]
            return Part(
                [p.value for p in items],
                [p.data for p in items],
                set().union(*(p.undecided for p in items)),
            )
        if not template.is_template(node.value) or node.broken:
            return Part(node.value, node.value, {path} if node.broken else set())
        return self._template(node, path, template.compile_value(node.value))

    def _template(self, node: Node, path: Path, compiled: Json) -> Part:
        """Check a template, and evaluate it if it reads nothing but inputs that are known."""
        undecided = Part(compiled, node.value, {path})
        try:
            names = chains(compiled)
        except TemplateSyntaxError as error:
            self._syntax(node, path, error)
            return undecided
        right = True
        for chain in names:
            wrong = self.names.wrong(chain)
            if wrong is not None:
                right = False
                self.source.report(self._locate(node, chain), path, *wrong)
            elif chain[0] == "facts":
                self.facts.add(chain[1])
        if not right or any(chain[0] != "inputs" for chain in names):
            return undecided
        if any(_reads(chain, name) for chain in names for name in self.unset):
            return undecided
        try:
            value = template.render(compiled, {"inputs": self.inputs})
        except StepFailure as error:
            message = f"{error.message}: {error.cause}"
            self.source.report(node.place, path, error.code, message)
            return undecided
        return Part(template.quote(value), value)

    def _locate(self, node: Node, chain: Sequence[str]) -> Place:
        for count in range(len(chain), 0, -1):
            place = self.source.locate(node, ".".join(chain[:count]))
            if place != node.place:
                return place
        return node.place

    def _syntax(self, node: Node, path: Path, error: TemplateSyntaxError) -> None:
        braces = template.is_template(node.value)  # `when:` has none
        message = error.message or "it cannot be read"
        for words, sign in _SIGNS.items():
            message = message.replace(words, sign if braces else "end of the expression")
        message = message[:1].lower() + message[1:].removesuffix(".")
        near, place = "", node.place
        if match := re.match(r"no (filter|test) named '([^']+)'", message):
            env = jinja.environment()
            known = list(env.filters if match[1] == "filter" else env.tests)
            near = nearest(match[2], known)
            message = f"there is no {match[1]} `{match[2]}`"
            place = self.source.locate(node, match[2])
        self.source.report(
            place,
            path,
            "template_syntax",
            message,
            "" if near else f"a Jinja {'template' if braces else 'expression'}",
            near,
        )

    def condition(self, node: Node, path: Path, when: str) -> Json:
        """Compile a `when:`."""
        if template.is_template(when) or not when.strip():
            message = "`when` is an expression, without braces"
            near = when.strip().removeprefix("{{").removesuffix("}}").strip()
            near = "" if template.is_template(near) else near
            self.source.report(node.place, path, "template_syntax", message, "an expression", near)
            return None
        return self._template(node, path, template.compile_condition(when)).value

    def question(self, node: Node, path: Path) -> Json:
        """Compile an `approve:`, which may read what the step would cost."""
        names = replace(self.names, roots=(*self.names.roots, "check"))
        return replace(self, names=names).compile(node, path).value


def _reads(chain: Sequence[str], name: str) -> bool:
    """Whether `inputs.a` or `inputs.a.b` reads the input of that name, or part of it."""
    path = ("inputs", *name.split("."))
    count = min(len(path), len(chain))
    return tuple(chain[:count]) == path[:count]
