"""A document's bytes to its compiled form. All that is wrong is found before anything is said."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any

from jinja2 import TemplateSyntaxError
from pydantic import BaseModel, ValidationError

from runbook import registry, template
from runbook.document import durations, inputs, invalid
from runbook.document.errors import DocumentInvalid, alternatives, nearest
from runbook.document.fields import with_defaults
from runbook.document.models import INPUT_NAME, Document, Input, Step
from runbook.document.references import Names, Outputs, chains
from runbook.document.source import Node, Path, Source
from runbook.protocol import Json, StepFailure

# What a validator of a whole mapping says is not known before its templates are values.
_OF_THE_WHOLE = frozenset(("value_error", "assertion_error", "union_tag_invalid"))

_SIGNS = {"'end of print statement'": "`}}`", "'end of statement block'": "`%}`"}


@dataclass
class Built:
    """A compiled document, and what of the surroundings it was made from."""

    book: dict[str, Any]
    environment: dict[str, str | None]
    folder: str | None
    files: list[str]


@dataclass
class _Kind:
    """What `uses:` names: the step and its models. None: it could not be loaded."""

    step: Any = None
    inputs: type[BaseModel] | None = None
    outputs: type[BaseModel] | None = None


@dataclass
class _Scope:
    """What is known while a step's templates are compiled."""

    names: Names
    facts: set[str]
    inputs: Mapping[str, Any]
    unset: frozenset[str]


@dataclass
class _Compiled:
    """A part of a document: compiled, as data to validate, and where templates are undecided."""

    value: Json
    data: Json
    undecided: set[Path] = field(default_factory=set)


def build(
    data: bytes,
    path: File,
    sets: Sequence[str],
    env: Mapping[str, str],
    *,
    require_inputs: bool = True,
) -> Built:
    """Compile the document at `path`, whose content is `data`. Raises DocumentInvalid."""
    return _Builder(data, path, sets, env, require_inputs).build()


class _Builder:
    def __init__(
        self,
        data: bytes,
        path: File,
        sets: Sequence[str],
        env: Mapping[str, str],
        require_inputs: bool,
    ) -> None:
        self.path = path
        self.sets = sets
        self.env = env
        self.require_inputs = require_inputs
        self.source = Source(data, str(path))
        self.root = self.source.root
        self.kinds: dict[str, _Kind] = {}
        self.facts: set[str] = set()

    def build(self) -> Built:
        document, good = self._validate()
        declared = self._declared_inputs()
        self._secrets(declared)
        resolved = inputs.resolve(
            Document.model_construct(inputs=declared, secrets=_texts(self.root.value, "secrets")),
            self.sets,
            self.env,
        )
        self._missing_inputs(declared, resolved)
        steps = self._steps(good, declared, resolved)
        problems = [*self.source.problems, *resolved.problems]
        if problems or document is None:
            raise DocumentInvalid(problems)
        book = {
            "name": document.name,
            "description": document.description,
            "source": str(self.path),
            "inputs": resolved.nested(),
            "secrets": document.secrets,
            "facts": sorted(self.facts),
            "steps": [
                {**_static(step, node.place.line, str(self.path.parent)), **compiled}
                for step, node, compiled in zip(
                    document.steps, self._step_nodes(), steps, strict=True
                )
            ],
        }
        return Built(book, resolved.environment, resolved.folder, self._files())

    # -- the shape of the document

    def _validate(self) -> tuple[Document | None, list[dict[str, Any]]]:
        """The document if it is whole, and of each step the keys that are right in themselves."""
        if not isinstance(self.root.value, dict):
            raise self.source.fail(
                self.root.place, "not_a_mapping", "the document is not a mapping", "a mapping"
            )
        raw = [n.value if isinstance(n.value, dict) else {} for n in self._step_nodes()]
        try:
            document = Document.model_validate(self.root.value)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
            invalid.report(self.source, (), errors, Document, self.root.value)
            bad = {tuple(e["loc"][1:3]) for e in errors if e["loc"][0] == "steps"}
            known = {f.alias or name for name, f in Step.model_fields.items()}
            return None, [
                {k: v for k, v in step.items() if k in known and (i, k) not in bad}
                for i, step in enumerate(raw)
            ]
        return document, raw

    def _step_nodes(self) -> list[Node]:
        steps = self.root.child("steps")
        return steps.children if steps is not None and isinstance(steps.children, list) else []

    # -- inputs and secrets

    def _declared_inputs(self) -> dict[str, Input]:
        node = self.root.child("inputs")
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
            got = f"got {template.describe(node.value)}{invalid.shown(node.value)}"
            self.source.report(node.place, path, "wrong_type", got, expected)

    def _secrets(self, declared: Mapping[str, Input]) -> None:
        node = self.root.child("secrets")
        if node is None or not isinstance(node.children, list):
            return
        seen: set[str] = set()
        read = {inputs.variable(name): name for name in declared} | {n: n for n in declared}
        for index, child in enumerate(node.children):
            path = ("secrets", index)
            if not isinstance(child.value, str):  # reported with the whole document
                continue
            if child.value in seen:
                self.source.report(child.place, path, "duplicate", f"`{child.value}` stands twice")
            elif child.value in read:
                message = f"`{child.value}` is an input as well"
                self.source.report(child.place, path, "secret_input", message, "another name")
            seen.add(child.value)

    def _missing_inputs(self, declared: Mapping[str, Input], resolved: inputs.Resolved) -> None:
        node = self.root.child("inputs")
        if node is None or not self.require_inputs:
            return
        refused = {p.breadcrumb for p in resolved.problems}
        for name in sorted(resolved.unset):
            kind = declared[name].type
            if "type" not in declared[name].model_fields_set or f"inputs.{name}" in refused:
                continue
            self.source.report(
                node.keys[name],
                ("inputs", name),
                "input_missing",
                f"the input `{name}` has no value",
                f"--set {name}={kind.upper()} or {inputs.variable(name)} in the environment",
            )

    # -- steps

    def _steps(
        self,
        good: Sequence[Mapping[str, Any]],
        declared: Mapping[str, Input],
        resolved: inputs.Resolved,
    ) -> list[dict[str, Any]]:
        order = self._order(good)
        outputs: dict[str, Outputs] = {}
        needed = _Needed()
        leaves = inputs.Resolved(values=dict.fromkeys(declared)).nested()
        known = resolved.nested()
        unset = frozenset(declared) - frozenset(resolved.values)
        facts = registry.known_facts()
        compiled = []
        before = ""
        for index, step in enumerate(good):
            name = str(step.get("id") or f"steps[{index}]")
            needs = self._needs(index, step, order)
            if needs is None:
                needs = [before] if before else []
            visible = needed.add(name, needs)
            before = name
            names = Names(leaves, facts, order, visible, outputs, name, index)
            scope = _Scope(names, self.facts, known, unset)
            kind = self._kind(index, step)
            compiled.append(
                {
                    "with": self._with(index, kind, scope),
                    "needs": needs,
                    "when": self._when(index, step, scope),
                    "approve": self._approve(index, step, scope),
                }
            )
            outputs[name] = _outputs(kind, step.get("with"))
        return compiled

    def _order(self, good: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """The position of each step by its id."""
        order: dict[str, int] = {}
        nodes = self._step_nodes()
        for index, step in enumerate(good):
            name = step.get("id")
            if name in order:
                line = nodes[order[name]].at(("id",)).place.line
                message = f"the id `{name}` stands twice, first on line {line}"
                place = nodes[index].at(("id",)).place
                self.source.report(
                    place, ("steps", index, "id"), "duplicate_id", message, "another id"
                )
            elif isinstance(name, str):
                order[name] = index
        return order

    def _needs(
        self, index: int, step: Mapping[str, Any], order: Mapping[str, int]
    ) -> list[str] | None:
        """The steps that a step names in its `needs`; None for the one before."""
        if step.get("needs") is None:
            return None
        node = self._step_nodes()[index].at(("needs",))
        before = len(self.source.problems)
        found: list[str] = []
        for position, name in enumerate(step["needs"]):
            place, path = node.at((position,)).place, ("steps", index, "needs", position)
            if node.at((position,)).broken:
                continue
            if name in found:
                self.source.report(place, path, "duplicate", f"`{name}` stands twice")
            elif order.get(name, index) < index:
                found.append(name)
            elif name == step.get("id"):
                message = f"the step `{name}` needs itself"
                self.source.report(place, path, "needs_later", message, "an earlier step")
            elif name in order:
                message = f"the step `{name}` comes later"
                self.source.report(place, path, "needs_later", message, "an earlier step")
            else:
                earlier = [other for other, at in order.items() if at < index]
                expected = alternatives(earlier) if 0 < len(earlier) <= 20 else "earlier steps"
                message = f"there is no step `{name}`"
                near = nearest(name, earlier)
                self.source.report(place, path, "unknown_step", message, expected, near)
        if len(self.source.problems) > before:
            return [name for name, at in order.items() if at < index]  # no errors that follow
        return found

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
        place = self._step_nodes()[index].at(("uses",)).place
        path = ("steps", index, "uses")
        try:
            step = registry.load_step(uses, str(self.path.parent))
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

    def _with(self, index: int, kind: _Kind, scope: _Scope) -> Json:
        path: Path = ("steps", index, "with")
        node = self._step_nodes()[index].child("with")
        if node is None:
            node = Node({}, self._step_nodes()[index].place)
            node.children = {}
        if not isinstance(node.value, dict):
            return {}
        part = self._compile(node, path, scope)
        assert isinstance(part.value, dict)
        if kind.inputs is None or self._invalid_with(path, node, part, kind.inputs):
            return part.value
        return with_defaults(kind.inputs, part.value)

    def _invalid_with(
        self, path: Path, node: Node, part: _Compiled, model: type[BaseModel]
    ) -> bool:
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

    def _compile(self, node: Node, path: Path, scope: _Scope) -> _Compiled:
        if isinstance(node.children, dict):
            parts = {k: self._compile(c, (*path, k), scope) for k, c in node.children.items()}
            return _Compiled(
                {template.quote_key(k): p.value for k, p in parts.items()},
                {k: p.data for k, p in parts.items()},
                set().union(*(p.undecided for p in parts.values())),
            )
        if isinstance(node.children, list):
            items = [self._compile(c, (*path, i), scope) for i, c in enumerate(node.children)]
            return _Compiled(
                [p.value for p in items],
                [p.data for p in items],
                set().union(*(p.undecided for p in items)),
            )
        if not template.is_template(node.value) or node.broken:
            return _Compiled(node.value, node.value, {path} if node.broken else set())
        return self._template(node, path, template.compile_value(node.value), scope)

    def _template(self, node: Node, path: Path, compiled: Json, scope: _Scope) -> _Compiled:
        """Check a template, and evaluate it if it reads nothing but inputs that are known."""
        undecided = _Compiled(compiled, node.value, {path})
        try:
            names = chains(compiled)
        except TemplateSyntaxError as error:
            self._syntax(node, path, error)
            return undecided
        right = True
        for chain in names:
            wrong = scope.names.wrong(chain)
            if wrong is not None:
                right = False
                self.source.report(self._locate(node, chain), path, *wrong)
            elif chain[0] == "facts":
                scope.facts.add(chain[1])
        if not right or any(chain[0] != "inputs" for chain in names):
            return undecided
        if any(_reads(chain, name) for chain in names for name in scope.unset):
            return undecided
        try:
            value = template.render(compiled, {"inputs": scope.inputs})
        except StepFailure as error:
            message = f"{error.message}: {error.cause}"
            self.source.report(node.place, path, error.code, message)
            return undecided
        return _Compiled(template.quote(value), value)

    def _locate(self, node: Node, chain: Sequence[str]) -> Any:
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
            from runbook import jinja

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

    def _when(self, index: int, step: Mapping[str, Any], scope: _Scope) -> Json:
        when = step.get("when")
        if not isinstance(when, str):
            return when
        node = self._step_nodes()[index].at(("when",))
        path: Path = ("steps", index, "when")
        if template.is_template(when) or not when.strip():
            message = "`when` is an expression, without braces"
            near = when.strip().removeprefix("{{").removesuffix("}}").strip()
            near = "" if template.is_template(near) else near
            self.source.report(node.place, path, "template_syntax", message, "an expression", near)
            return None
        return self._template(node, path, template.compile_condition(when), scope).value

    def _approve(self, index: int, step: Mapping[str, Any], scope: _Scope) -> Json:
        approve = step.get("approve")
        if not isinstance(approve, str) or not template.is_template(approve):
            return approve
        names = scope.names
        own = replace(names, roots=(*names.roots, "check"))
        node = self._step_nodes()[index].at(("approve",))
        return self._template(
            node,
            ("steps", index, "approve"),
            template.compile_value(approve),
            replace(scope, names=own),
        ).value

    def _files(self) -> list[str]:
        """The files whose code decided what the document may say."""
        modules: set[str] = set()
        for kind in self.kinds.values():
            owners: Iterable[Any] = (type(kind.step), kind.inputs, kind.outputs)
            modules.update(owner.__module__ for owner in owners if owner is not None)
        found = (getattr(sys.modules.get(name), "__file__", None) for name in modules)
        return sorted(file for file in found if file)


class _Needed:
    """For each step all those done before it. Bits, for books of thousands of steps."""

    def __init__(self) -> None:
        self.bits: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.order: list[str] = []

    def add(self, name: str, needs: Sequence[str]) -> _Before:
        mask = 0
        for need in needs:
            mask |= self.bits.get(need, 0) | self.before.get(need, 0)
        self.before.setdefault(name, mask)
        self.bits.setdefault(name, 1 << len(self.bits))
        return _Before(mask, self.bits)


class _Before:
    """The set of step names that a mask stands for."""

    def __init__(self, mask: int, bits: Mapping[str, int]) -> None:
        self.mask = mask
        self.bits = bits

    def __contains__(self, name: object) -> bool:
        return bool(self.mask & self.bits.get(str(name), 0))


def _outputs(kind: _Kind, given: Any) -> Outputs:
    declare = getattr(kind.step, "output_names", None)
    names = declare(given if isinstance(given, dict) else {}) if declare is not None else None
    return Outputs(kind.outputs, names)


def _reads(chain: Sequence[str], name: str) -> bool:
    """Whether `inputs.a` or `inputs.a.b` reads the input of that name, or part of it."""
    path = ("inputs", *name.split("."))
    count = min(len(path), len(chain))
    return tuple(chain[:count]) == path[:count]


def _texts(value: Any, key: str) -> list[str]:
    items = value.get(key)
    return [i for i in items if isinstance(i, str)] if isinstance(items, list) else []


def _static(step: Step, line: int, folder: str) -> dict[str, Any]:
    """What of a compiled step is not a template."""
    retry = step.retry
    return {
        "id": step.id,
        "uses": step.uses,
        "folder": folder,
        "always": step.always,
        "timeout": durations.seconds(step.timeout) if step.timeout else None,
        "stall": durations.seconds(step.stall) if step.stall else None,
        "retry": {
            "attempts": retry.attempts if retry else 1,
            "backoff": durations.seconds(retry.backoff) if retry else 0.0,
        },
        "line": line,
    }
