"""Whatever the text is: a compiled book, or errors with places. Never anything else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook.document.build import build
from runbook.document.errors import DocumentInvalid

pytestmark = pytest.mark.harness

GOOD = (Path(__file__).parent / "wellformed" / "everything.yaml").read_text()
PARTS = sorted({*GOOD.split(), *"{}[]:,-#&*!|>'\"%@`?", "{{", "}}", "{%", "%}", "\t", "\n", "  "})
SNIPPETS = st.one_of(st.sampled_from(PARTS), st.text(max_size=3))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The document with some pieces cut out, put in, or replaced."""
    text = GOOD
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 1, 3, 10, 60]))
        text = text[:start] + draw(SNIPPETS) + text[start + length :]
    return text


def check(data: bytes) -> None:
    folder = Path(tempfile.gettempdir())
    try:
        book = build(data, folder / "book.yaml", [], {}).book
    except DocumentInvalid as error:
        lines = data.decode("utf-8", "replace").count("\n") + 2
        assert error.problems
        for problem in error.problems:
            assert 1 <= problem.line <= lines and problem.column >= 1, problem
            assert problem.message and problem.code
    else:
        assert json.loads(json.dumps(book)) == book


@settings(max_examples=60, deadline=None)
@given(damaged())
def test_damaged_documents(text: str) -> None:
    check(text.encode("utf-8", "replace"))


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8"))))
def test_any_bytes(data: bytes) -> None:
    check(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "one", "{{ x }}", "4h"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["id", "uses", "with", "needs", "type", "default", "$ref"]), inner
        )
    ),
    max_leaves=5,
)
KEYS = st.sampled_from(["runbook", "name", "inputs", "secrets", "steps", "other"])
STEPS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["id", "uses", "with", "needs", "when", "always", "timeout", "retry", "approve"]
        ),
        VALUES | st.just("command"),
    )
    | VALUES,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, VALUES), STEPS)
def test_values_of_any_shape(document: dict[str, object], steps: list[object]) -> None:
    check(json.dumps({**document, "steps": steps}).encode())
