"""Diffs are applied exactly, or refused with the place that differs."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runbook.steps.vllm.patching.diff import (
    FileDiff,
    Hunk,
    HunkMismatch,
    fit,
    split_lines,
    text_of,
)
from runbook.steps.vllm.patching.parser import DiffError, parse

CASES = yaml.safe_load(Path(__file__).with_name("diffs.yaml").read_text())


def cases(name):
    return pytest.mark.parametrize("case", CASES[name], ids=lambda case: case["id"])


def hunks_of(diff: str):
    return parse(f"diff --git a/x b/x\n--- a/x\n+++ b/x\n{diff}".encode())[0].hunks


def back(hunks):
    return tuple(hunk.reversed() for hunk in hunks)


@cases("fits")
def test_fits_forwards_and_backwards(case):
    hunks = hunks_of(case["diff"])
    fitted = fit(case["before"].encode(), hunks)
    assert fitted.data == case["after"].encode()
    assert fitted.displacement == case.get("displacement", 0)
    assert fit(fitted.data, back(hunks)).data == case["before"].encode()


@cases("misfits")
def test_misfit_names_hunk_and_nearest_context(case):
    with pytest.raises(HunkMismatch) as caught:
        fit(case["before"].encode(), hunks_of(case["diff"]))
    miss = caught.value
    assert case["error"] in miss.reason
    assert miss.number == case["hunk"]
    assert miss.near == case["near"]
    if "wanted" in case:
        assert (miss.wanted, miss.found) == (case["wanted"], case["found"])


@cases("malformed")
def test_malformed_diffs_are_refused(case):
    with pytest.raises(DiffError) as caught:
        parse(case["diff"].encode())
    assert case["error"] in str(caught.value)


def test_error_lines_count_from_the_start_of_the_file():
    with pytest.raises(DiffError) as caught:
        parse(b"diff --git a/x b/x\nbad\n", first_line=20)
    assert caught.value.line == 21


LINES = st.lists(
    st.sampled_from(["a\n", "b\n", "\n", " c\n", "-d\n", "+e\n", "\\f\n"]), max_size=40
)


@given(before=LINES, after=LINES)
def test_whatever_difflib_finds_is_applied_and_taken_off(before, after):
    diff = "".join(difflib.unified_diff(before, after, "a/x", "b/x"))
    old, new = "".join(before).encode(), "".join(after).encode()
    if not diff or not before or not after:
        return
    (file,) = parse(b"diff --git a/x b/x\n" + diff.encode())
    assert fit(old, file.hunks).data == new
    assert fit(new, back(file.hunks)).data == old


@given(
    before=st.lists(st.integers(0, 10**9), min_size=8, max_size=40, unique=True),
    where=st.data(),
    inserted=st.lists(st.integers(2 * 10**9, 3 * 10**9), max_size=30),
)
def test_a_hunk_is_found_where_it_moved(before, where, inserted):
    at = where.draw(st.integers(0, len(before) - 1))
    lines = [f"{number}\n" for number in before]
    changed = [*lines[:at], "changed\n", *lines[at + 1 :]]
    text = "".join(difflib.unified_diff(lines, changed, "a/x", "b/x"))
    (file,) = parse(b"diff --git a/x b/x\n" + text.encode())
    moved = [f"{number}\n" for number in inserted]
    fitted = fit("".join(moved + lines).encode(), file.hunks)
    assert fitted.data == "".join(moved + changed).encode()
    assert fitted.displacement == len(moved)


def hunk(start, old, new, new_start=None):
    split = [tuple(split_lines(text.encode())) for text in (old, new)]
    return Hunk("@@", start, start if new_start is None else new_start, *split)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a\n"]),
        (b"a\r\n\nb", [b"a\r\n", b"\n", b"b"]),
        (b"\n", [b"\n"]),
    ],
)
def test_lines_keep_their_ends(data, lines):
    assert split_lines(data) == lines


def test_a_hunk_reversed():
    one = Hunk("@@ x", 3, 5, (b"a\n",), (b"b\n", b"c\n"))
    assert one.reversed() == Hunk("@@ x", 5, 3, (b"b\n", b"c\n"), (b"a\n",))
    assert one.reversed().reversed() == one


@pytest.mark.parametrize(
    ("kind", "paths"),
    [("change", ("n",)), ("create", ("n",)), ("copy", ("n",)), ("rename", ("o", "n"))],
)
def test_the_paths_whose_content_changes(kind, paths):
    assert FileDiff(kind, "o", "n", ()).paths == paths


# Hunks as (start, old, new); what the file becomes and by how much they moved.
FITS = [
    ("a\nb\na\nb\n", [(3, "a\nb\n", "X\n")], "a\nb\nX\n", 0),
    ("a\nb\nc\n", [(3, "a\n", "X\n")], "X\nb\nc\n", 2),
    ("x\na\nx\nb\nx\n", [(1, "a\n", "A\n"), (3, "b\n", "B\n")], "x\nA\nx\nB\nx\n", 2),
    ("a\nx\nx\nb\n", [(3, "a\n", "A\n"), (4, "b\n", "B\n")], "A\nx\nx\nB\n", 2),
    ("a\na\n", [(1, "a\n", "b\n"), (2, "a\n", "c\n")], "b\nc\n", 0),
    ("", [(0, "", "a\n")], "a\n", 0),
    ("a\nb\n", [(2, "b\n", "")], "a\n", 0),
    ("b\nc\na", [(1, "a", "X")], "b\nc\nX", 2),
]


@pytest.mark.parametrize(("before", "hunks", "after", "moved"), FITS)
def test_where_hunks_go(before, hunks, after, moved):
    fitted = fit(before.encode(), [hunk(*one) for one in hunks])
    assert (fitted.data.decode(), fitted.displacement) == (after, moved)


NO_CONTEXT = "the hunk has no context and the file is not empty"
# Hunks; the number of the one that does not fit, why, and where it is nearest.
MISFITS = [
    ("a\n", [(0, "", "b\n")], (1, NO_CONTEXT, None, "", "")),
    ("", [(1, "a\n", "b\n")], (1, "its context was not found", None, "a", "")),
    ("x\na\nx\na\nx\na\n", [(1, "a\n", "b\n")],
     (1, "it fits at more than one place: lines 2, 4, 6", 2, "", "")),
    # The best match, then the nearest to where the hunk belongs.
    ("p\nq\nz\np\nr\nz\n", [(4, "p\nq\nr\n", "")],
     (1, "its context was not found", 3, "r", "z")),
    ("p\nz\np\nz\np\nz\n", [(3, "p\nq\n", "")],
     (1, "its context was not found", 4, "q", "z")),
    ("p\nz\nz\nz\np\nz\n", [(3, "p\nq\n", "")],
     (1, "its context was not found", 2, "q", "z")),
    # White space alone is no likeness.
    ("x\n\ny\nq\n", [(1, "\nq\nr\n", "")], (1, "its context was not found", 3, "", "y")),
    # Beyond the ends of the file there is nothing.
    ("b\n", [(1, "a\nb\nc\n", "")], (1, "its context was not found", 0, "a", "")),
    ("x\na\n", [(2, "a\nb\n", "")], (1, "its context was not found", 3, "b", "")),
    ("b\na\n", [(2, "a\n", "A\n"), (3, "b\n", "B\n")],
     (2, "its context was not found", 1, "", "")),
]  # fmt: skip


@pytest.mark.parametrize(("before", "hunks", "expected"), MISFITS)
def test_where_a_hunk_that_fits_nowhere_is_nearest(before, hunks, expected):
    hunks = [hunk(*one) for one in hunks]
    with pytest.raises(HunkMismatch) as caught:
        fit(before.encode(), hunks)
    miss = caught.value
    assert (miss.number, miss.reason, miss.near, miss.wanted, miss.found) == expected
    assert miss.hunk is hunks[miss.number - 1]
    assert str(miss) == miss.reason


def test_the_text_of_a_line():
    assert text_of(b"a \xff\r\n") == "a \ufffd\r"
    assert text_of(b"aX\n\n") == "aX"
