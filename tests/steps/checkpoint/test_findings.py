"""What the linter says of each planted defect, whole: every finding, with its detail and tensors.

Write `findings.json` anew with `GOLDEN=write pytest tests/steps/checkpoint/test_findings.py`, and
read the diff.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runbook.steps.checkpoint.lint import Finding, lint
from tests.steps.checkpoint.cases import CASES
from tests.steps.mtp.defects import DEFECTS

FILE = Path(__file__).parent / "findings.json"
GOLDEN = json.loads(FILE.read_text())
ALL = {**DEFECTS, **CASES}
MOST = 6


def told(finding: Finding, folder: Path) -> str:
    more = f" and {len(finding.tensors) - MOST} more" if len(finding.tensors) > MOST else ""
    names = ", ".join(finding.tensors[:MOST]) + more
    text = f"{finding.severity} {finding.id}: {finding.detail}" + (f" [{names}]" if names else "")
    return text.replace(str(folder), "FOLDER")


@pytest.mark.parametrize("name", ALL)
def test_all_that_is_said_of_a_defect(name, tmp_path):
    defect = ALL[name]
    made = defect.make()
    defect.plant(made)
    folder = made.write(tmp_path / "checkpoint")
    defect.damage(folder)
    findings = lint(folder, defect.target)
    found = [told(finding, folder) for finding in findings]
    if os.environ.get("GOLDEN") == "write":
        GOLDEN[name] = found
        known = {key: GOLDEN[key] for key in ALL if key in GOLDEN}
        FILE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    assert found == GOLDEN[name]
    planted = [finding for finding in findings if finding.id == defect.finding]
    assert planted, "what it was planted for is among it"
    assert planted[0].severity == planted[0].severities[str(defect.target)] == defect.severity
    assert planted[0].consequence and planted[0].remedy


def test_every_defect_is_there_and_no_other():
    assert GOLDEN.keys() == ALL.keys()
