"""Every known failure against its own excerpts, and against every other one's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runbook.steps import STEPS
from runbook.steps.common.diagnoses import catalogue, diagnose

ALL = catalogue()
READY = (Path(__file__).parents[1] / "serve" / "logs" / "ready.log").read_text()


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_excerpts(known):
    assert known.found_in(known.matches)
    assert known.found_in(known.not_matches) is None


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_it_is_the_one_that_is_reported(known):
    for step in known.steps:
        found = diagnose(step, known.matches)
        assert found is not None
        assert found.diagnosis.id == known.id


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_a_start_that_succeeded_shows_no_failure(known):
    assert known.found_in(READY) is None


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_it_can_be_read(known):
    assert re.fullmatch(r"[a-z0-9_]+", known.id)
    assert known.cause.endswith(".")
    assert known.remedy
    assert set(known.steps) <= set(STEPS)


def test_ids_are_unique():
    assert len({known.id for known in ALL}) == len(ALL)


def test_the_failure_quotes_the_line():
    text = "first\nRuntimeError: FlashInfer requires GPUs with sm75 or higher\nlast"
    found = diagnose("serve", text)
    assert found is not None
    failure = found.failure("the server cannot start", "server.log")
    assert failure.code == "flashinfer_no_target"
    assert failure.cause.endswith("\nRuntimeError: FlashInfer requires GPUs with sm75 or higher")
    assert failure.where == "server.log"


def test_only_fatal_leaves_out_what_a_log_may_say_in_passing():
    text = "ImportError: _C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEi"
    assert diagnose("serve", text) is not None
    assert diagnose("serve", text, only_fatal=True) is None


def test_another_step_has_other_failures():
    assert diagnose("weights", ALL[0].matches) is None
