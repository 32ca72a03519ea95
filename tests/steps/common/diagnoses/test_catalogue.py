"""Every known failure against its own excerpts, and against every other one's."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jinja2 import UndefinedError
from jinja2.sandbox import SecurityError

from runbook.remedy import Remedy
from runbook.steps import ROLES, STEPS
from runbook.steps.common.diagnoses import catalogue, diagnose

ALL = catalogue()
FINAL = {"card_too_old_for_torch"}
"""What nobody mends on the machine at hand: no command follows."""
HERE = Path(__file__).parent
CONDITIONS = yaml.safe_load((HERE / "conditions.yaml").read_text())
LOGS = yaml.safe_load((HERE / "logs.yaml").read_text())
READY = (Path(__file__).parents[2] / "serve" / "logs" / "ready.log").read_text()


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_excerpts(known):
    assert known.found_in(known.matches)
    assert known.found_in(known.not_matches) is None


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_it_is_the_one_that_is_reported(known):
    facts = next((c["facts"] for c in CONDITIONS if c["id"] == known.id), None)
    for step in known.steps:
        found = diagnose(step, known.matches, facts)
        assert found is not None
        assert found.diagnosis.id == known.id


@pytest.mark.parametrize("case", CONDITIONS, ids=lambda case: case["id"])
def test_facts_in_the_condition(case):
    found = diagnose("serve", case["text"], case["facts"])
    assert found is not None
    assert found.diagnosis.id == case["id"]


def test_a_condition_is_met_by_some_machine_and_not_by_another():
    conditional = [known for known in ALL if known.when]
    assert conditional
    assert {known.id for known in conditional} <= {case["id"] for case in CONDITIONS}


@pytest.mark.parametrize(
    "condition",
    ["facts.__class__", "''.__class__.__mro__", "facts.gpus.clear()", "facts.nothing", "nothing"],
)
def test_a_condition_reads_facts_and_nothing_else(condition):
    known = replace(ALL[0], when=condition)
    with pytest.raises((SecurityError, UndefinedError)):
        known.possible({"gpus": []})


def test_a_start_that_succeeded_shows_no_failure():
    assert diagnose("", READY) is None


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_it_can_be_read(known):
    assert re.fullmatch(r"[a-z0-9_]+", known.id)
    assert known.cause.endswith(".")
    assert str(known.remedy)
    assert set(known.steps) <= {*STEPS, "command"}


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


@pytest.mark.parametrize("case", LOGS, ids=lambda case: case["log"])
def test_logs_of_users(case):
    found = diagnose(case["step"], (HERE / "logs" / case["log"]).read_text())
    assert (found.diagnosis.id if found is not None else None) == case["diagnosis"]


def test_the_cause_is_told_and_not_what_followed_from_it():
    symptom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    cause = "RuntimeError: CUDA error: peer access is not supported between these two devices"
    assert diagnose("serve", f"{cause}\n{symptom}").diagnosis.id == "peer_access_unsupported"
    assert diagnose("serve", f"{symptom}\n{cause}").diagnosis.id == "cuda_out_of_memory"


def test_a_warning_shows_no_failure():
    line = "(APIServer pid=1) {} 11-26 12:04:05 [system_utils.py:278] OSError: Too many open files"
    assert diagnose("serve", line.format("WARNING")) is None
    assert diagnose("serve", line.format("ERROR")).diagnosis.id == "too_many_files"


def test_another_step_has_other_failures():
    assert diagnose("toolkit", "ValueError: Unknown quantization method: mxfp8_block.") is None


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.id)
def test_commands_in_remedies_are_data(known):
    if isinstance(known.remedy, str):
        assert known.id in FINAL, "what follows once a person has mended it"
        assert "runbook" not in known.remedy
    else:
        assert isinstance(known.remedy, Remedy)
        assert "{command}" in known.remedy.text
        assert known.remedy.kind in {"", *STEPS, *ROLES}


def test_there_are_many_for_all_that_can_fail():
    assert len(ALL) >= 70
    for kind in ("toolkit", "vllm", "weights", "serve", "smoke", "command"):
        assert any(kind in known.steps for known in ALL)
