"""YAML to data with places."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runbook.document.errors import DocumentInvalid
from runbook.document.nodes import Node, Place, breadcrumb
from runbook.document.source import Source

SCALARS = [
    ("true", True),
    ("false", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("y", "y"),
    ("12", 12),
    ("-7", -7),
    ("0", 0),
    ("0o17", 15),
    ("0x1F", 31),
    ("1_000", "1_000"),
    ("12:30", "12:30"),
    ("2026-01-31", "2026-01-31"),
    ("1.5", 1.5),
    ("1e3", 1000.0),
    (".5", 0.5),
    ("12.9.1", "12.9.1"),
    ("'yes'", "yes"),
    ('"12"', "12"),
    ("'0755'", "0755"),
    ("<<", "<<"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: object) -> None:
    source = Source(f"a: {text}\n".encode(), "f")
    got = source.root.value["a"]
    assert (got, type(got), source.problems) == (value, type(value), [])


def test_places_of_values_and_keys() -> None:
    root = Source(b"a:\n  - x\n  - b: {c: 1,\n         d: [2, 3]}\n", "f").root
    assert root.at(("a", 1, "b", "d", 1)).place == Place(4, 17)
    assert root.at(("a", 1, "b")).keys == {"c": Place(3, 9), "d": Place(4, 10)}
    assert root.at(("a", 1, "nothing", 7)) is root.at(("a", 1))


def test_byte_order_mark_and_windows_line_ends() -> None:
    root = Source("\ufeffa: 1\r\nb: é\r\n".encode(), "f").root
    assert root.value == {"a": 1, "b": "é"}
    assert root.keys["b"] == Place(2, 1)


def test_an_alias_repeats_its_anchor() -> None:
    root = Source(b"a: &x {b: 1}\nc: *x\n", "f").root
    assert root.value == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_place_inside_text() -> None:
    source = Source(b"a: 'one {{ x.y }}'\nb: |\n  two\n  {{ x.y }}\nc: plain\n", "f")
    root = source.root
    assert source.locate(root.at(("a",)), "x.y") == Place(1, 12)
    assert source.locate(root.at(("b",)), "x.y") == Place(4, 6)
    assert source.locate(root.at(("c",)), "absent") == Place(5, 4)


def test_breadcrumbs() -> None:
    assert breadcrumb(()) == ""
    assert breadcrumb(("steps", 2, "with", "jobs")) == "steps[2].with.jobs"


def test_a_broken_byte_is_found_where_it_is() -> None:
    with pytest.raises(DocumentInvalid) as caught:
        Source("a: é\nb: ".encode() + b"\xff", "f")
    assert caught.value.errors[0]["code"] == "not_utf8"
    assert (caught.value.problems[0].line, caught.value.problems[0].column) == (2, 4)


def outline(node: Node) -> object:
    inner: object = None
    if isinstance(node.children, dict):
        inner = {k: (node.keys[k], outline(c)) for k, c in node.children.items()}
    elif node.children is not None:
        inner = [outline(c) for c in node.children]
    return (node.place, node.value, inner)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1), VALUES, min_size=1), st.sampled_from([None, 4]))
def test_json_is_read_as_it_is(value: object, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    source = Source(text.encode(), "f")
    assert (source.root.value, source.problems) == (value, [])


@given(st.dictionaries(st.text("abc", min_size=1), VALUES, min_size=1))
def test_both_parsers_give_the_same(value: object) -> None:
    if not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")
    data = yaml.safe_dump(value, allow_unicode=True).encode()
    fast = Source(data, "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(yaml, "CSafeLoader")
        slow = Source(data, "f")
    assert outline(fast.root) == outline(slow.root)
    assert fast.problems == slow.problems
