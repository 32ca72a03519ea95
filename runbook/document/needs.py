"""The order of steps: their ids, and which are done before which."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from runbook.document.errors import alternatives, nearest
from runbook.document.nodes import Node
from runbook.document.source import Source


def positions(
    source: Source, nodes: Sequence[Node], steps: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """The position of each step by its id. Reports ids that stand twice."""
    order: dict[str, int] = {}
    for index, step in enumerate(steps):
        name = step.get("id")
        if name in order:
            line = nodes[order[name]].at(("id",)).place.line
            message = f"the id `{name}` stands twice, first on line {line}"
            place = nodes[index].at(("id",)).place
            source.report(place, ("steps", index, "id"), "duplicate_id", message, "another id")
        elif isinstance(name, str):
            order[name] = index
    return order


def needs(
    source: Source, node: Node, index: int, step: Mapping[str, Any], order: Mapping[str, int]
) -> list[str] | None:
    """The steps that a step names in its `needs`; None for the one before. Reports names that
    are not those of earlier steps."""
    if step.get("needs") is None:
        return None
    node = node.at(("needs",))
    before = len(source.problems)
    found: list[str] = []
    for position, name in enumerate(step["needs"]):
        place, path = node.at((position,)).place, ("steps", index, "needs", position)
        if node.at((position,)).broken:
            continue
        if name in found:
            source.report(place, path, "duplicate", f"`{name}` stands twice")
        elif order.get(name, index) < index:
            found.append(name)
        elif name == step.get("id"):
            message = f"the step `{name}` needs itself"
            source.report(place, path, "needs_later", message, "an earlier step")
        elif name in order:
            message = f"the step `{name}` comes later"
            source.report(place, path, "needs_later", message, "an earlier step")
        else:
            earlier = [other for other, at in order.items() if at < index]
            expected = alternatives(earlier) if 0 < len(earlier) <= 20 else "earlier steps"
            message = f"there is no step `{name}`"
            near = nearest(name, earlier)
            source.report(place, path, "unknown_step", message, expected, near)
    if len(source.problems) > before:
        return [name for name, at in order.items() if at < index]  # no errors that follow
    return found


class Needed:
    """For each step all those done before it. Bits, for books of thousands of steps."""

    def __init__(self) -> None:
        self.bits: dict[str, int] = {}
        self.before: dict[str, int] = {}

    def add(self, name: str, needs: Sequence[str]) -> Container[str]:
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
