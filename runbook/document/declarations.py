"""The inputs and secrets that a document declares: whether they can be so."""

from __future__ import annotations

import re

from pydantic import ValidationError

from runbook.document import inputs
from runbook.document.errors import alternatives, nearest
from runbook.document.models import INPUT_NAME, Input
from runbook.document.nodes import Node, Path
from runbook.document.source import Source
from runbook.document.words import describe, shown


class Declarations:
    """Reports to `source` what is wrong with its inputs and secrets, beyond their shape."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.inputs = self._inputs()
        self.required: list[str] = []
        """Those of the secrets without which nothing runs."""
        self.secrets = self._secrets()

    def without_value(self, resolved: inputs.Resolved) -> None:
        """Report each input that must be given and is not."""
        node = self.source.root.child("inputs")
        if node is None:
            return
        refused = {p.breadcrumb for p in resolved.problems}
        for name in sorted(resolved.unset):
            kind = self.inputs[name].type
            if "type" not in self.inputs[name].model_fields_set or f"inputs.{name}" in refused:
                continue
            self.source.report(
                node.keys[name],
                ("inputs", name),
                "input_missing",
                f"the input `{name}` has no value",
                f"--set {name}={kind.upper()} or {inputs.variable(name)} in the environment",
            )

    def _inputs(self) -> dict[str, Input]:
        node = self.source.root.child("inputs")
        if node is None or not isinstance(node.children, dict):
            return {}
        declared: dict[str, Input] = {}
        variables: dict[str, str] = dict.fromkeys(inputs.RESERVED, "")
        for name, child in node.children.items():
            if not self._input_name(name, node, variables):
                continue
            try:
                spec = Input.model_validate(child.value)
            except ValidationError:  # reported with the whole document
                declared[name] = Input.model_construct(type="string", default=None)
                continue
            self._input_values(name, spec, child)
            declared[name] = spec
        return declared

    def _input_name(self, name: str, node: Node, variables: dict[str, str]) -> bool:
        """Whether an input can have that name beside the others."""
        before = len(self.source.problems)
        place, path = node.keys[name], ("inputs", name)
        variable = inputs.variable(name)
        taken = variables.setdefault(variable, name)
        if not re.fullmatch(INPUT_NAME, name, re.ASCII):
            expected = "lower-case letters, digits and underscores, with dots between names"
            near = name.lower().replace("-", "_")
            near = near if re.fullmatch(INPUT_NAME, near, re.ASCII) else ""
            self.source.report(
                place, path, "wrong_form", f"`{name}` is no name for an input", expected, near
            )
        elif taken != name:
            message = f"{variable} is " + (
                f"read for the input `{taken}` already" if taken else "runbook's own"
            )
            self.source.report(place, path, "input_name", message, "another name")
        parts = name.split(".")
        for outer in (".".join(parts[:count]) for count in range(1, len(parts))):
            if outer in node.keys:
                self.source.report(
                    place, path, "input_name", f"`{outer}` is an input already", "another name"
                )
        return len(self.source.problems) == before

    def _input_values(self, name: str, spec: Input, node: Node) -> None:
        for index, choice in enumerate(spec.enum or []):
            if expected := inputs.type_problem(spec, choice):
                self._wrong_literal(
                    node.at(("enum", index)), ("inputs", name, "enum", index), expected
                )
        if "default" not in spec.model_fields_set or spec.default is None:
            return
        at, path = node.at(("default",)), ("inputs", name, "default")
        if expected := inputs.type_problem(spec, spec.default):
            self._wrong_literal(at, path, expected)
        elif spec.enum is not None and spec.default not in spec.enum:
            choices = [inputs.as_choice(c) for c in spec.enum]
            given = inputs.as_choice(spec.default)
            message = f"`{given}` is not one of the choices"
            near = nearest(given, choices)
            self.source.report(at.place, path, "not_allowed", message, alternatives(choices), near)

    def _wrong_literal(self, node: Node, path: Path, expected: str) -> None:
        if not node.broken:
            got = f"got {describe(node.value)}{shown(node.value)}"
            self.source.report(node.place, path, "wrong_type", got, expected)

    def _secrets(self) -> list[str]:
        node = self.source.root.child("secrets")
        if node is None or not isinstance(node.children, list):
            return []
        seen: list[str] = []
        read = {inputs.variable(name): name for name in self.inputs} | {n: n for n in self.inputs}
        for index, child in enumerate(node.children):
            path = ("secrets", index)
            told = child.value if isinstance(child.value, dict) else {"name": child.value}
            name = told.get("name")
            if not isinstance(name, str):  # reported with the whole document
                continue
            if name in seen:
                self.source.report(child.place, path, "duplicate", f"`{name}` stands twice")
            elif name in read:
                message = f"`{name}` is an input as well"
                self.source.report(child.place, path, "secret_input", message, "another name")
            seen.append(name)
            if told.get("required") is True:
                self.required.append(name)
        return seen
