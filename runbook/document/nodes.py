"""The tree of a document: values with their places, and what is found wrong at them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from runbook.document.errors import DocumentInvalid, Problem

Path: TypeAlias = tuple[str | int, ...]
LONGEST = 1000
"""Characters of what is said of a problem: names in a document have no limit."""


class Place(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class Node:
    """A value and where it stands. `children` are those of a mapping or list, `keys` the places
    of a mapping's keys. `broken`: an error was reported here, so that what follows from it need
    not be. `open`: its end has not been read; `size`: the nodes in it, itself included."""

    __slots__ = ("broken", "children", "keys", "open", "place", "size", "value")

    def __init__(self, value: Any, place: Place) -> None:
        self.value = value
        self.place = place
        self.children: dict[str, Node] | list[Node] | None = None
        self.keys: dict[str, Place] = {}
        self.broken = False
        self.open = False
        self.size = 1

    def child(self, name: str | int) -> Node | None:
        if isinstance(self.children, dict):
            return self.children.get(name) if isinstance(name, str) else None
        if isinstance(self.children, list) and isinstance(name, int):
            return self.children[name] if 0 <= name < len(self.children) else None
        return None

    def at(self, path: Iterable[str | int]) -> Node:
        """The node at a path, or the deepest that there is on the way to it."""
        node = self
        for name in path:
            inner = node.child(name)
            if inner is None:
                break
            node = inner
        return node


class Findings:
    """The problems found in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def report(
        self,
        place: Place,
        path: Path,
        code: str,
        message: str,
        expected: str = "",
        suggestion: str = "",
    ) -> None:
        said = [_cut(text) for text in (breadcrumb(path), code, message, expected, suggestion)]
        self.problems.append(Problem(self.file, *place, *said))

    def fail(self, place: Place, code: str, message: str, expected: str = "") -> DocumentInvalid:
        self.report(place, (), code, message, expected)
        return DocumentInvalid(self.problems)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def breadcrumb(path: Iterable[str | int]) -> str:
    """`steps[2].with.jobs`"""
    text = ""
    for name in path:
        if isinstance(name, int):
            text += f"[{name}]"
        else:
            text += f".{name}" if text else name
    return text
