"""The steps of a document: their kinds, what these are given, and their templates."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from runbook.document import inputs, invalid, needs, registry
from runbook.document.errors import alternatives, nearest
from runbook.document.fields import with_defaults
from runbook.document.nodes import Node, Path
from runbook.document.references import Names, Outputs
from runbook.document.source import Source
from runbook.document.template_check import Part, TemplateChecker
from runbook.protocol import Json

# What a validator of a whole mapping says is not known before its templates are values.
_OF_THE_WHOLE = frozenset(("value_error", "assertion_error", "union_tag_invalid"))


@dataclass
class _Kind:
    """What `uses:` names: the step and its models. None: it could not be loaded."""

    step: Any = None
    inputs: type[BaseModel] | None = None
    outputs: type[BaseModel] | None = None


class Steps:
    """Compiles what of steps is not fixed: `with`, `needs`, `when`, `approve`. Reports to `source`
    what is wrong with them.

    Each of `steps` holds the keys that are right in themselves; `nodes` are the places of all.
    """

    def __init__(
        self,
        source: Source,
        nodes: Sequence[Node],
        steps: Sequence[Mapping[str, Any]],
        folder: str,
    ) -> None:
        self.source = source
        self.nodes = nodes
        self.steps = steps
        self.folder = folder
        self.kinds: dict[str, _Kind] = {}
        self.facts: set[str] = set()

    def compile(self, declared: Iterable[str], resolved: inputs.Resolved) -> list[dict[str, Any]]:
        """Compile all, in their order."""
        order = needs.positions(self.source, self.nodes, self.steps)
        outputs: dict[str, Outputs] = {}
        needed = needs.Needed()
        leaves = inputs.Resolved(values=dict.fromkeys(declared)).nested()
        values = resolved.nested()
        unset = frozenset(declared) - frozenset(resolved.values)
        facts = registry.known_facts()
        compiled = []
        before: list[str] = []
        for index, step in enumerate(self.steps):
            name = str(step.get("id") or f"steps[{index}]")
            own = needs.needs(self.source, self.nodes[index], index, step, order)
            own = before if own is None else own
            before = [name]
            names = Names(leaves, facts, order, needed.add(name, own), outputs, name, index)
            templates = TemplateChecker(self.source, names, values, unset, self.facts)
            kind = self._kind(index, step)
            compiled.append(
                {
                    "with": self._with(index, kind, templates),
                    "needs": own,
                    "when": self._when(index, step, templates),
                    "approve": self._approve(index, step, templates),
                }
            )
            outputs[name] = _outputs(kind, step.get("with"))
        return compiled

    def files(self) -> list[str]:
        """The files whose code decided what the document may say, and what is made of it."""
        # This package's own too: a checkout changes under the same version.
        modules = {name for name in sys.modules if name.startswith("runbook.document")}
        modules.add("runbook.document.template")
        for kind in self.kinds.values():
            owners: Iterable[Any] = (type(kind.step), kind.inputs, kind.outputs)
            for owner in filter(None, owners):
                bases = {base.__module__ for base in owner.__mro__}
                modules.add(owner.__module__)
                modules |= {name for name in bases if name.startswith("runbook.")}
        found = (getattr(sys.modules.get(name), "__file__", None) for name in modules)
        return sorted(file for file in found if file)

    def _kind(self, index: int, step: Mapping[str, Any]) -> _Kind:
        uses = step.get("uses")
        if not isinstance(uses, str):
            return _Kind()
        if uses not in self.kinds:
            self.kinds[uses] = self._load(index, uses)
        elif self.kinds[uses].step is None:
            self._load(index, uses)  # reports it here too
        return self.kinds[uses]

    def _load(self, index: int, uses: str) -> _Kind:
        place = self.nodes[index].at(("uses",)).place
        path = ("steps", index, "uses")
        try:
            step = registry.load_step(uses, self.folder)
            return _Kind(step, step.Inputs, step.Outputs)
        except registry.StepUnavailable as error:
            kinds = registry.known_steps()
            unknown = error.code == "unknown_step_kind"
            expected = alternatives(kinds) + ", or path/to/file.py:Class" if unknown else ""
            near = nearest(uses, kinds) if unknown else ""
            cause = "" if error.code in ("unknown_step_kind", "step_file_missing") else error.cause
            message = f"{error.message}: {cause}" if cause else error.message
            self.source.report(place, path, error.code, message, expected, near)
        except Exception as error:  # the module of the models runs code of any kind
            message = f"the models of `{uses}` cannot be loaded: {type(error).__name__}: {error}"
            self.source.report(place, path, "step_broken", message)
        return _Kind()

    def _with(self, index: int, kind: _Kind, templates: TemplateChecker) -> Json:
        path: Path = ("steps", index, "with")
        node = self.nodes[index].child("with")
        if node is None:
            node = Node({}, self.nodes[index].place)
            node.children = {}
        if not isinstance(node.value, dict):
            return {}
        part = templates.compile(node, path)
        assert isinstance(part.value, dict)
        if kind.inputs is None or self._invalid_with(path, node, part, kind.inputs):
            return part.value
        return with_defaults(kind.inputs, part.value)

    def _invalid_with(self, path: Path, node: Node, part: Part, model: type[BaseModel]) -> bool:
        """Report what the step's own model says against its `with:`; whether there is any."""
        undecided = {p[len(path) :] for p in part.undecided}

        def unknown_yet(at: Path, kind: str) -> bool:
            if kind in _OF_THE_WHOLE:
                return any(p[: len(at)] == at for p in undecided)
            return at in undecided and kind not in ("missing", "extra_forbidden")

        before = len(self.source.problems)
        try:
            model.model_validate_json(json.dumps(part.data), strict=True)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            invalid.report(self.source, path, errors, model, part.data, unknown_yet)
        except Exception as error:  # a validator of a step can fail in any way
            if not undecided:
                message = f"its validator failed: {type(error).__name__}: {error}"
                self.source.report(node.place, path, "step_broken", message)
        return len(self.source.problems) > before

    def _when(self, index: int, step: Mapping[str, Any], templates: TemplateChecker) -> Json:
        when = step.get("when")
        if not isinstance(when, str):
            return when
        return templates.condition(self.nodes[index].at(("when",)), ("steps", index, "when"), when)

    def _approve(self, index: int, step: Mapping[str, Any], templates: TemplateChecker) -> Json:
        if step.get("approve") is None:
            return None
        return templates.question(self.nodes[index].at(("approve",)), ("steps", index, "approve"))


def _outputs(kind: _Kind, given: Any) -> Outputs:
    declare = getattr(kind.step, "output_names", None)
    names = declare(given if isinstance(given, dict) else {}) if declare is not None else None
    return Outputs(kind.outputs, names)
