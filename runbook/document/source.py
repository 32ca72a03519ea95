"""A document's text and its tree, each node with its place in the text."""

from __future__ import annotations

import yaml

from runbook.document.errors import DocumentInvalid
from runbook.document.nodes import Findings, Node, Place
from runbook.document.yaml_tree import Builder


class Source(Findings):
    """One document's text, its tree, and the problems found on the way."""

    def __init__(self, data: bytes, file: str) -> None:
        super().__init__(file)
        self.text = self._decode(data)
        self.root = self._read()

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
            return Builder(self, yaml.parse(self.text, Loader=fast)).document()
        except yaml.YAMLError:
            self.problems.clear()
        try:
            return Builder(self, yaml.parse(self.text, Loader=yaml.SafeLoader)).document()
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


def _friendlier(problem: str) -> tuple[str, str]:
    """The parser's words for the commonest mistakes, and what was expected instead."""
    if problem == "mapping values are not allowed here":
        return "a second `:`, or a wrong indentation", "quotes around a text that holds `: `"
    if problem.endswith("that cannot start any token"):
        return problem, "quotes around a text that starts with it"
    if problem.startswith("expected <block end>, but found '<block"):
        return "the indentation fits nothing before it", "the indentation of an earlier line"
    return problem, ""


def _place_of(before: str) -> Place:
    """The place that follows a text."""
    return Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
