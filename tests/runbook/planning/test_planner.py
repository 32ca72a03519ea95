"""The decision table and the selections, from data."""

from pathlib import Path

import pytest
import yaml

from runbook.errors import RunbookError
from runbook.planning.planner import (
    Decision,
    Selection,
    View,
    considered,
    decide,
    foreseen,
    require_steps,
    select,
)
from runbook.protocol import Check, Reason

HERE = Path(__file__).parent
DECISIONS = yaml.safe_load((HERE / "decisions.yaml").read_text())
SELECTIONS = yaml.safe_load((HERE / "selections.yaml").read_text())


OTHERWISE = "an attempt with other inputs began since it was last verified"
OTHER_INPUTS = Reason("interrupted", OTHERWISE)
# Codes and messages of what is decided; those of a change name its parts.
KNOWN = [
    ("up_to_date", "up to date"),
    ("stale", "holds, but its definition has changed"),
    ("forced", "asked for"),
    ("interrupted", OTHERWISE),
    ("interrupted", "continues where it stopped"),
    ("adopted", "found done"),
    ("adopted", "found done, with other outputs"),
    ("failed_before", "failed before"),
    ("never_ran", "never ran"),
    ("drifted", "no longer as it was made"),
    ("changed", "changed: with"),
    ("changed", "changed: files, needs"),
    ("changed", "changed: one (made anew)"),
]


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
    assert decision.reasons[0] in (missing, *(Reason(*known, "", "info") for known in KNOWN),
                                   OTHER_INPUTS, Reason("not_done", "not done yet"))  # fmt: skip
    # What the check said follows ours, where it is why there is something to do.
    follow = decision.verb == "run" and not check.ok and not row.get("forced", False)
    assert decision.reasons[1:] == ((missing,) if follow else ())


@pytest.mark.parametrize("row", SELECTIONS, ids=[str(row["options"]) for row in SELECTIONS])
def test_selection(row):
    steps = [{"id": name, "always": name == "a"} for name in "abcd"]
    if "error" in row:
        with pytest.raises(RunbookError) as caught:
            select(steps, **row["options"])
        assert str(caught.value) == row["error"]
        assert caught.value.exit_code == 2
        assert caught.value.code == row["code"]
        assert caught.value.remedy == row["remedy"]
        return
    selection = select(steps, **row["options"])
    assert sorted(selection.runnable) == row["runnable"]
    assert sorted(selection.forced) == row["forced"]


def test_of_a_step_outside_the_selection_a_check_without_an_error_says_nothing():
    warned = Check(False, (Reason("slow", "it is slow", "", "warning"),))
    assert decide(View(check=warned, runnable=False)).reasons == (
        Reason("not_done", "not done yet"),
    )


def test_what_refuses_goes_over_other_inputs():
    refused = Reason("no_card", "no card", "buy one")
    view = View(check=Check.unsatisfied(refused), begun="other", runnable=False)
    assert decide(view) == Decision("unmet", (refused,))


def test_the_code_of_a_decision_is_that_of_its_first_reason():
    assert Decision("skip").code == ""
    assert Decision("skip", (Reason("a", "a"), Reason("b", "b"))).code == "a"


@pytest.mark.parametrize(
    ("severities", "verb"), [(["warning", "error"], "unmet"), (["warning"], "later"), ([], "later")]
)
def test_what_a_step_says_before_it_is_its_turn(severities, verb):
    reasons = [Reason("said", "said", "", severity) for severity in severities]
    decision = foreseen(reasons)
    assert decision.verb == verb
    assert decision.reasons == (
        *reasons, Reason("upstream", "decided after an earlier step ran", "", "info"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("runnable", "expected"),
    [
        (["d"], ["a", "b", "d"]),
        (["c"], ["a", "c"]),
        (["a"], ["a"]),
        ([], []),
        (["b", "c"], ["a", "b", "c"]),
    ],
)
def test_what_a_selection_needs_is_considered(runnable, expected):
    needs = {"a": [], "b": ["a"], "c": ["a"], "d": ["b"]}
    steps = [{"id": name, "needs": needs[name]} for name in needs]
    selection = Selection(frozenset(runnable), frozenset())
    assert [step["id"] for step in considered(steps, selection)] == expected


def test_without_an_option_everything_may_run():
    steps = [{"id": name, "always": False} for name in "ab"]
    assert select(steps) == Selection(frozenset("ab"), frozenset())
    assert select(steps, until="a") == Selection(frozenset("a"), frozenset())
    assert select(steps, start="b") == Selection(frozenset("b"), frozenset("b"))


def test_names_of_steps():
    steps = [{"id": name} for name in ("build", "serve", "smoke")]
    assert require_steps(steps, "smoke", "build") == ["build", "serve", "smoke"]
    for name, message in (
        ("srve", "there is no step `srve`; did you mean `serve`?"),
        ("xyz", "there is no step `xyz`"),
    ):
        with pytest.raises(RunbookError) as refused:
            require_steps(steps, "build", name, "zzz")
        assert str(refused.value) == message
        assert (refused.value.code, refused.value.exit_code) == ("unknown_step", 2)
        assert refused.value.remedy == "the steps are: build, serve, smoke"
