"""What templates may name, and what is wrong with a name that they may not."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from runbook.document.errors import alternatives, nearest
from runbook.document.fields import is_open, keys_of, models_at
from runbook.document.template import operator
from runbook.protocol import Json

CHECK_NAMES: Mapping[str, Sequence[str]] = {"work": ("bytes", "seconds", "disk")}


class Wrong(NamedTuple):
    """Why a dotted name cannot be: words for a problem."""

    code: str
    message: str
    expected: str = ""
    suggestion: str = ""


@dataclass(frozen=True)
class Outputs:
    """What is known of a step's outputs: their model, or names that its inputs declare."""

    model: type[BaseModel] | None = None
    names: frozenset[str] | None = None


@dataclass(frozen=True)
class Names:
    """What the templates of one step may name.

    `inputs` is nested as templates see it, leaves are None. `order` has the position of each
    step of the document, `needed` the steps that are done before this one.
    """

    inputs: Mapping[str, Any]
    facts: Sequence[str]
    order: Mapping[str, int]
    needed: Container[str]
    outputs: Mapping[str, Outputs]
    step: str
    position: int
    roots: Sequence[str] = field(default=("inputs", "facts", "workspace", "steps"))

    def wrong(self, chain: Sequence[str]) -> Wrong | None:
        """What is wrong with a dotted name; None if nothing is."""
        root = chain[0]
        if root not in self.roots:
            near = nearest(root, self.roots)
            return Wrong(
                "unknown_name", f"unknown name `{root}`", alternatives(list(self.roots)), near
            )
        if root == "inputs":
            return self._inputs(chain)
        if root == "facts":
            return self._facts(chain)
        if root == "steps":
            return self._steps(chain)
        if root == "check":
            return self._check(chain)
        if len(chain) > 1:
            return Wrong("unknown_name", "`workspace` is text and has no parts", "`workspace`")
        return None

    def _inputs(self, chain: Sequence[str]) -> Wrong | None:
        known: Any = self.inputs
        for depth, name in enumerate(chain[1:], 1):
            if known is None:
                holder = ".".join(chain[:depth])
                return Wrong("unknown_input", f"`{holder}` is a value and has no `{name}`")
            if name not in known:
                return _unknown("input", "input", name, list(known), chain[:depth])
            known = known[name]
        return None

    def _facts(self, chain: Sequence[str]) -> Wrong | None:
        if len(chain) == 1:
            return Wrong("unknown_fact", "`facts` stands alone", _dotted("facts", self.facts))
        if chain[1] not in self.facts:
            return _unknown("fact", "fact", chain[1], self.facts, chain[:1])
        return None

    def _check(self, chain: Sequence[str]) -> Wrong | None:
        if len(chain) > 1 and chain[1] not in CHECK_NAMES:
            return _unknown("name", "part", chain[1], list(CHECK_NAMES), chain[:1])
        if len(chain) > 2 and (known := CHECK_NAMES[chain[1]]) and chain[2] not in known:
            return _unknown("name", "part", chain[2], known, chain[:2])
        return None

    def _steps(self, chain: Sequence[str]) -> Wrong | None:
        if len(chain) == 1:
            return Wrong("unknown_step", "`steps` stands alone", "`steps.<id>.outputs.<name>`")
        name = chain[1]
        if name not in self.order:
            return _unknown("step", "step", name, [s for s in self.order if s != self.step], ())
        if name == self.step:
            return Wrong(
                "not_needed", f"the step `{name}` reads its own outputs", "an earlier step"
            )
        if name not in self.needed:
            if self.order[name] > self.position:
                return Wrong("not_needed", f"the step `{name}` comes later", "an earlier step")
            return Wrong(
                "not_needed",
                f"`{self.step}` does not need `{name}`",
                f"`{name}` in the `needs` of `{self.step}`, or of a step that it needs",
            )
        if len(chain) == 2 or chain[2] != "outputs":
            near = nearest(chain[2], ["outputs"]) if len(chain) > 2 else ""
            return Wrong(
                "unknown_name", f"`{'.'.join(chain)}` is not known", f"`steps.{name}.outputs`", near
            )
        return self._outputs(name, chain[3:])

    def _outputs(self, step: str, path: Sequence[str]) -> Wrong | None:
        outputs = self.outputs.get(step, Outputs())
        holder: tuple[str, ...] = ("steps", step, "outputs")
        if outputs.names is not None and path and path[0] not in outputs.names:
            return _unknown("output", "output", path[0], sorted(outputs.names), holder)
        for depth, name in enumerate(path):
            models = models_at(outputs.model, path[:depth]) if outputs.model else []
            if not models or any(is_open(m) for m in models):
                return None
            known = list(dict.fromkeys(k for m in models for k in keys_of(m)))
            if name not in known:
                return _unknown("output", "output", name, known, holder)
            holder = (*holder, name)
        return None


def _unknown(code: str, what: str, name: str, known: Sequence[str], holder: Sequence[str]) -> Wrong:
    where = f"`{'.'.join(holder)}` has no" if holder else "there is no"
    expected = alternatives(known) if 0 < len(known) <= 20 else ""
    return Wrong(f"unknown_{code}", f"{where} {what} `{name}`", expected, nearest(name, known))


def _dotted(root: str, names: Sequence[str]) -> str:
    return alternatives([f"{root}.{n}" for n in names])


def chains(compiled: Json) -> list[tuple[str, ...]]:
    """The dotted names in a compiled template, in its order. jinja2's TemplateSyntaxError if it is
    none."""
    key = operator(compiled)
    assert isinstance(compiled, dict) and key
    body: Any = compiled[key]
    if key == "$jinja":
        from runbook.document import jinja

        return list(dict.fromkeys(jinja.references(jinja.parse(body))))
    if key == "$join":
        return [tuple(part) for part in body if isinstance(part, list)]
    return [tuple(body[0] if key in ("$equal", "$differ") else body)]
