"""What people read, whole: each case of `golden/cases.yaml` beside the text that it gives.

Write the texts anew with `GOLDEN=write pytest tests/runbook/cli/test_golden.py`, and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from runbook.cli import envelope, human, terminal
from runbook.cli.progress import Lines

GOLDEN = Path(__file__).parent / "golden"
CASES = yaml.safe_load((GOLDEN / "cases.yaml").read_text())


def told(case) -> None:
    """Print a case as the program would."""
    if case["kind"] == "run":
        lines = Lines(9)
        for event in case["events"]:
            lines.event(event)
    elif case["kind"] == "check":
        lines = Lines(9)
        for entry in case["entries"]:
            lines.checked(entry, case["deep"])
    elif case["kind"] == "error":
        envelope.print_error(case["error"], case["next"])
    elif case["kind"] == "plan":
        terminal.say(human.plan(case["answer"], case["mending"]))
    else:
        shown = {"status": human.status, "destroy": human.undone}
        terminal.say(shown[case["kind"]](case["answer"]))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", CASES)
def test_what_people_read(capsys, monkeypatch, name, width):
    monkeypatch.setattr(terminal, "_width", lambda: width)
    monkeypatch.setattr(human, "ago", lambda moment: "3 min ago" if moment else "")
    told(CASES[name])
    captured = capsys.readouterr()
    text = captured.out + captured.err
    file = GOLDEN / f"{name}.{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()
