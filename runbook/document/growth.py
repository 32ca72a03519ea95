"""Which templates can take more than their text and names suggest, and bounds for operators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import nodes

LARGEST = 1 << 20
"""Items or characters that an operator may give."""
MOST_BITS = 4096
"""Of a whole number: some 1,200 digits."""
OPERATORS = frozenset(("*", "**", "%", "+"))
_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\d{5,}|\*)")

# What gives no more than it is given, or as much as its text says.
_STEADY_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Getattr),
    *(nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.CondExpr, nodes.If, nodes.Test, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    *(nodes.Neg, nodes.Pos, nodes.Concat, nodes.Filter, nodes.Keyword),
)
_STEADY_FILTERS = frozenset(
    (
        *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "filesize", "first"),
        *("float", "int", "items", "join", "last", "length", "list", "lower", "max", "min"),
        *("reverse", "round", "sort", "string", "sum", "title", "tojson", "trim", "unique"),
        *("upper", "urlencode", "wordcount"),
    )
)


def grows(tree: nodes.Template) -> bool:
    """Whether a template loops, calls or has filters, such that what it takes cannot be told."""
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _STEADY_NODES):
            return True
        if isinstance(node, nodes.Filter) and node.name not in _STEADY_FILTERS:
            return True
    return False


def refuse(operator: str, left: Any, right: Any) -> None:
    """Raise OverflowError if a binary operation would give something enormous."""
    numbers = isinstance(left, int) and isinstance(right, int)
    bits = 0
    if operator == "**" and numbers and abs(left) > 1 and right > 0:
        bits = left.bit_length() * right
    elif operator == "*" and numbers:
        bits = left.bit_length() + right.bit_length()
    if bits > MOST_BITS:
        raise OverflowError("the number has too many digits")
    size = 0
    if operator == "*":
        for items, count in ((left, right), (right, left)):
            if isinstance(items, (str, list, tuple)) and isinstance(count, int):
                size = len(items) * count
    elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
        size = len(left) + len(right)
    elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
        size = LARGEST + 1
    if size > LARGEST:
        raise OverflowError(f"it is larger than {LARGEST} characters or items")
