import shlex

import pytest

from runbook.cli import remedies


def command(verb, *arguments, positional=True):
    return shlex.join(["runbook", verb, *(["x"] if positional else ["--book", "x"]), *arguments])


@pytest.mark.parametrize(
    ("remedy", "completed"),
    [
        ("`runbook run` continues", "`runbook run x` continues"),
        ("`runbook wait`, `runbook cancel`", "`runbook wait x`, `runbook cancel x`"),
        ("`runbook run --from mtp`, or set y", "`runbook run x --from mtp`, or set y"),
        ("read it: `runbook logs serve`", "read it: `runbook logs --book x serve`"),
        ("`runbook check --book z a`", "`runbook check --book z a`"),
        ("`runbook run rehearsal` serves", "`runbook run rehearsal` serves"),
        ("`runbook lint /m`, `make lint`", "`runbook lint /m`, `make lint`"),
        ("raise `timeout`", "raise `timeout`"),
    ],
)
def test_commands_name_the_book(remedy, completed):
    assert remedies.text(remedy, command) == completed


def test_every_remedy_of_an_answer_is_completed_and_nothing_else():
    answer = {"steps": [{"reasons": [{"message": "`runbook run`", "remedy": "`runbook run`"}]}]}
    assert remedies.complete(answer, command) == {
        "steps": [{"reasons": [{"message": "`runbook run`", "remedy": "`runbook run x`"}]}]
    }
