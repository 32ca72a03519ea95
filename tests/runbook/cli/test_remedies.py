"""Remedies are rendered as complete commands for the book at hand, or as words without one."""

import shlex

import pytest

from runbook.cli.remedies import Renderer
from runbook.remedy import Remedy, dump, joined, load
from runbook.steps import MODEL, ROLES
from runbook.steps import STEPS as KINDS

STEPS = [
    {"id": "fetch", "uses": "weights"},
    {"id": "draft", "uses": "weights"},
    {"id": "make", "uses": "vllm"},
    {"id": "up", "uses": "serve"},
]


def line(verb, *arguments):
    return shlex.join(["runbook", verb, "x", *arguments])


@pytest.fixture
def renderer():
    return Renderer(line, STEPS, {"port"})


@pytest.mark.parametrize(
    ("remedy", "step", "said"),
    [
        (Remedy("run"), "", "runbook run x"),
        (Remedy("run", text="{command} continues"), "", "`runbook run x` continues"),
        (Remedy("run", ("--from", "{step}"), kind="serve"), "make", "runbook run x --from up"),
        (Remedy("logs", ("{step}",)), "make", "runbook logs x make"),
        # Of several steps of a kind: the one at hand, the nearest before it, or the last.
        (
            Remedy("run", ("--only", "{step}"), kind="weights"),
            "fetch",
            "runbook run x --only fetch",
        ),
        (Remedy("run", ("--only", "{step}"), kind="weights"), "up", "runbook run x --only draft"),
        (Remedy("run", ("--only", "{step}"), kind="weights"), "", "runbook run x --only draft"),
        # Of a role: whichever of its kinds the document has.
        (Remedy("run", ("--from", "{step}"), kind="model"), "up", "runbook run x --from draft"),
        (Remedy("run", ("--set", "port=1")), "", "runbook run x --set port=1"),
        (
            (Remedy("wait", text="{command} to wait"), "or go"),
            "",
            "`runbook wait x` to wait; or go",
        ),
        ((Remedy("wait"), "or go"), "", "`runbook wait x`; or go"),
        ((Remedy("wait"),), "", "runbook wait x"),
        # Without a command that would do, never a wrong one.
        (
            Remedy("run", ("--from", "{step}"), kind="mtp", text="{command}, or set `y: null`"),
            "up",
            "set `y: null`",
        ),
        (
            Remedy("run", ("--set", "jobs=1"), text="free memory, then {command}"),
            "",
            "free memory",
        ),
        (
            Remedy("run", ("--from", "{step}"), kind="mtp", otherwise="put the head in"),
            "up",
            "put the head in",
        ),
        (
            Remedy("run", ("--from", "{step}"), kind="mtp"),
            "up",
            "the document has no step of the kind `mtp` that would mend it",
        ),
        (Remedy("logs", ("{step}",), text="read {command}; then rest"), "", "rest"),
        # Sentences that hold a command.
        ("`runbook run` continues", "", "`runbook run x` continues"),
        ("`runbook run --from mtp`, or set y", "", "`runbook run x --from mtp`, or set y"),
        ("read it: `runbook logs serve`", "", "read it: `runbook logs x serve`"),
        ("`runbook run rehearsal` serves", "", "`runbook run rehearsal` serves"),
        ("`runbook lint /m`, `make lint`", "", "`runbook lint /m`, `make lint`"),
        ("raise `timeout`", "", "raise `timeout`"),
    ],
)
def test_a_remedy_in_words(renderer, remedy, step, said):
    assert renderer.text(remedy, step) == said
    assert renderer.text(load(dump(remedy)), step) == said, "as data it is the same"


def test_the_step_that_made_the_model_is_the_nearest_of_its_kinds():
    mended = [*STEPS[:2], {"id": "mend", "uses": "mtp"}, *STEPS[2:]]
    remedy = Remedy("run", ("--from", "{step}"), kind=MODEL)
    assert Renderer(line, mended).text(remedy, "up") == "runbook run x --from mend"
    assert {kind for kinds in ROLES.values() for kind in kinds} <= set(KINDS)


def test_every_remedy_of_an_answer_is_rendered_for_its_step_and_nothing_else(renderer):
    again = Remedy("run", ("--force", "{step}"))
    answer = {
        "steps": [
            {"id": "make", "reasons": [{"message": "`runbook run`", "remedy": dump(again)}]},
            {"id": "up", "error": {"remedy": dump(again), "step": "fetch"}},
            {"id": "up", "error": {"remedy": ""}},
        ]
    }
    steps = renderer.complete(answer)["steps"]
    assert steps[0]["reasons"] == [
        {"message": "`runbook run`", "remedy": "runbook run x --force make"}
    ]
    assert steps[1]["error"]["remedy"] == "runbook run x --force fetch"
    assert steps[2]["error"]["remedy"] == ""


@pytest.mark.parametrize(
    "damaged", [None, 3, {}, {"verb": 3}, [1], {"verb": "run", "arguments": 1}]
)
def test_a_damaged_remedy_is_none(damaged):
    assert not load(damaged)


@pytest.mark.parametrize(
    ("given", "one"),
    [
        ([], ""),
        (["", ""], ""),
        (["a", "", "a"], "a"),
        ([Remedy("run"), dump(Remedy("run"))], Remedy("run")),
        (["a", ("b", "a"), ["c"]], ("a", "b", "c")),
    ],
)
def test_several_remedies_are_one_that_has_each_once(given, one):
    assert joined(given) == one


@pytest.mark.parametrize(
    ("remedy", "named"),
    [
        ("free some", []),
        (Remedy("run"), ["runbook run x"]),
        ("without a GPU, `runbook run rehearsal`", ["runbook run rehearsal"]),
        ((Remedy("wait"), Remedy("cancel")), ["runbook wait x", "runbook cancel x"]),
    ],
)
def test_the_commands_that_a_remedy_names(renderer, remedy, named):
    assert renderer.commands(remedy) == named


def test_a_clause_that_several_remedies_share_stands_once():
    less = "without a GPU, `runbook run rehearsal`"
    given = (f"install a driver; {less}", f"use another machine; {less}", "`a; b; a`", "free some")
    told = Renderer(lambda verb, *words: " ".join(["runbook", verb, *words])).text(given)
    assert told == f"install a driver; use another machine; {less}; `a; b; a`; free some"
