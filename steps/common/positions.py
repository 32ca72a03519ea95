"""Where in a YAML text something stands, for errors."""

from __future__ import annotations

from collections.abc import Sequence


def position(text: str, path: Sequence[str | int]) -> str:
    """`line 3, column 5`: of the value at `path` (keys and indexes from the top), or of the
    nearest that is there."""
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
