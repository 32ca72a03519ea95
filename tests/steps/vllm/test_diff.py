"""Diffs are applied exactly, or refused with the place that differs."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runbook.steps.vllm.patching.diff import HunkMismatch, fit
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
