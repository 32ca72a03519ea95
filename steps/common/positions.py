"""YAML of other people: its values, and where in it something stands, for errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_DEPTH = 64


def load(text: str) -> Any:
    """The values of a text. Raises yaml.YAMLError, and ValueError for a value that is none (a
    month 13) or where it is nested too deeply: libyaml composes by recursion and would crash."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return yaml.load(text, loader)


def position(text: str, path: Sequence[str | int]) -> str:
    """`line 3, column 5` of a text that `load` took: of the value at `path` (keys and indexes from
    the top), or of the nearest that is there."""
    import yaml

    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for step in path:
        below = None
        if isinstance(node, yaml.MappingNode):
            below = next((v for k, v in node.value if k.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            below = node.value[step] if step < len(node.value) else None
        if below is None:
            break
        node = below
    if node is None:
        return "line 1, column 1"
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
