"""The parser's events to a tree: a subset of YAML on purpose, that of 1.2's core schema less all
that surprises (`yes` and `no`, octal by a leading zero, tags, merge keys, several documents).
Anchors and aliases are allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from runbook.document.nodes import Findings, Node, Path, Place

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


class Builder:
    """Builds the tree from the parser's events."""

    def __init__(self, findings: Findings, events: Iterator[Any]) -> None:
        self.findings = findings
        self.events = events
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self.findings.fail(
                        _start(event), "several_documents", "a second document", "one document"
                    )
                root = self.node(next(self.events), ())
        if root is None or (root.value is None and not root.broken):
            raise self.findings.fail(Place(1, 1), "empty", "the document is empty", "a runbook")
        return root

    def node(self, event: Any, path: Path) -> Node:
        place = _start(event)
        if len(path) > MAX_DEPTH:
            raise self.findings.fail(place, "too_deep", f"nested more than {MAX_DEPTH} levels deep")
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
            raise self.findings.fail(place, "too_large", f"more than {MAX_NODES} values")
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
        self.findings.report(place, path, code, message, expected, suggestion)


def _start(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _integer(text: str) -> int | None:
    if len(text) > 300:
        return None
    digits = text.lower()
    return int(digits, 0) if digits.startswith(("0o", "0x")) else int(digits)
