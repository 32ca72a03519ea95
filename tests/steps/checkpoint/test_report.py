"""Findings as people and programs get them: whole, in order, and without what a terminal obeys."""

from __future__ import annotations

import pytest

from runbook.steps.checkpoint.lint import Finding, report
from runbook.steps.checkpoint.lint.scales import Sample
from runbook.steps.checkpoint.targets import Target

TARGET = Target("0.33.0", "0.33.0")


def finding(severity="error", detail="d", tensors=()) -> Finding:
    return Finding("rule", severity, detail, tensors, "breaks", "mend it", {"0.33.0": severity})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \N{SNOWMAN} \u00e9", "plain \N{SNOWMAN} \u00e9"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\x00\x7f\x9f", "a\\nb\\x00\\x7f\\x9f"),
        ("a\u200e\u202eb\u2069", "a\\u200e\\u202eb\\u2069"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text, shown):
    assert report.printable(text) == shown
    assert report.text([finding(detail=text)], Sample()).split("\n")[0] == f"error   rule: {shown}"
    (told,) = report.plain([finding(detail=text, tensors=(text,))], TARGET, Sample())["findings"]
    assert (told["detail"], told["tensors"]) == (shown, [shown])


def test_findings_for_programs():
    found = [finding(), finding("warning"), finding("warning", tensors=("t",) * 6), finding("info")]
    told = report.plain(found, TARGET, Sample(of=9, tensors=3, bytes=3, read=2))
    assert told.pop("findings")[2] == {
        "id": "rule",
        "severity": "warning",
        "detail": "d",
        "tensors": ["t"] * 5,
        "tensor_count": 6,
        "consequence": "breaks",
        "remedy": "mend it",
        "severities": {"0.33.0": "warning"},
    }
    assert told == {
        "target": "0.33.0",
        "series": "0.33.0",
        "error": 1,
        "warning": 2,
        "info": 1,
        "scales": {"tensors": 9, "examined": 3, "share": 0.666667},
    }
    assert report.plain([], TARGET, Sample())["scales"]["share"] == 1.0


@pytest.mark.parametrize(
    ("tensors", "shown"),
    [
        ((), []),
        (("a", "b", "c\x1b"), ["a", "b", "c\\x1b"]),
        (("a", "b", "c", "d"), ["a", "b", "c", "and 1 more"]),
    ],
)
def test_findings_for_people(tensors, shown):
    lines = report.text([finding("warning", tensors=tensors)], Sample()).split("\n")
    assert lines == [
        "warning rule: d",
        *(f"          {name}" for name in shown),
        "        consequence: breaks",
        "        remedy: mend it",
    ]


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (Sample(), "no findings"),
        (Sample(of=1), "no findings\n        no value of the 1 scales was looked at"),
        (
            Sample(of=4, tensors=1, bytes=8, read=1),
            "no findings\n        1 of 4 scales were looked at, 12.50% of their bytes",
        ),
        (
            Sample(of=1, tensors=1),
            "no findings\n        1 of 1 scales were looked at, 100.00% of their bytes",
        ),
    ],
)
def test_which_share_of_the_scales_was_looked_at(sample, told):
    assert report.text([], sample) == told
