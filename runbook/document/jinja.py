"""The jinja2 environment of documents: sandboxed, strict, and free of hidden state."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from types import GeneratorType
from typing import Any

from jinja2 import (
    StrictUndefined,
    TemplateSyntaxError,
    Undefined,
    meta,
    nodes,
    pass_eval_context,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runbook import units
from runbook.document import growth
from runbook.document.confine import confined
from runbook.document.words import as_text
from runbook.protocol import Json


class Environment(ImmutableSandboxedEnvironment):
    """Data comes first: in `inputs.items`, `items` is the input of that name, not a method."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    intercepted_binops = growth.OPERATORS

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        growth.refuse(operator, left, right)
        return super().call_binop(context, operator, left, right)


@functools.cache
def environment() -> Environment:
    env = Environment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        # Given a context, which is of no use to it, it is not called while a template is compiled,
        # nor are constants folded: compiling would do what evaluating is kept from.
        finalize=pass_eval_context(lambda _, value: as_text(value)),
        optimized=False,
    )
    env.globals.clear()
    # These would make a rendered document differ from run to run.
    del env.filters["random"]
    env.filters["filesize"] = units.size
    return env


def parse(source: str) -> nodes.Template:
    """The syntax tree. TemplateSyntaxError also for filters and tests that do not exist, and for
    what is nested too deeply for the parser or Python's compiler."""
    try:
        environment().compile(source)
        return environment().parse(source)
    except (MemoryError, RecursionError, SyntaxError) as error:
        raise TemplateSyntaxError("it is nested too deeply", 1) from error


@functools.lru_cache(4096)
def _grows(source: str) -> bool:
    return growth.grows(environment().parse(source))


def sole_expression(source: str) -> str | None:
    """The expression of a template that is nothing but one `{{ expression }}`."""
    if not (source.startswith("{{") and source.endswith("}}")):
        return None
    tokens = [kind for _, kind, _ in environment().lex(source)]
    if tokens.count("variable_begin") != 1 or tokens[-1] != "variable_end":
        return None
    return source[2:-2].removeprefix("-").removeprefix("+").removesuffix("-").removesuffix("+")


def render(source: str, scope: Mapping[str, Any]) -> Json:
    """The value of a template: of its own type if it is one expression, else text. One that may
    grow is evaluated in a process of its own: Excess or Relayed come from there."""
    if not _grows(source):
        return _render(source, scope)
    for chain in references(environment().parse(source)):  # facts are gathered once, and here
        if chain[0] == "facts" and len(chain) > 1 and chain[1] in scope.get("facts", ()):
            scope["facts"][chain[1]]
    return confined(lambda: _render(source, scope))


def _render(source: str, scope: Mapping[str, Any]) -> Json:
    expression = sole_expression(source)
    if expression is None:
        return environment().from_string(source).render(scope)
    value = environment().compile_expression(expression, undefined_to_none=False)(scope)
    return _plain(value)


def _plain(value: Any) -> Json:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the result is {value}, which is no number to go on with")
    if isinstance(value, int) and value.bit_length() > growth.MOST_BITS:
        raise OverflowError("the number has too many digits")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, GeneratorType)):
        return [_plain(v) for v in value]
    raise TypeError(f"the result is a {type(value).__name__}, not plain data")


def references(tree: nodes.Template) -> Iterator[tuple[str, ...]]:
    """The dotted names that a template reads from its scope, each as long as it is constant.

    `steps.build.outputs["python"]` gives the four names; `steps[x]` gives `steps` (and `x`).
    """
    generator = meta.TrackingCodeGenerator(environment())
    generator.optimizer = None  # as in find_undeclared_variables, but without folding constants
    generator.visit(tree)
    yield from _chains(tree, generator.undeclared_identifiers)


def _chains(node: nodes.Node, free: set[str]) -> Iterator[tuple[str, ...]]:
    chain = _chain(node)
    if chain is not None:
        if chain[0] in free:
            yield chain
        return
    for child in node.iter_child_nodes():
        yield from _chains(child, free)


def _chain(node: nodes.Node) -> tuple[str, ...] | None:
    if isinstance(node, nodes.Name) and node.ctx == "load":
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        head = _chain(node.node)
        return None if head is None else (*head, node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        head = _chain(node.node)
        if head is not None and isinstance(node.arg.value, str):
            return (*head, node.arg.value)
        return head
    return None


__all__ = [
    "TemplateSyntaxError",
    "environment",
    "parse",
    "references",
    "render",
    "sole_expression",
]
