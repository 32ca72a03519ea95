"""The rehearsal with a DSpark draft: downloaded, linted, served and counted like the other."""

from __future__ import annotations

import pytest

from runbook.steps.publish.checkpoint.script import ANSWER, DEPTH, SCRIPTS
from tests.e2e.conftest import needs_v4

pytestmark = [pytest.mark.e2e, needs_v4]


def test_a_dspark_draft_is_served_with_exact_answers_and_counts(rehearsal):
    answer = rehearsal.json("run", "--set", "draft=dspark")
    smoke = answer["outputs"]["smoke"]
    assert (smoke["drafted"], smoke["accepted"]) == SCRIPTS["v4"].blocks(ANSWER)
    assert len(smoke["acceptance_by_position"]) == DEPTH
    assert answer["outputs"]["mtp"]["findings"] == 0
    assert rehearsal.ask("ping") == "".join(ANSWER)
    again = rehearsal.json("run")
    assert {step["decision"] for step in again["steps"]} == {"skip"}
