"""The decision table and the selections, from data."""

from pathlib import Path

import pytest
import yaml

from runbook.errors import RunbookError
from runbook.planning.planner import View, decide, select
from runbook.protocol import Check, Reason

HERE = Path(__file__).parent
DECISIONS = yaml.safe_load((HERE / "decisions.yaml").read_text())
SELECTIONS = yaml.safe_load((HERE / "selections.yaml").read_text())


@pytest.mark.parametrize("row", DECISIONS, ids=[row["case"] for row in DECISIONS])
def test_decision(row):
    missing = Reason("missing", "it is missing", "make it")
    warning = Reason("slow", "it is slow", "", "warning")
    check = Check.satisfied({}, warning) if row["check"] == "ok" else Check.unsatisfied(missing)
    known = row["checkpoint"]
    decision = decide(
        View(
            check=check,
            has_checkpoint=known != "none",
            changed=tuple(known) if isinstance(known, list) else (),
            outputs_differ=row.get("outputs_differ", False),
            last_attempt=row.get("last", ""),
            begun=row.get("begun", ""),
            forced=row.get("forced", False),
            runnable=row.get("runnable", True),
        )
    )
    assert (decision.verb, decision.code) == (row["verb"], row["code"])
    if "message" in row:
        assert decision.reasons[0].message == row["message"]
    if decision.verb == "run" and not check.ok and not row.get("forced"):
        assert missing in decision.reasons
    assert warning not in decision.reasons


@pytest.mark.parametrize("row", SELECTIONS, ids=[str(row["options"]) for row in SELECTIONS])
def test_selection(row):
    steps = [{"id": name, "always": name == "a"} for name in "abcd"]
    if "error" in row:
        with pytest.raises(RunbookError) as caught:
            select(steps, **row["options"])
        assert str(caught.value) == row["error"]
        assert caught.value.exit_code == 2
        return
    selection = select(steps, **row["options"])
    assert sorted(selection.runnable) == row["runnable"]
    assert sorted(selection.forced) == row["forced"]
