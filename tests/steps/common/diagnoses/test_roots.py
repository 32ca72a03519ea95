"""The first true error of logs of all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runbook.steps.common.diagnoses.roots import excerpt, root_error

HERE = Path(__file__).parent
LOGS = yaml.safe_load((HERE / "logs.yaml").read_text())
TEXTS = yaml.safe_load((HERE / "roots.yaml").read_text())


@pytest.mark.parametrize("case", LOGS, ids=lambda case: case["log"])
def test_logs_of_users(case):
    found = root_error((HERE / "logs" / case["log"]).read_text())
    if case["root"] is None:
        assert found is None
    else:
        assert str(found).startswith(case["root"])


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case["case"])
def test_texts(case):
    found = root_error(case["text"])
    assert (str(found) if found is not None else None) == case["root"]
    assert found is None or found.process == case.get("process", "")


@pytest.mark.parametrize("case", [c for c in LOGS if c["root"]], ids=lambda case: case["log"])
def test_an_excerpt_holds_the_error_whole(case):
    text = (HERE / "logs" / case["log"]).read_text()
    shown = [text.splitlines()[number] for number in excerpt(text)]
    assert any(
        case["root"].splitlines()[0][:60] in line.replace(": : ", ": ")
        or case["root"].split(": ", 1)[-1][:60] in line
        for line in shown
    )
    assert len(shown) <= 40


def test_of_a_log_without_an_error_nothing_is_shown():
    assert not excerpt("all is well\n0 errors, 0 warnings\n")


def test_errors_in_a_row_are_shown_together():
    lines = ["examined", "error: no driver", "error: no room", "advice: none", "error: no memory"]
    text = "\n".join([*(f"quiet {n}" for n in range(9)), *lines, *(f"then {n}" for n in range(9))])
    shown = [text.splitlines()[number] for number in excerpt(text)]
    assert {line for line in lines if line.startswith("error")} <= set(shown)
    assert "then 8" not in shown
