"""YAML text to data, each node with its place in the text.

A subset on purpose: what YAML 1.2's core schema reads, less all that surprises (`yes` and `no`,
octal by a leading zero, tags, merge keys, several documents). Anchors and aliases are allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import yaml

from runbook.document.errors import DocumentInvalid, Problem

Path: TypeAlias = tuple[str | int, ...]
MAX_DEPTH = 64
MAX_NODES = 1_000_000  # aliases of aliases grow without bound

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_NULL = ("", "~", "null", "Null", "NULL")
_WRONG_BOOLEANS = {
    spelling: meant
    for meant, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
    if spelling not in ("true", "false")
}


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


class Source:
    """One document's text, its tree, and the problems found on the way."""

    def __init__(self, data: bytes, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.text = self._decode(data)
        self.root = self._read()

    def report(
        self,
        place: Place,
        path: Path,
        code: str,
        message: str,
        expected: str = "",
        suggestion: str = "",
    ) -> None:
        crumb = breadcrumb(path)
        self.problems.append(Problem(self.file, *place, crumb, code, message, expected, suggestion))

    def locate(self, node: Node, needle: str) -> Place:
        """Where in a scalar's text `needle` stands; the scalar's own place if it is not found
        (escaped, or folded over lines)."""
        lines = self.text.split("\n")
        first = node.place.line - 1
        last = first + (node.value.count("\n") if isinstance(node.value, str) else 0) + 1
        for number in range(first, min(last + 1, len(lines))):
            column = lines[number].find(needle, node.place.column - 1 if number == first else 0)
            if column >= 0:
                return Place(number + 1, column + 1)
        return node.place

    def fail(self, place: Place, code: str, message: str, expected: str = "") -> DocumentInvalid:
        self.report(place, (), code, message, expected)
        return DocumentInvalid(self.problems)

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start].decode("utf-8-sig", "replace")
            raise self.fail(
                _place_of(before), "not_utf8", "the file is not text in UTF-8", "UTF-8"
            ) from error

    def _read(self) -> Node:
        # libyaml is some ten times as fast; the words of PyYAML's own parser are the better ones.
        try:
            fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            return _Builder(self, yaml.parse(self.text, Loader=fast)).document()
        except yaml.YAMLError:
            self.problems.clear()
        try:
            return _Builder(self, yaml.parse(self.text, Loader=yaml.SafeLoader)).document()
        except yaml.reader.ReaderError as error:
            place = _place_of(self.text[: error.position])
            raise self.fail(
                place, "syntax", f"the character {chr(error.character)!r} is not allowed"
            ) from error
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from error

    def _syntax(self, error: yaml.MarkedYAMLError) -> DocumentInvalid:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        if mark is not None and self.text[mark.index : mark.index + 1] == "\t":
            return self.fail(place, "tab", "a tab stands where YAML wants spaces", "spaces")
        problem, expected = _friendlier(str(error.problem))
        message = f"not YAML: {problem}"
        if error.context and error.context_mark:
            message += f" ({error.context} that starts on line {error.context_mark.line + 1})"
        return self.fail(place, "syntax", message, expected)


class _Builder:
    """Builds the tree from the parser's events."""

    def __init__(self, source: Source, events: Iterator[Any]) -> None:
        self.source = source
        self.events = events
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self.source.fail(
                        _start(event), "several_documents", "a second document", "one document"
                    )
                root = self.node(next(self.events), ())
        if root is None or (root.value is None and not root.broken):
            raise self.source.fail(Place(1, 1), "empty", "the document is empty", "a runbook")
        return root

    def node(self, event: Any, path: Path) -> Node:
        place = _start(event)
        if len(path) > MAX_DEPTH:
            raise self.source.fail(place, "too_deep", f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor, place, path)
        node = Node(None, place)
        if event.anchor:
            self.anchors[event.anchor] = node
        if event.tag is not None:
            self.tag(event.tag, place, path)
            node.broken = True
        if isinstance(event, yaml.ScalarEvent):
            node.value = event.value
            if not event.style and event.tag is None:
                self.resolve(node, path)
            return node
        node.open = True
        if isinstance(event, yaml.MappingStartEvent):
            self.mapping(node, path)
        else:
            self.sequence(node, path)
        node.open = False
        if node.size > MAX_NODES:
            raise self.source.fail(place, "too_large", f"more than {MAX_NODES} values")
        return node

    def sequence(self, node: Node, path: Path) -> None:
        children: list[Node] = []
        values: list[Any] = []
        node.children, node.value = children, values
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            child = self.node(event, (*path, len(children)))
            children.append(child)
            values.append(child.value)
            node.size += child.size

    def mapping(self, node: Node, path: Path) -> None:
        children: dict[str, Node] = {}
        values: dict[str, Any] = {}
        node.children, node.value = children, values
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            name = self.key(event, node, path)
            child = self.node(next(self.events), (*path, name or ""))
            if name is not None:
                children[name] = child
                values[name] = child.value
                node.size += child.size

    def key(self, event: Any, node: Node, path: Path) -> str | None:
        """The name of a key; None if its value is not to be kept."""
        place = _start(event)
        if not isinstance(event, yaml.ScalarEvent):
            self.report(place, path, "key_not_text", "a key that is not text", "text")
            self.node(event, path)
            node.broken = True
            return None
        name: str = event.value
        if event.tag is not None:
            self.tag(event.tag, place, path)
        if name == "<<" and not event.style:
            self.report(place, path, "merge_key", "merge keys (<<) are not supported", "plain keys")
            node.broken = True
            return None
        if name in node.keys:
            first = node.keys[name].line
            self.report(
                place,
                (*path, name),
                "duplicate_key",
                f"the key `{name}` stands twice, first on line {first}",
            )
            return None
        node.keys[name] = place
        return name

    def alias(self, anchor: str | None, place: Place, path: Path) -> Node:
        target = self.anchors.get(anchor or "")
        node = Node(None, place)
        if target is None:
            self.report(place, path, "unknown_anchor", f"no anchor `{anchor}` stands before")
            node.broken = True
        elif target.open:
            self.report(place, path, "cycle", f"the alias `{anchor}` contains itself")
            node.broken = True
        else:
            return target
        return node

    def tag(self, tag: str, place: Place, path: Path) -> None:
        short = tag.replace("tag:yaml.org,2002:", "!!")
        self.report(place, path, "tag", f"the tag {short} is not allowed", "no tag")

    def resolve(self, node: Node, path: Path) -> None:
        """Give an unquoted scalar its type."""
        text: str = node.value
        if text in _NULL:
            node.value = None
        elif text in ("true", "false"):
            node.value = text == "true"
        elif text in _WRONG_BOOLEANS:
            meant = "true" if _WRONG_BOOLEANS[text] else "false"
            self.wrong(
                node, path, "boolean", f"`{text}` is ambiguous", "`true`, `false` or quotes", meant
            )
        elif _INTEGER.fullmatch(text):
            node.value = _integer(text)
            if node.value is None:
                self.wrong(node, path, "number", "the number is too large", "at most 300 digits")
        elif _LEADING_ZERO.fullmatch(text):
            self.wrong(
                node,
                path,
                "number",
                f"`{text}` is ambiguous (octal or decimal)",
                "a number without leading zeros, or quotes",
            )
        elif _FLOAT.fullmatch(text):
            node.value = float(text)
            if not math.isfinite(node.value):
                self.wrong(node, path, "number", f"`{text}` is out of range", "a finite number")
        elif _NOT_FINITE.fullmatch(text):
            self.wrong(node, path, "number", f"`{text}` is not finite", "a finite number")

    def wrong(
        self, node: Node, path: Path, code: str, message: str, expected: str, suggestion: str = ""
    ) -> None:
        self.report(node.place, path, code, message, expected, suggestion)
        node.broken = True

    def report(
        self,
        place: Place,
        path: Path,
        code: str,
        message: str,
        expected: str = "",
        suggestion: str = "",
    ) -> None:
        self.source.report(place, path, code, message, expected, suggestion)


def breadcrumb(path: Iterable[str | int]) -> str:
    """`steps[2].with.jobs`"""
    text = ""
    for name in path:
        if isinstance(name, int):
            text += f"[{name}]"
        else:
            text += f".{name}" if text else name
    return text


def _friendlier(problem: str) -> tuple[str, str]:
    """The parser's words for the commonest mistakes, and what was expected instead."""
    if problem == "mapping values are not allowed here":
        return "a second `:`, or a wrong indentation", "quotes around a text that holds `: `"
    if problem.endswith("that cannot start any token"):
        return problem, "quotes around a text that starts with it"
    if problem.startswith("expected <block end>, but found '<block"):
        return "the indentation fits nothing before it", "the indentation of an earlier line"
    return problem, ""


def _start(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _place_of(before: str) -> Place:
    """The place that follows a text."""
    return Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def _integer(text: str) -> int | None:
    if len(text) > 300:
        return None
    digits = text.lower()
    return int(digits, 0) if digits.startswith(("0o", "0x")) else int(digits)
